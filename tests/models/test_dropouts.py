"""Dropouts: what is dropped, what is preserved, what is learned."""

import copy
import math

import pytest
import torch
from torch import nn

from orchestrator.models.layers.drop_path import DropPath
from orchestrator.models.layers.dropouts import (
    DROPOUTS,
    ConcreteDropout,
    DropBlock,
    DropConnect,
    VariationalDropout,
    Zoneout,
    dropout,
    time_mask,
)
from orchestrator.models.layers.monte_carlo import dropout_on, monte_carlo
from orchestrator.models.layers.penalties import set_training_samples

RATE = 0.25
# A kept one is 1 / (1 - p), so the variance of dropped ones is p / (1 - p).
VARIANCE = RATE / (1 - RATE)


def share(kept: torch.Tensor, draws: int) -> None:
    """Checks a drop share against `RATE`, five standard errors wide, for so many free draws."""
    assert (kept == 0).double().mean().item() == pytest.approx(
        RATE, abs=5 * math.sqrt(RATE * (1 - RATE) / draws)
    )


@pytest.mark.parametrize(
    ("name", "shape", "alike"),
    [
        ("standard", (300, 20, 4), ()),
        ("spatial", (300, 20, 3, 4), (2, 3)),
        ("variational", (300, 5, 20), (1,)),
        ("path", (6000, 3, 2), (1, 2)),
    ],
)
def test_masks_are_shared_over_the_right_axes_and_keep_mean_and_variance(name, shape, alike):
    torch.manual_seed(0)
    out = dropout(name, RATE)(torch.ones(shape, dtype=torch.double))
    if alike:
        assert torch.equal(out.amax(alike), out.amin(alike))
        out = out.amax(alike)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - RATE)])
    share(out, out.numel())
    error = math.sqrt(VARIANCE / out.numel())
    assert out.mean().item() == pytest.approx(1, abs=5 * error)
    # The fourth moment of a Bernoulli variable gives the error of a variance.
    kurtosis = (1 - 3 * RATE * (1 - RATE)) / (RATE * (1 - RATE))
    wide = 5 * VARIANCE * math.sqrt((kurtosis - 1) / out.numel())
    assert out.var().item() == pytest.approx(VARIANCE, abs=wide)


@pytest.mark.parametrize("name", DROPOUTS)
def test_evaluation_and_rate_zero_return_the_input(name):
    x = torch.rand(2, 3, 4, 4)
    assert dropout(name, 0.5).eval()(x) is x
    assert dropout(name, 0.0)(x) is x


# --- DropBlock ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "side"), [(1, 6), (3, 9), (4, 9), (7, 7), (9, 5)])
def test_dropblock_drops_whole_blocks(block, side):
    torch.manual_seed(0)
    out = DropBlock(0.2, block)(torch.ones(50, 4, side, side))
    dropped = (out == 0).float()
    inside = min(block, side)
    # Every dropped pixel lies in a dropped block: eroding and dilating by one changes nothing.
    eroded = 1 - nn.functional.max_pool2d(1 - dropped, inside, stride=1)
    pad = (inside - 1,) * 4
    again = nn.functional.max_pool2d(nn.functional.pad(eroded, pad), inside, stride=1)
    assert dropped.any()
    assert torch.equal(again, dropped)


def test_dropblock_keeps_the_mean_of_ones_exactly():
    torch.manual_seed(0)
    for dtype in (torch.double, torch.float, torch.bfloat16):
        out = DropBlock(0.3, 3)(torch.ones(8, 16, 9, 9, dtype=dtype))
        tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-6
        assert out.double().mean().item() == pytest.approx(1, rel=tolerance)
        assert out.dtype == dtype


