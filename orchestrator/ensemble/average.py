"""The best few, with equal weights."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.pipeline import AverageEnsemble
from orchestrator.run_folder.predictions import Predictions, accuracy, nll


def select(
    config: AverageEnsemble, *, members: Sequence[Predictions], size: int, combine: str
) -> list[tuple[int, float]]:
    """The `size` candidates of the highest accuracy, equals ordered by NLL, then by place.

    Args:
        members: the candidates' predictions on the select split.
        combine: how answers are averaged; every ensemble method is given it.

    Returns:
        (candidate's place, weight) pairs; the weights sum to 1.
    """
    chosen = sorted(range(len(members)), key=lambda place: _rank(members[place]))[:size]
    return [(place, 1 / len(chosen)) for place in chosen]


def _rank(member: Predictions) -> tuple[float, float]:
    probabilities = member.probabilities()
    return -accuracy(probabilities, member.labels), nll(probabilities, member.labels)
