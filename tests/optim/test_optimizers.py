"""Optimizers and parameter groups."""

import pytest
import torch
from torch import nn

from orchestrator import models
from orchestrator.config import optimizers
from orchestrator.config.base import entries
from orchestrator.optim.groups import parameter_groups
from orchestrator.optim.optimizers import build_optimizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("entry", list(entries("optimizer")), ids=lambda entry: entry.name)
def test_every_optimizer_lowers_a_fixed_batchs_loss(entry):
    model = network()
    optimizer = build_optimizer(entry.config(type=entry.name, lr=1e-2), model)
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
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(optimizers.AdamW(), model)
