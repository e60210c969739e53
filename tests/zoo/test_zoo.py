"""Every registered model, by the promises that all of them make."""

import copy

import pytest
import torch

from orchestrator import models
from orchestrator.config.base import entries
from orchestrator.models.base import StagedModel
from orchestrator.models.stages import Stage, run_stages
from tests.zoo.cases import CASES
from tests.zoo.small import (
    IMAGES,
    NAMES,
    ONE_INPUT,
    SMALL,
    build,
    doubled,
    images,
    logits_of,
    main,
    slim,
)


def composed(model: StagedModel, x: torch.Tensor) -> torch.Tensor:
    for stage in model.stages():
        x = stage.fn(x)
    return x


def test_the_files_schema_and_the_registry_know_the_same_names():
    ours = {entry.name for entry in entries("model") if entry.config.__module__.startswith("orch")}
    assert ours - {"import"} == set(NAMES)


@pytest.mark.parametrize("entry", list(entries("model")), ids=lambda entry: entry.name)
def test_every_option_of_the_schema_is_one_of_the_model(entry):
    if entry.name == "import":
        return
    section = set(entry.config.model_fields) - {"type", "weights", "freeze"}
    options = set(models.options_of(entry.name))
    assert options <= section
    assert section - options <= {"phi"}


@pytest.mark.parametrize("name", ONE_INPUT)
def test_shapes_without_memory(name):
    known = models.published(name)
    channels, size, classes = 3, known.resolution if known else 40, 1000
    x_shape, kind = (2, channels, size, size), torch.float
    if models.reads_tokens(name):
        x_shape, kind = (2, size), torch.long
    with torch.device("meta"):
        model = build(name, classes=classes, in_channels=channels, size=size)
        logits = model.eval()(torch.empty(x_shape, dtype=kind))
    assert logits.shape == (2, classes)
    for head in model.head_names:
        assert model.get_submodule(head).weight.shape[0] == classes
    if model.stem_name:
        assert model.get_submodule(model.stem_name).in_channels == channels


@pytest.mark.parametrize("name", ONE_INPUT)
def test_stages_hold_each_parameter_once_and_own_none(name):
    with torch.device("meta"):
        model = build(name, classes=3, size=32)
    stages = model.stages()
    held = [id(p) for stage in stages for p in stage.parameters()]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert len({stage.name for stage in stages}) == len(stages)
    assert stages[0].name == "stem"
    assert stages[-1].name == "head"


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_backward_reaches_every_parameter(name, channels):
    # Blocks whose last norm starts at zero hide what is before it, so let them start open.
    model = slim(name, channels=channels, **CASES[name].open)
    logits = logits_of(model(images(name, channels)))
    assert logits.shape[0] == 4
    assert logits.shape[1] in (5, 10, 15)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [True, False])
def test_stages_compose_to_forward(name, training):
    rates = CASES[name].random
    model = slim(name, **rates).train(training)
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    whole = logits_of(model(images(name)))
    torch.manual_seed(7)
    assert torch.equal(logits_of(composed(twin, images(name))), whole)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SMALL)
def test_features_then_head_is_forward(name):
    model = slim(name).eval()
    features = model.forward_features(images(name))
    assert len(features) == 4
    assert torch.equal(model.forward_head(features), model(images(name)))


@pytest.mark.parametrize("name", SMALL)
def test_taps_show_what_stages_put_out(name):
    model = slim(name).eval()
    group = model.stages()[1].name.rpartition(".")[0]
    last = [stage.name for stage in model.stages() if stage.name.startswith(group)][-1]
    logits, taps = model.forward_taps(images(name), ["stem", group, last])
    assert torch.equal(logits, model(images(name)))
    assert torch.equal(taps["stem"], main(model.stages()[0].fn(images(name))))
    assert torch.equal(taps[group], taps[last])
    with pytest.raises(ValueError, match=r"no stage is named 'neck'; choose from: stem"):
        model.forward_taps(images(name), ["neck"])


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_nothing_but_memory(name):
    rates = CASES[name].random
    plain = slim(name, **rates)
    saving = copy.deepcopy(plain)
    saving.set_checkpointing(True)
    for model in (plain, saving):
        torch.manual_seed(7)
        logits_of(model(images(name))).square().sum().backward()
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for (key, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), key


def test_checkpointing_computes_each_stage_twice_and_only_when_training():
    calls = []
    stage = Stage("s", lambda x: calls.append(1) or x.square().square(), ())
    x = torch.ones(2, requires_grad=True)
    run_stages([stage], x, recompute=True).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        run_stages([stage], x, recompute=True)
    assert len(calls) == 3


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_carries_the_whole_model(name):
    model = slim(name)
    model(images(name))
    other = slim(name, **CASES[name].calm)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(images(name)), model.eval()(images(name)))


@pytest.mark.parametrize("name", SMALL)
def test_a_few_steps_lower_the_loss(name):
    # In double: batch norms over four images amplify fp32's rounding, which threads change.
    model, x = slim(name, **CASES[name].calm).double(), doubled(images(name))
    labels = torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), CASES[name].lr)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(main(model(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights(name):
    first, again = slim(name), slim(name)
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_head_keeps_the_rest(name):
    model = slim(name).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_head(9)
    assert main(model(doubled(images(name)))).shape == (4, 9)
    assert model.num_classes == 9
    changed = {
        key
        for key, value in model.state_dict().items()
        if value.shape != before[key].shape or not torch.equal(value, before[key])
    }
    assert {key.rpartition(".")[0] for key in changed} <= {*model.head_names, *_norms(model)}
    assert {f"{head}.weight" for head in model.head_names} <= changed


def _norms(model: StagedModel) -> set[str]:
    """The forward pass in training mode moves these modules' statistics."""
    return {n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}


@pytest.mark.parametrize("name", IMAGES)
def test_memory_format_does_not_change_the_result(name):
    model = slim(name).double().eval()
    expected = model(images(name).double())
    model.to(memory_format=torch.channels_last)
    found = model(images(name).double().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    if CASES[name].keeps_format:
        assert (
            model.stages()[0]
            .fn(images(name).double().contiguous(memory_format=torch.channels_last))
            .is_contiguous(memory_format=torch.channels_last)
        )
