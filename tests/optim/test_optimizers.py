"""Optimizers and parameter groups."""

import pytest
import torch
from torch import nn

from orchestrator import models
from orchestrator.config import optimizers
from orchestrator.config.base import entries
from orchestrator.errors import ConfigError, UserError
from orchestrator.optim.groups import parameter_groups
from orchestrator.optim.optimizers import build_optimizer, peak_rate


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("entry", list(entries("optimizer")), ids=lambda entry: entry.name)
def test_every_optimizer_lowers_a_fixed_batchs_loss(entry):
    model = network()
    # LARS steps by a thousandth of a layer's norm times the rate.
    rate = 10.0 if entry.name == "lars" else 1e-2
    optimizer = build_optimizer(entry.config(type=entry.name, lr=rate), model)
    x, y = torch.randn(16, 1, 6, 6), torch.arange(16) % 3
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_adamw_is_torchs_default_implementation():
    # Without the normalisation: a bias before one has no gradient but rounding noise, which
    # Adam would blow up.
    ours, theirs = (nn.Sequential(*list(network())[2:], nn.Tanh()) for _ in range(2))
    one = build_optimizer(optimizers.AdamW(lr=1e-2, decay_norm_and_bias=True), ours)
    two = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.01)
    x, y = torch.randn(16, 4, 4, 4), torch.arange(16) % 3
    for _ in range(5):
        for model, optimizer in ((ours, one), (theirs, two)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_lamb_follows_the_papers_algorithm():
    model = nn.Linear(4, 3)
    section = optimizers.Lamb(lr=0.1, weight_decay=0.02, decay_norm_and_bias=True)
    optimizer = build_optimizer(section, model)
    x = torch.randn(8, 4)
    expected = [p.detach().clone() for p in model.parameters()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    for _ in range(3):
        model.zero_grad()
        model(x).square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for weight, gradient, (m, v) in zip(expected, gradients, moments, strict=True):
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.999).add_(0.001 * gradient**2)
            update = m / (v.sqrt() + 1e-6) + 0.02 * weight
            weight -= 0.1 * weight.norm() / update.norm() * update
    for found, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_lars_follows_the_papers_algorithm():
    model = nn.Linear(4, 3)
    section = optimizers.Lars(lr=2.0, weight_decay=0.02, momentum=0.5, trust=0.01)
    optimizer = build_optimizer(section, model)
    x = torch.randn(8, 4)
    weight, bias = (p.detach().clone() for p in model.parameters())
    momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    for _ in range(3):
        model.zero_grad()
        model(x).square().sum().backward()
        gradient, bias_gradient = (p.grad.clone() for p in model.parameters())
        optimizer.step()
        local = 0.01 * weight.norm() / (gradient.norm() + 0.02 * weight.norm())
        momentum = 0.5 * momentum + local * (gradient + 0.02 * weight)
        weight = weight - 2.0 * momentum
        bias_momentum = 0.5 * bias_momentum + bias_gradient
        bias = bias - 2.0 * bias_momentum
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.detach(), bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rule", "rate"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)], ids=str)
def test_the_rate_grows_with_the_batch(rule, rate):
    section = optimizers.Sgd(lr=0.1, scale_lr=rule, base_batch=256)
    assert peak_rate(section, 1024) == pytest.approx(rate)


def test_rates_fall_from_the_head_to_the_stem():
    with torch.device("meta"):
        model = models.create("resnet18", num_classes=5, image_size=32)
    groups = parameter_groups(model, optimizers.AdamW(weight_decay=0, layer_decay=0.5))
    rate = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    stages = model.stages()
    for depth, stage in enumerate(stages):
        expected = 0.5 ** (len(stages) - 1 - depth)
        assert {rate[id(p)] for p in stage.parameters()} <= {expected}
    assert rate[id(model.fc.weight)] == 1
    assert len(rate) == len(list(model.parameters()))


def test_layer_decay_needs_stages():
    with pytest.raises(UserError, match=r"Sequential has none; use optimizer\.groups"):
        parameter_groups(network(), optimizers.AdamW(layer_decay=0.5))


def test_groups_have_their_own_rate_and_decay():
    with torch.device("meta"):
        model = models.create("resnet18", num_classes=5, image_size=32)
    own = [
        {"parameters": ["layer1"], "lr_scale": 0.1},
        {"parameters": ["*.weight"], "lr_scale": 0.5, "weight_decay": 0.3},
    ]
    section = optimizers.AdamW.model_validate({"weight_decay": 0.1, "groups": own})
    found = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, section)
        for p in group["params"]
    }
    assert found[id(model.layer1[0].conv1.weight)] == (0.1, 0.1)
    assert found[id(model.layer1[0].bn1.weight)] == (0.1, 0.0)
    assert found[id(model.layer2[0].bn1.weight)] == (0.5, 0.3)
    assert found[id(model.fc.bias)] == (1.0, 0.0)


def test_a_group_that_matches_nothing_is_refused():
    section = optimizers.AdamW.model_validate({"groups": [{"parameters": ["layer9.*"]}]})
    with pytest.raises(UserError, match=r"optimizer.groups\[0\].parameters: 'layer9\.\*' matches"):
        parameter_groups(network(), section)


def test_norms_and_biases_do_not_decay_unless_asked():
    model = network()
    decayed, plain = parameter_groups(model, optimizers.AdamW(weight_decay=0.1))
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    (everything,) = parameter_groups(
        model, optimizers.AdamW(weight_decay=0.1, decay_norm_and_bias=True)
    )
    assert len(everything["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["vit_tiny_patch16", "deit_tiny_distilled_patch16"])
def test_positions_and_tokens_do_not_decay_as_in_timm(name, timm):
    options = {"num_classes": 5, "image_size": 32, "patch": 16, "depth": 1}
    with torch.device("meta"):
        model = models.create(name, **options)
        theirs = timm.create_model(models.published(name).reference.removeprefix("timm:"))
    _, plain = parameter_groups(model, optimizers.AdamW(weight_decay=0.1))
    exempt = {id(parameter) for parameter in plain["params"]}
    names = {key for key, parameter in model.named_parameters() if id(parameter) in exempt}
    own = dict(model.named_parameters())
    vectors = {key for key, parameter in own.items() if parameter.ndim < 2}
    # timm's list has tokens that this variant may lack.
    assert names == theirs.no_weight_decay() & set(own) | vectors
    assert names > vectors


def test_relative_positions_do_not_decay():
    with torch.device("meta"):
        model = models.create("swin_tiny", num_classes=5, image_size=32)
    decayed, _ = parameter_groups(model, optimizers.AdamW(weight_decay=0.1))
    kept = {id(parameter) for parameter in decayed["params"]}
    tables = [p for key, p in model.named_parameters() if "relative_position_bias_table" in key]
    assert tables and not kept & set(map(id, tables))


def test_frozen_parameters_are_left_out():
    model = network()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    groups = parameter_groups(model, optimizers.Sgd())
    kept = {id(p) for group in groups for p in group["params"]}
    assert not kept & {id(p) for p in model[0].parameters()}


def test_a_model_that_is_all_frozen_is_refused():
    model = network().requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(optimizers.AdamW(), model)