def test_dropblock_drops_at_the_rate_of_its_formula():
    torch.manual_seed(0)
    rate, block, side = 0.2, 3, 10
    dropped = (DropBlock(rate, block)(torch.ones(4000, 4, side, side)) == 0).double()
    gamma = rate * side**2 / (block**2 * (side - block + 1) ** 2)
    # A pixel in the middle is covered by block² corners, one at the image's corner by one.
    middle, corner = dropped[:, :, 4, 4], dropped[:, :, 0, 0]
    for found, expected in ((middle, 1 - (1 - gamma) ** block**2), (corner, gamma)):
        error = math.sqrt(expected * (1 - expected) / found.numel())
        assert found.mean().item() == pytest.approx(expected, abs=5 * error)
    # Without overlaps it would be `rate`: γ · block² · corners / pixels.
    assert 0.85 * rate < dropped.mean().item() < rate


def test_dropblock_survives_dropping_everything():
    torch.manual_seed(0)
    out = DropBlock(0.999, 4)(torch.ones(1, 1, 4, 4))
    assert out.isfinite().all()
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    DropBlock(0.5, 2)(x).sum().backward()
    assert x.grad.isfinite().all()


# --- DropConnect -------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_dropconnect_drops_weights_and_keeps_mean_and_variance(shared, bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, 3, bias=bias).double()
    x = torch.randn(6, dtype=torch.double)
    drop = DropConnect(RATE, shared=shared)
    draws = 20_000
    if shared:
        out = torch.stack([drop(x[None], linear)[0] for _ in range(draws // 10)])
        assert torch.equal(*drop(x.expand(2, -1), linear))
    else:
        out = drop(x.expand(draws, -1), linear)
    expected = linear(x)
    variance = VARIANCE * ((linear.weight * x) ** 2).sum(1)
    error = (variance / len(out)).sqrt()
    assert ((out.mean(0) - expected).abs() < 5 * error).all()
    torch.testing.assert_close(out.var(0), variance, rtol=0.15, atol=0)
    torch.testing.assert_close(drop.eval()(x, linear), expected)


def test_dropconnect_drops_each_weight_at_the_rate():
    torch.manual_seed(0)
    linear = nn.Linear(50, 40, bias=False)
    nn.init.ones_(linear.weight)
    # One input at a time shows single weights.
    out = DropConnect(RATE)(torch.eye(50), linear)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - RATE)])
    share(out, out.numel())
    out.sum().backward()
    torch.testing.assert_close(linear.weight.grad, out.detach().T)


# --- recurrent ---------------------------------------------------------------------------------


def test_variational_dropout_can_have_time_first():
    torch.manual_seed(0)
    out = VariationalDropout(0.5, dim=0)(torch.ones(7, 4, 30))
    assert torch.equal(out.amax(0), out.amin(0))
    assert 0 < (out == 0).float().mean() < 1
    assert time_mask(torch.ones(7, 4, 30), 0.5, dim=-1).shape == (7, 4, 1)


def test_zoneout_keeps_units_and_evaluation_is_its_expectation():
    torch.manual_seed(0)
    new, old = torch.ones(400, 50).double(), torch.zeros(400, 50).double()
    zoneout = Zoneout(RATE)
    out = zoneout(new, old)
    assert out.unique().tolist() == [0.0, 1.0]
    share(out, out.numel())
    a, b = torch.randn(2, 5, 4, dtype=torch.double)
    torch.testing.assert_close(zoneout.eval()(a, b), (1 - RATE) * a + RATE * b)
    assert Zoneout(0.0)(a, b) is a


def test_zoneout_sends_the_gradient_where_the_unit_came_from():
    torch.manual_seed(0)
    new, old = torch.randn(2, 30, requires_grad=True).unbind()
    new, old = new.detach().requires_grad_(), old.detach().requires_grad_()
    out = Zoneout(0.5)(new, old)
    out.sum().backward()
    assert torch.equal(new.grad, (out == new).float())
    assert torch.equal(new.grad + old.grad, torch.ones(30))


# --- learned rates -----------------------------------------------------------------------------


