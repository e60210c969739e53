"""The plain network: every layer that can be named, and what can't be combined."""

from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator import models
from orchestrator.config.load import config_from_mapping
from orchestrator.config.zoo import convnet as section
from orchestrator.errors import ConfigError
from orchestrator.models.convnet import IN_BLOCKS, IN_HEAD, STARTS
from orchestrator.models.layers.activations import ACTIVATIONS, ThresholdedLinear
from orchestrator.models.layers.drop_path import DropPath
from orchestrator.models.layers.dropouts import DropBlock, DropConnect
from orchestrator.models.layers.gates import CBAM, GATES
from orchestrator.models.layers.monte_carlo import monte_carlo
from orchestrator.models.layers.norms import KERNELS, NORMS, FilterResponseNorm, StandardisedConv2d
from orchestrator.models.weights import WeightsMismatch, load_weights
from orchestrator.networks import build_network


def net(**options):
    torch.manual_seed(0)
    given = {"image_size": 16, "widths": (8, 16)} | options
    return models.create("convnet", num_classes=3, in_channels=1, **given)


def images() -> torch.Tensor:
    return torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))


EACH = [
    *[{"norm": name} for name in NORMS],
    *[{"kernels": name} for name in KERNELS],
    *[{"activation": name} for name in ACTIVATIONS],
    *[{"gate": name} for name in GATES],
    *[{"init": name} for name in STARTS],
    *[{"dropout_kind": name, "dropout": 0.1, "residual": True} for name in IN_BLOCKS + IN_HEAD],
    {"dilation": 3},
    {"depth": 1},
    {"widths": (8,)},
    {"residual": True, "zero_gamma": True},
]
# Together, what touches the most: a chain per line.
CHAINS = [
    {"norm": "filter_response", "activation": "tlu", "gate": "cbam", "dropout_kind": "dropblock"},
    {"norm": "none", "kernels": "weight_norm", "gate": "eca", "dropout_kind": "dropconnect"},
    {"norm": "layer", "activation": "gelu", "gate": "se", "dropout_kind": "dropconnect"},
    {"norm": "rms", "activation": "hardswish", "residual": True, "dropout_kind": "path"},
    {"norm": "instance", "activation": "prelu", "dilation": 2, "dropout_kind": "spatial"},
]


SOME = [CHAINS[1], *[pytest.param(c, marks=pytest.mark.slow) for c in CHAINS if c != CHAINS[1]]]


def label(options) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def test_the_files_choices_are_the_layers():
    choices = section.CHOICES
    assert set(choices["norm"]) == set(NORMS)
    assert set(choices["kernels"]) == set(KERNELS)
    assert set(choices["activation"]) == set(ACTIVATIONS)
    assert set(choices["gate"]) == set(GATES)
    assert set(choices["dropout_kind"]) == {*IN_BLOCKS, *IN_HEAD}
    assert set(choices["init"]) == set(STARTS)
    for name, known in choices.items():
        assert get_args(section.ConvNet.model_fields[name].annotation) == known


def test_the_files_defaults_are_the_models():
    defaults = section.ConvNet().model_dump(exclude={"type", "weights", "freeze"})
    assert defaults == models.options_of("convnet")


@pytest.mark.parametrize("options", EACH, ids=label)
def test_each_layer_learns(options):
    model, x = net(image_size=8, **options), images()[:, :, ::2, ::2]
    model(x).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if not options.get("zero_gamma"):  # it hides the convolution before it, for one step
        assert silent == []
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), torch.arange(6) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", EACH, ids=label)
def test_each_layer_runs_in_mixed_precision(options):
    model = net(**options)
    torch.manual_seed(7)
    expected = model(images())
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images())
        loss = found.float().square().sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if "dropout" not in options:  # masks of half and single precision are different draws
        difference = (found.float() - expected).abs().mean()
        assert difference < 0.05 * expected.abs().mean() + 1e-3


@pytest.mark.parametrize("options", CHAINS, ids=label)
def test_stages_compose_to_forward_while_dropping(options):
    model = net(dropout=0.3, **options)
    torch.manual_seed(7)
    whole = model(images())
    torch.manual_seed(7)
    x = images()
    for stage in model.stages():
        x = stage.fn(x)
    assert torch.equal(x, whole)
    assert not torch.equal(model(images()), whole)


