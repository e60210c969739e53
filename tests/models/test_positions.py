"""Positions against their formulas."""

import math

import pytest
import torch
from torch import nn

from orchestrator.models.layers.positions import (
    LearnedPositions,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    sinusoids,
)


@pytest.mark.parametrize("dim", [6, 7])
def test_sinusoids_are_vaswanis(dim):
    table = sinusoids(torch.arange(50), dim)
    assert table.shape == (50, dim)
    for t in (0, 1, 7, 49):
        for feature in range(dim):
            angle = t / 10_000 ** (2 * (feature // 2) / dim)
            expected = math.cos(angle) if feature % 2 else math.sin(angle)
            assert table[t, feature].item() == pytest.approx(expected, abs=1e-5)


def test_sinusoidal_positions_are_added_from_a_start():
    module, x = SinusoidalPositions(), torch.randn(2, 5, 6)
    torch.testing.assert_close(module(x), x + sinusoids(torch.arange(5), 6))
    torch.testing.assert_close(module(x, 3), x + sinusoids(torch.arange(3, 8), 6))
    assert list(module.state_dict()) == []
    assert torch.equal(module.eval()(x), module.train()(x))


def test_learned_positions_are_rows_of_the_weight():
    torch.manual_seed(0)
    module, x = LearnedPositions(6, 400), torch.randn(2, 5, 6)
    torch.testing.assert_close(module(x, 395), x + module.weight[395:])
    (gradient,) = torch.autograd.grad(module(x, 2).sum(), module.weight)
    assert torch.equal(gradient.any(1).nonzero()[:, 0], torch.arange(2, 7))
    assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert list(module.state_dict()) == ["weight"]
    with pytest.raises(ValueError, match="positions for 400 tokens, but a sequence reaches 401"):
        module(x, 396)


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
def test_rotary_positions_turn_complex_numbers(pairs):
    x = torch.randn(2, 3, 7, 8, dtype=torch.double)
    first, second = (
        (x[..., 0::2], x[..., 1::2]) if pairs == "adjacent" else (x[..., :4], x[..., 4:])
    )
    angle = torch.arange(5, 12)[:, None] * 10_000.0 ** (-torch.arange(4) / 4)
    turned = torch.complex(first, second) * torch.exp(1j * angle.double())
    found = RotaryPositions(pairs=pairs)(x, 5)
    expected = torch.empty_like(x)
    if pairs == "adjacent":
        expected[..., 0::2], expected[..., 1::2] = turned.real, turned.imag
    else:
        expected[..., :4], expected[..., 4:] = turned.real, turned.imag
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
def test_rotary_products_depend_on_the_distance_alone(pairs):
    rotary = RotaryPositions(pairs=pairs)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.double).unbind()

    def product(t, s):
        return (rotary(q, t) * rotary(k, s)).sum()

    torch.testing.assert_close(product(9, 4), product(105, 100), rtol=1e-4, atol=1e-4)
    assert abs(product(9, 4) - product(4, 9)) > 1e-3
    torch.testing.assert_close(rotary(q, 3).norm(), q.norm(), rtol=1e-5, atol=1e-5)


def test_rotary_needs_pairs():
    with pytest.raises(ValueError, match="must be even, but got 5"):
        RotaryPositions()(torch.randn(1, 1, 2, 5))
    with pytest.raises(ValueError, match="pairs must be adjacent or halves, but got 'none'"):
        RotaryPositions(pairs="none")


def bucket(ahead, *, buckets, max_distance, causal):
    """T5's rule, for one distance."""
    first, side = 0, buckets if causal else buckets // 2
    if not causal and ahead > 0:
        first = side
    distance = max(-ahead, 0) if causal else abs(ahead)
    exact = side // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(side - 1, exact + math.floor(share * (side - exact) + 1e-9))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (4, 7)])
def test_relative_buckets_are_t5s(causal, buckets, max_distance):
    options = {"buckets": buckets, "max_distance": max_distance, "causal": causal}
    module = RelativeBias(2, **options)
    ahead = torch.arange(-300, 301)
    expected = [bucket(a, **options) for a in ahead.tolist()]
    found = module.bucket(ahead)
    # At a bucket's very edge single precision may round to its neighbour.
    edges = (found != torch.tensor(expected)).nonzero()[:, 0]
    assert len(edges) <= 2
    assert set(found.tolist()) == set(range(buckets)) - ({buckets // 2} if not causal else set())


def test_the_buckets_of_t5s_encoder():
    # By hand: on each side eight distances of their own, then 8 + ⌊8 log(d/8) / log(128/8)⌋.
    module = RelativeBias(1)
    behind = [0, -1, -7, -8, -11, -12, -15, -16, -127, -128, -1000]
    assert module.bucket(torch.tensor(behind)).tolist() == [0, 1, 7, 8, 8, 9, 9, 10, 15, 15, 15]
    assert module.bucket(torch.tensor([1, 7, 8, 1000])).tolist() == [17, 23, 24, 31]


def test_relative_bias_is_the_weight_of_the_bucket():
    module = RelativeBias(3, buckets=8, max_distance=20)
    bias = module(4, 6)
    assert bias.shape == (3, 4, 6)
    for t in range(4):
        for s in range(6):
            row = bucket(s - (t + 2), buckets=8, max_distance=20, causal=False)
            assert torch.equal(bias[:, t, s], module.weight[row])
    assert torch.equal(module(6)[:, -4:], bias)
    bias.sum().backward()
    assert module.weight.grad.any()


@pytest.mark.parametrize("options", [{"buckets": 3}, {"buckets": 32, "max_distance": 8}])
def test_relative_bias_needs_room(options):
    with pytest.raises(ValueError, match="a side needs 2 buckets"):
        RelativeBias(1, **options)


@pytest.mark.parametrize("make", [SinusoidalPositions, RotaryPositions, lambda: RelativeBias(2)])
def test_nothing_is_lost_on_the_meta_device(make):
    with torch.device("meta"):
        module = make()
    assert list(module.buffers()) == []
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    given = 4 if isinstance(module, RelativeBias) else torch.ones(1, 2, 4, 6)
    if isinstance(module, SinusoidalPositions):
        given = given[:, 0]
    assert module(given).isfinite().all()