def relaxed(rate: float, temperature: float) -> tuple[float, float]:
    """Mean and variance of the relaxed, scaled mask, by integrating over the uniform variable."""
    u = (torch.arange(1_000_000, dtype=torch.double) + 0.5) / 1_000_000
    pre = math.log(rate / (1 - rate)) + u.log() - torch.log1p(-u)
    kept = (1 - (pre / temperature).sigmoid()) / (1 - rate)
    return kept.mean().item(), kept.var().item()


@pytest.mark.parametrize(("rate", "temperature"), [(0.25, 0.1), (0.1, 0.1), (0.4, 0.5)])
def test_concrete_masks_are_spread_as_their_formula_says(rate, temperature):
    torch.manual_seed(0)
    drop = ConcreteDropout(rate, temperature).double()
    out = drop(torch.ones(40_000, dtype=torch.double)).detach()
    mean, variance = relaxed(rate, temperature)
    assert out.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / len(out)))
    assert out.var().item() == pytest.approx(variance, rel=0.05)
    if temperature == 0.1:  # nearly a Bernoulli variable
        assert mean == pytest.approx(1, abs=0.02)
        assert variance == pytest.approx(rate / (1 - rate), rel=0.2)


def test_the_rate_has_the_gradient_of_the_formula():
    drop = ConcreteDropout(0.3, 0.2).double()
    x = torch.randn(50, dtype=torch.double)

    def loss(logit):
        torch.manual_seed(1)
        with torch.no_grad():
            drop.logit.copy_(logit)
        return drop(x).square().sum()

    start = drop.logit.detach().clone()
    found = torch.autograd.grad(loss(start), drop.logit)[0].squeeze()
    step = 1e-6
    with torch.no_grad():
        numeric = (loss(start + step) - loss(start - step)) / (2 * step)
    torch.testing.assert_close(found, numeric, rtol=1e-5, atol=1e-7)
    assert found.abs() > 1e-3


