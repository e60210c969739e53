"""Ensemble selection from libraries of models (Caruana et al., 2004)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.config.pipeline import GreedyEnsemble
from orchestrator.ensemble.combine import member_scores, to_probabilities
from orchestrator.run_folder.predictions import Array, Predictions, accuracy, nll

Loss = Callable[[Array, Array], float]


def select(
    config: GreedyEnsemble, *, members: Sequence[Predictions], size: int, combine: str
) -> list[tuple[int, float]]:
    """Forward selection with replacement, from the `start` best single models (section 2.2).

    In each round the candidate joins whose addition makes the average best, also one that is in
    already. Of the nested ensembles on that path, the best is kept, the smallest of equals
    (section 2.3). Ties between candidates go to the better single model, so the result does not
    depend on their order unless two are equally good.

    Args:
        members: the candidates' predictions on the select split.
        size: rounds, those of the initial models included.
        combine: ``probabilities`` or ``logits``, what is averaged.

    Returns:
        (candidate's place, share of the rounds) pairs, the greatest share first; they sum to 1.
    """
    labels = members[0].labels
    loss = _LOSSES[config.metric]
    scores = np.stack([member_scores(one, combine) for one in members])

    def of(total: Array, count: int) -> float:
        return loss(to_probabilities(total / count, combine), labels)

    alone = [of(one, 1) for one in scores]
    order = sorted(range(len(members)), key=lambda place: (alone[place], place))
    path = order[: min(config.start, size)]
    total = scores[path].sum(axis=0)
    best_loss, best_length = of(total, len(path)), len(path)
    while len(path) < size:
        count = len(path) + 1
        # min takes the first of equals, and `order` begins with the best single model.
        place = min(order, key=lambda one: of(total + scores[one], count))
        path.append(place)
        total = total + scores[place]
        found = of(total, count)
        if found < best_loss:
            best_loss, best_length = found, count
    counts = Counter(path[:best_length])
    chosen = sorted(counts, key=lambda place: (-counts[place], order.index(place)))
    return [(place, counts[place] / best_length) for place in chosen]


def _error(probabilities: Array, labels: Array) -> float:
    return 1 - accuracy(probabilities, labels)


_LOSSES: dict[str, Loss] = {"accuracy": _error, "nll": nll}