@pytest.mark.parametrize("options", SOME, ids=label)
def test_chains_compile_as_one_graph(options):
    model = net(dropout=0.3, **options)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.manual_seed(7)
    expected = model(images())
    torch.manual_seed(7)
    torch.testing.assert_close(compiled(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", CHAINS, ids=label)
def test_chains_give_the_same_numbers_in_onnx(options, tmp_path):
    import onnxruntime

    model = net(dropout=0.3, **options).eval()
    program = torch.onnx.export(model, (images(),), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    expected = model(images()).detach()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def count(model, kind) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_names_become_their_layers_in_every_block():
    model = net(norm="filter_response", activation="tlu", gate="cbam", kernels="standardised")
    convolutions = 1 + 2 * 2
    assert count(model, FilterResponseNorm) == convolutions
    assert count(model, ThresholdedLinear) == convolutions
    assert count(model, StandardisedConv2d) == convolutions
    assert count(model, CBAM) == convolutions - 1
    dilations = [m.dilation[0] for m in net(dilation=3).modules() if isinstance(m, nn.Conv2d)]
    assert dilations == [1, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("kind", "layer", "number"),
    [
        ("standard", nn.Dropout, 1),
        ("dropconnect", DropConnect, 1),
        ("spatial", nn.Dropout2d, 4),
        ("dropblock", DropBlock, 4),
        ("path", DropPath, 3),  # one of the four blocks halves the image, so it has no branch
    ],
)
def test_dropout_is_where_its_kind_belongs(kind, layer, number):
    model = net(dropout=0.25, dropout_kind=kind, residual=True, block_size=3)
    assert count(model, layer) == number
    rates = {getattr(m, "p", None) or m.rate for m in model.modules() if isinstance(m, layer)}
    assert list(rates) == pytest.approx([0.25])
    assert count(net(dropout=0.0, dropout_kind=kind, residual=True), layer) == 0
    torch.manual_seed(0)
    assert monte_carlo(model, images(), samples=8).std.max() > 1e-3


def test_each_group_but_the_first_halves_the_image():
    model = net(widths=(8, 8, 8), image_size=28)
    taps = ["stem", "group1", "group2", "group3"]
    _, found = model.forward_taps(torch.zeros(2, 1, 28, 28), taps)
    assert [found[tap].shape[-1] for tap in taps] == [28, 28, 14, 7]


def test_zero_gamma_makes_residual_blocks_the_identity():
    model = net(residual=True, zero_gamma=True)
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(model.group1[1](x), x)
    assert not torch.equal(net(residual=True).group1[1](x), x)


def test_a_fresh_head_is_drawn_by_the_initialiser():
    model = net(init="normal", widths=(64, 128))
    model.reset_head(500)
    assert model.fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.fc.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bach"}, r"unknown norm 'bach'; did you mean 'batch'\?"),
        ({"kernels": "weightnorm"}, r"'weightnorm'; did you mean 'weight_norm'\?"),
        ({"activation": "sillu"}, r"unknown activation 'sillu'; did you mean 'silu'"),
        ({"gate": "zz"}, r"unknown gate 'zz'; choose from: none, se, eca, cbam"),
        ({"init": "zero"}, r"unknown initialiser 'zero'; choose from: normal, "),
        ({"dropout_kind": "variational"}, r"unknown dropout_kind 'variational'; choose from: spat"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), but got 1.0"),
        ({"widths": ()}, r"widths must be one whole number >= 1 for each group, but got \(\)"),
        ({"widths": (8, 0)}, r"but got \(8, 0\)"),
        ({"depth": 0}, r"depth must be a whole number >= 1, but got 0"),
        ({"dilation": 0}, r"dilation must be a whole number >= 1, but got 0"),
        ({"block_size": 0}, r"block_size must be a whole number >= 1, but got 0"),
        ({"dropout_kind": "path"}, r"residual is false; set residual: true"),
        ({"zero_gamma": True}, r"zero_gamma needs residual branches, but residual is false"),
        (
            {"zero_gamma": True, "residual": True, "norm": "none"},
            r"is Identity; choose such a norm",
        ),
        ({"widths": (8,) * 6}, r"keep 1 pixel after 5 halvings, .* but 16×16 does not; give few"),
        ({"widths": (8,) * 5, "norm": "instance"}, r"keep 2 pixels for instance norm after 4"),
    ],
)
def test_impossible_options_name_rule_value_and_way_out(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        net(**options)


def test_the_deepest_halving_that_is_allowed_works():
    assert net(widths=(8,) * 5).train()(images()).shape == (6, 3)
    assert net(widths=(8,) * 4, norm="instance").train()(images()).shape == (6, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("norm=bach", "there is no norm 'bach'; did you mean 'batch'?"),
        ("activation=leakyrelu", "did you mean 'leaky_relu' or 'relu'"),
        ("gate=zz", "there is no gate 'zz'; choose one of: cbam, eca, none, se"),
        ("dropout_kind=blockdrop", "there is no dropout_kind 'blockdrop'"),
        ("init=xavier", "did you mean 'xavier_normal' or 'xavier_uniform'?"),
        ("kernels=3", "must be 'plain', 'standardised' or 'weight_norm', got 3"),
        ("zero_gamma=true", "set residual: true, or leave zero_gamma out"),
    ],
)
def test_the_file_answers_a_wrong_name_with_the_right_ones(override, message):
    base = {
        "name": "x",
        "data": {"source": {"type": "digits"}},
        "model": {"type": "convnet"},
        "optimizer": {"type": "sgd"},
    }
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(base, [f"model.{override}"])
    (problem,) = caught.value.problems
    assert message in problem.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_kind": "path"}, "`dropout_kind: path` drops residual branches"),
        ({"residual": True, "zero_gamma": True, "norm": "none"}, "needs a norm with a scale"),
        ({"widths": []}, "at least 1 item"),
    ],
)
def test_the_file_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValidationError, match=message):
        section.ConvNet(**options)


def test_a_section_builds_what_it_names():
    chosen = section.ConvNet(widths=[8, 8], norm="rms", gate="eca", activation="mish")
    model = build_network(chosen, outputs=7, shape=(3, 28, 28))
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    assert count(model, nn.Mish) == 5


def test_plain_weights_do_not_load_into_weight_norm_and_it_is_said(tmp_path):
    path = tmp_path / "plain.pth"
    torch.save(net().state_dict(), path)
    with pytest.raises(WeightsMismatch, match=r"stem.conv.parametrizations.weight.original0"):
        load_weights(net(kernels="weight_norm"), path)
