"""How differently models err (Kuncheva and Whitaker, 2003). Axes: M members, N samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.ensemble.combine import check_alike
from orchestrator.run_folder.predictions import Array, Predictions


@dataclass(frozen=True, eq=False)
class Diversity:
    """Pairwise measures as symmetric float64[M, M] matrices; NaN where one is not defined.

    Attributes:
        disagreement: share of samples to which two models give different labels.
        error_correlation: Pearson's, of the 0/1 errors. Not defined for a model whose answers
            are all right or all wrong.
        q_statistic: Yule's, (ab − cd) / (ab + cd) with a both right, b both wrong, c and d one
            of them; 1 when they err together, 0 when independently, −1 when never together.
        prediction_correlation: Pearson's, of all probabilities.
        accuracies: [M].
    """

    disagreement: Array
    error_correlation: Array
    q_statistic: Array
    prediction_correlation: Array
    accuracies: Array

    def summary(self) -> Mapping[str, float | None]:
        """Each measure's mean over the pairs where it is defined; None without such a pair."""
        return {
            "disagreement": _mean_of_pairs(self.disagreement),
            "error_correlation": _mean_of_pairs(self.error_correlation),
            "q_statistic": _mean_of_pairs(self.q_statistic),
            "prediction_correlation": _mean_of_pairs(self.prediction_correlation),
        }


def diversity(members: Sequence[Predictions]) -> Diversity:
    """Measures members against each other on one split.

    Raises:
        DataError: if they answer different samples.
    """
    check_alike(members)
    answers = np.stack([one.logits.argmax(axis=-1) for one in members])
    right = answers == members[0].labels
    flat = np.stack([one.probabilities().reshape(-1) for one in members])
    return Diversity(
        disagreement=_pairwise(answers, lambda a, b: float((a != b).mean())),
        error_correlation=_pairwise(right, _pearson),
        q_statistic=_pairwise(right, _yule_q),
        prediction_correlation=_pairwise(flat, _pearson),
        accuracies=right.mean(axis=1),
    )


def _pairwise(rows: Array, measure: Callable[[Array, Array], float]) -> Array:
    return np.array([[measure(one, other) for other in rows] for one in rows], dtype=np.float64)


def _pearson(one: Array, other: Array) -> float:
    a, b = one - one.mean(), other - other.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def _yule_q(one: Array, other: Array) -> float:
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    first, second = int((one & ~other).sum()), int((~one & other).sum())
    whole = both * neither + first * second
    return (both * neither - first * second) / whole if whole else float("nan")


def _mean_of_pairs(matrix: Array) -> float | None:
    pairs = matrix[np.triu_indices(len(matrix), k=1)]
    defined = pairs[~np.isnan(pairs)]
    return float(defined.mean()) if len(defined) else None
