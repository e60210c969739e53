"""Several models' answers as one. Axes: M members, N samples, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.errors import DataError, UserError
from orchestrator.run_folder.predictions import Array, Predictions, softmax


def combine(members: Sequence[Predictions], weights: Array | Sequence[float], how: str) -> Array:
    """The weighted mean of the members' answers to the same samples.

    Args:
        members: M of them, over the same ids.
        weights: [M], not negative, of any sum above 0.
        how: ``probabilities`` means their softmaxes (a mixture), ``logits`` their logits (a
            product of experts).

    Returns:
        float64[N, K], rows that sum to 1.

    Raises:
        DataError: if the members answer different samples.
        UserError: if the weights do not fit.
    """
    check_alike(members)
    share = np.asarray(weights, dtype=np.float64)
    if share.shape != (len(members),) or (share < 0).any() or not share.sum() > 0:
        raise UserError(
            f"{len(members)} members need as many weights, none below 0 and not all 0, "
            f"but got {share.tolist()}"
        )
    share = share / share.sum()
    mean = sum(
        weight * member_scores(one, how)
        for weight, one in zip(share.tolist(), members, strict=True)
        if weight > 0
    )
    return to_probabilities(np.asarray(mean), how)


def member_scores(predictions: Predictions, how: str) -> Array:
    """What is averaged: float64[N, K] probabilities or logits."""
    if how == "logits":
        return predictions.logits.astype(np.float64)
    return predictions.probabilities()


def to_probabilities(mean: Array, how: str) -> Array:
    """Probabilities from averaged `member_scores`."""
    return softmax(mean) if how == "logits" else mean


def check_alike(members: Sequence[Predictions]) -> None:
    """Checks that all answer the same samples, with the same labels and classes.

    Raises:
        DataError: naming the first that does not, or for no members at all.
    """
    if not members:
        raise DataError("an ensemble needs at least one member")
    first = members[0]
    for place, one in enumerate(members[1:], start=2):
        if one.logits.shape != first.logits.shape:
            raise DataError(
                f"member {place} answers (samples, classes) = {one.logits.shape}, "
                f"the first {first.logits.shape}"
            )
        if not (np.array_equal(one.ids, first.ids) and np.array_equal(one.labels, first.labels)):
            raise DataError(f"member {place} answers other samples than the first")
