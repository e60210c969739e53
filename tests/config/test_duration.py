"""Lengths of training, and what comes back in whole steps that do not divide them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.duration import Duration, Interval


@pytest.mark.parametrize(
    ("text", "steps", "points"),
    [
        ("0.5 epochs", 200, [200, 399, 598, 798, 998, 1197]),
        ("1 epoch", 399, [399, 798, 1197, 1596, 1995, 2394]),
        ("0.25 epochs", 100, [100, 200, 299, 399, 499, 598]),
        ("7 steps", 7, [7, 14, 21, 28, 35, 42]),
        ("5%", 60, [60, 120, 180, 239, 299, 359]),
        ("0 steps", 0, [1, 2, 3, 4, 5, 6]),
        ("0.001 epochs", 0, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_points_are_the_nearest_steps_to_multiples_of_the_length(text, steps, points):
    duration, epoch, total = Duration.parse(text), 399, 3 * 399
    assert duration.steps(epoch, total) == steps
    interval = duration.interval(epoch, total)
    assert [interval.point(number) for number in range(1, 7)] == points


@given(
    epoch=st.integers(1, 2000),
    parts=st.sampled_from([1, 2, 3, 4, 5, 8, 10]),
    count=st.integers(1, 40),
)
def test_the_end_of_an_epoch_is_a_point_however_often_it_is_cut(epoch, parts, count):
    interval = Duration(1 / parts, "epochs").interval(epoch)
    if interval.length > 1:
        assert interval.point(count * parts) == count * epoch


@given(length=st.floats(1, 500), last=st.integers(1, 2000))
def test_a_step_meets_exactly_the_points(length, last):
    interval = Interval(length)
    points = {interval.point(number) for number in range(1, int(last / length) + 3)}
    met = {step for step in range(last + 1) if interval.meets(step)}
    assert met == {point for point in points if point <= last}
    assert all(abs(interval.point(k) - k * length) <= 0.5 for k in range(1, 50))


@pytest.mark.parametrize("length", [0, 0.5, -3, float("nan")])
def test_nothing_comes_back_more_than_once_a_step(length):
    with pytest.raises(ValueError, match="length >= 1 must hold"):
        Interval(length)
