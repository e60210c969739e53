"""Whether what a server sees still looks like what its model was trained on.

One window of requests is compared with the run's statistics, descriptor by descriptor: numbers by
the two-sample Kolmogorov–Smirnov test, classes by the chi-squared test of homogeneity. The p-values
are adjusted for their number (Benjamini and Hochberg, 1995), so that without any shift a window
raises a false alarm with probability `LEVEL` at most. With much traffic the smallest difference
becomes significant, so an alarm also needs an effect: a population stability index
Σ (q − p)·ln(q/p) of at least `MODERATE`, where p and q are the shares of the reference and of the
window in each bin (Siddiqi, 2006, calls 0.1 and 0.25 the borders of what matters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from orchestrator.run_folder.statistics import Column, Counts, Statistics

LEVEL = 0.01
MODERATE, MAJOR = 0.1, 0.25
PREDICTION = "prediction"
"""The descriptor of answers: which class."""
_BINS = 10
_EXPECTED = 5
"""Fewest answers that a cell of the chi-squared test should expect; rarer classes are put together
(Cochran, 1954)."""
_DIGITS = 6
"""As many as `statistics.json` keeps, so that equal values are equal."""

State = Literal["none", "moderate", "major"]
STATES: tuple[State, ...] = ("none", "moderate", "major")


@dataclass(frozen=True)
class Shift:
    """One descriptor's difference from the reference.

    Attributes:
        test: `ks` or `chi2`.
        p: the test's p-value, adjusted for the number of descriptors.
        psi: the population stability index.
        expected, observed: shares in each bin: deciles of the reference, or groups of classes.
        mean, reference_mean: of numbers; None of classes.
    """

    name: str
    test: Literal["ks", "chi2"]
    p: float
    psi: float
    expected: tuple[float, ...]
    observed: tuple[float, ...]
    mean: float | None = None
    reference_mean: float | None = None

    @property
    def state(self) -> State:
        """How much it matters; `none` unless it is significant and has an effect."""
        if self.p >= LEVEL or self.psi < MODERATE:
            return "none"
        return "major" if self.psi >= MAJOR else "moderate"


def worst(shifts: Sequence[Shift]) -> State:
    """The state of a window: its worst descriptor's."""
    return max((shift.state for shift in shifts), key=STATES.index, default="none")


def compare(
    reference: Statistics,
    values: Mapping[str, npt.NDArray[np.floating]],
    predicted: Counts | None = None,
) -> list[Shift]:
    """Compares a window with the reference, the largest index first.

    Args:
        values: a window's descriptors, [n] each; those that the reference lacks are left out.
        predicted: int64[K], the window's answers of each class.
    """
    found = [
        _number(name, column, values[name].astype(np.float64).round(_DIGITS))
        for name, column in reference.columns.items()
        if name in values and len(values[name])
    ]
    if predicted is not None and predicted.sum() and reference.predicted.sum():
        found.append(_classes(reference.predicted, predicted))
    if not found:
        return []
    adjusted = stats.false_discovery_control([shift.p for shift in found], method="bh")
    shifts = [replace(shift, p=float(p)) for shift, p in zip(found, adjusted, strict=True)]
    return sorted(shifts, key=lambda shift: -shift.psi)


def _number(name: str, column: Column, values: npt.NDArray[np.float64]) -> Shift:
    known = column.quantiles
    p = float(stats.ks_2samp(known, values, method="asymp").pvalue)
    inner = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    expected, observed = (
        np.bincount(np.searchsorted(inner, one, side="left"), minlength=len(inner) + 1)
        for one in (known, values)
    )
    shares, index = _stability(expected, observed)
    return Shift(name, "ks", p, index, *shares, float(values.mean()), column.mean)


def _classes(expected: Counts, observed: Counts) -> Shift:
    groups = _groups(expected, int(observed.sum()))
    table = np.array(
        [np.bincount(groups, counts, groups.max() + 1) for counts in (expected, observed)]
    )
    table = table[:, table.sum(0) > 0]
    p = float(stats.chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0
    shares, index = _stability(*table)
    return Shift(PREDICTION, "chi2", p, index, *shares)


def _groups(expected: Counts, size: int) -> npt.NDArray[np.int64]:
    """int64[K]: each class's group. Common classes stay alone, rare ones are put together.

    By what is expected alone: groups that depend on what was seen would make chance look like more.

    Args:
        size: of the window.
    """
    likely = expected / expected.sum() * size
    groups = np.zeros(len(expected), np.int64)
    number, gathered = 0, 0.0
    for place in np.argsort(-likely, kind="stable"):
        if gathered >= _EXPECTED:
            number, gathered = number + 1, 0.0
        groups[place] = number
        gathered += float(likely[place])
    if gathered < _EXPECTED and number:
        groups[groups == number] = number - 1
    return groups


def _stability(
    expected: npt.NDArray[np.number], observed: npt.NDArray[np.number]
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], float]:
    """Shares of both in each bin, and the index; half a sample is added to each bin."""
    p, q = ((one + 0.5) / (one.sum() + 0.5 * len(one)) for one in (expected, observed))
    shares = (tuple(expected / expected.sum()), tuple(observed / observed.sum()))
    return shares, float(((q - p) * np.log(q / p)).sum())