def test_the_penalty_is_its_formula_and_pulls_towards_one_half():
    drop, linear = ConcreteDropout(0.2, length=0.5), torch.nn.Linear(8, 3)
    weight = linear.weight
    drop(torch.ones(2, 8), linear)
    assert drop.penalty() is None  # nobody has said how many samples the training set has
    set_training_samples(torch.nn.Sequential(drop), 100)
    torch.testing.assert_close(drop.eval()(torch.ones(2, 8), linear), linear(torch.ones(2, 8)))
    assert drop.penalty() is None
    drop.train()(torch.ones(2, 8), linear)
    found = drop.penalty()
    assert drop.penalty() is None  # it is given once
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    expected = (0.5**2 * weight.square().sum().item() / (2 * 0.8) - 8 * entropy) / 100
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    torch.testing.assert_close(weight.grad, 0.25 * weight.detach() / 0.8 / 100)
    free = ConcreteDropout(0.2)
    optimizer = torch.optim.Adam(free.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        free.divergence(torch.zeros(1, 8)).backward()
        optimizer.step()
    assert free.rate == pytest.approx(0.5, abs=0.01)


def test_the_learned_rate_falls_where_noise_hurts():
    torch.manual_seed(0)
    drop, optimum = ConcreteDropout(0.3), torch.ones(64, 8)
    optimizer = torch.optim.Adam(drop.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (drop(optimum) - optimum).square().mean().backward()
        optimizer.step()
    assert drop.rate < 0.05


def test_concrete_dropout_in_half_precision_is_finite():
    torch.manual_seed(0)
    drop = ConcreteDropout(0.1)
    out = drop(torch.ones(100_000, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    assert out.float().mean().item() == pytest.approx(1, abs=0.02)


# --- inference with dropout left on ------------------------------------------------------------


def test_dropout_on_leaves_everything_but_dropout_in_evaluation():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Sequential(DropPath(0.5)))
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    with dropout_on(model):
        modes = {type(module).__name__: module.training for module in model.modules()}
        assert modes == {
            "Sequential": False,
            "BatchNorm1d": False,
            "Dropout": True,
            "DropPath": True,
        }
        model(torch.rand(3, 4))
    assert [module.training for module in model] == [False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="inside"), dropout_on(model):
        raise RuntimeError("inside")
    assert [module.training for module in model] == [False, True, True]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True), (2, 3, 4)),
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True), (2, 3, 4)),
        (nn.Sequential(dropout("dropblock", 0.5)), (2, 3, 9, 9)),
        (nn.Sequential(dropout("variational", 0.5)), (2, 3, 9)),
        (nn.Sequential(dropout("concrete", 0.5)), (2, 3)),
        (nn.Sequential(dropout("spatial", 0.5)), (2, 30, 2, 2)),
    ],
)
def test_each_kind_of_dropout_is_left_on(module, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    with torch.no_grad():
        with dropout_on(module):
            first, again = (module(x) for _ in range(2))
        module.eval()
        calm, still = (module(x) for _ in range(2))
    if isinstance(first, tuple):
        first, again, calm, still = (out[0] for out in (first, again, calm, still))
    assert not torch.equal(first, again)
    assert torch.equal(calm, still)


class Two(nn.Module):
    """Logits (x, 0) that are (2x, 0) or (0, 0) when dropped at rate one half."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x_N):
        return torch.stack([self.drop(x_N), torch.zeros_like(x_N)], 1)


def test_monte_carlo_gives_the_mean_and_the_uncertainty_of_its_passes():
    torch.manual_seed(0)
    samples = 4000
    found = monte_carlo(Two().train(), torch.tensor([0.0, 1.5, 20.0]), samples)
    p = torch.tensor([0.0, 3.0, 40.0]).sigmoid()
    mean, half = (p + 0.5) / 2, (p - 0.5) / 2
    torch.testing.assert_close(found.mean[:, 0], mean, atol=5 * 0.25 * samples**-0.5, rtol=0)
    torch.testing.assert_close(found.mean.sum(1), torch.ones(3))
    torch.testing.assert_close(found.std[:, 0], half, atol=0.01, rtol=0)

    def entropy(p):
        return torch.special.entr(p) + torch.special.entr(1 - p)

    torch.testing.assert_close(found.entropy, entropy(mean), atol=0.02, rtol=0)
    within = (entropy(p) + math.log(2)) / 2
    torch.testing.assert_close(found.information, entropy(mean) - within, atol=0.02, rtol=0)
    assert found.information[0] < 1e-6 < found.information[1]


def test_monte_carlo_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    found = monte_carlo(model, torch.rand(5, 4), samples=3)
    assert found.mean.shape == found.std.shape == (5, 3)
    assert found.entropy.shape == found.information.shape == (5,)
    assert not found.mean.requires_grad
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_drops_nothing_has_no_spread():
    with pytest.raises(ValueError, match=r"needs a model that drops, but Linear does not"):
        monte_carlo(nn.Linear(2, 2), torch.rand(1, 2))
    with pytest.raises(ValueError, match=r"needs a model that drops"), dropout_on(nn.Dropout(0.0)):
        pass
    with pytest.raises(ValueError, match=r"samples must be >= 2, but got 1"):
        monte_carlo(nn.Dropout(0.5), torch.rand(1, 2), samples=1)
    with dropout_on(nn.Sequential(model := nn.Softmax(1)), also=(nn.Softmax,)):
        assert model.training


def test_wrong_names_and_rates_are_explained():
    with pytest.raises(ValueError, match=r"unknown dropout 'drop_block'; did you mean 'dropblock'"):
        dropout("drop_block", 0.1)
    for make in (DropBlock, DropConnect, VariationalDropout, Zoneout):
        with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), but got 1.0"):
            make(1.0)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), but got -0.1"):
        dropout("standard", -0.1)
    with pytest.raises(ValueError, match=r"block must be a whole number >= 1, but got 0"):
        DropBlock(0.1, 0)
    with pytest.raises(ValueError, match=r"must start in \(0, 1\), but got 0.0"):
        ConcreteDropout(0.0)
    with pytest.raises(ValueError, match=r"temperature must be above 0, but got 0"):
        ConcreteDropout(0.1, 0)
