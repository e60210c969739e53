"""The zoo against torchvision's models: the same names, shapes, numbers and scaling."""

import pytest
import torch

from orchestrator import models
from orchestrator.models.efficientnet import VARIANTS, compound
from tests.zoo.cases import NUMBERS
from tests.zoo.small import settle

PUBLISHED = {
    name: known
    for name in models.names()
    if (known := models.published(name)) and known.vocabulary is None
}
REFERENCED = {
    name: known.reference
    for name, known in PUBLISHED.items()
    if known.reference.startswith(("torchvision:", "timm:"))
}
NORMS = {f"efficientnet_b{n}": (1e-5, 0.1) if n < 5 else (1e-3, 0.01) for n in range(8)}


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def create(name: str, **options) -> torch.nn.Module:
    known = PUBLISHED.get(name)
    given = {"image_size": known.resolution if known else 224} | options
    return models.create(name, num_classes=1000, in_channels=3, **given)


def reference(name: str, torchvision, timm, **options) -> torch.nn.Module:
    """The same network of torchvision or timm, without its weights."""
    library, _, theirs = REFERENCED[name].partition(":")
    if library == "timm":
        return timm.create_model(theirs, pretrained=False, **options)
    if theirs in ("googlenet", "inception_v3"):  # or it warns, and draws for minutes
        options = {"init_weights": False} | options
    return torchvision.models.get_model(theirs, weights=None, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_as_published(name):
    with torch.device("meta"):
        assert parameters(create(name)) == PUBLISHED[name].parameters


@pytest.mark.parametrize("name", REFERENCED)
def test_state_dict_is_the_references(name, torchvision, timm):
    with torch.device("meta"):
        model = create(name)
        ours, theirs = model.state_dict(), reference(name, torchvision, timm).state_dict()
    renamed = [(model.key_map(key), value.shape) for key, value in theirs.items()]
    expected = {key: shape for key, shape in renamed if key is not None}
    assert {key: value.shape for key, value in ours.items()} == expected


@pytest.mark.parametrize("name", REFERENCED)
def test_rates_and_norms_are_the_references(name, torchvision, timm):
    with torch.device("meta"):
        ours, theirs = create(name), reference(name, torchvision, timm)

    def norms(model):
        kinds = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
        found = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
        return {
            ours.key_map(f"{n}.weight"): (m.eps, getattr(m, "momentum", 0))
            for n, m in found.items()
        }

    own = norms(ours)
    assert own == {key: value for key, value in norms(theirs).items() if key in own}
    if name in NORMS:
        assert set(own.values()) == {NORMS[name]}
        assert ours.classifier[0].p == theirs.classifier[0].p
        drops = [m.rate for n, m in ours.named_modules() if n.endswith("stochastic_depth")]
        expected = [m.p for n, m in theirs.named_modules() if n.endswith("stochastic_depth")]
        assert drops == pytest.approx(expected)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("training", [True, False])
def test_numbers_are_the_references(name, training, torchvision, timm):
    torch.manual_seed(0)
    numbers = NUMBERS[name]
    theirs = reference(name, torchvision, timm, **numbers.theirs)
    ours = create(name, image_size=numbers.size, **numbers.ours)
    for module in theirs.modules():
        if type(module).__name__ in ("StochasticDepth", "Dropout"):
            module.p = 0.0
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0
    # Double precision: where batch norm sees few pixels, single rounds the last digits away.
    x = torch.randn(4, 3, numbers.size, numbers.size, dtype=torch.double)
    ours, theirs = ours.double().train(training), theirs.double()
    theirs(x)
    renamed = {ours.key_map(key): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict({key: value for key, value in renamed.items() if key is not None})
    expected = _tuple(theirs.train(training)(x))
    assert expected[0].std(dim=0).mean() > 1e-4  # where nothing normalises, signals shrink
    torch.testing.assert_close(_tuple(ours(x)), expected, rtol=1e-8, atol=1e-8)


FAST = ("resnet18", "efficientnet_b0", "mobilenet_v3_small", "squeezenet1_1", "vit_tiny_patch16")
"""The others' slim forms are compared above."""
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in REFERENCED if name not in FAST]


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_every_model_classifies_as_its_reference(name, torchvision, timm):
    """Whole models of every size, evaluated in single precision, to 1e-5 of the largest logit.

    64 pixels are the fewest that leave more than one to each later layer, so that padding, pooling
    and shifting have something to do. EfficientNets' fresh layers, up to hundreds of them, amplify
    what single precision rounds to more than that, so theirs is double and the bound 1e-8.
    """
    torch.manual_seed(0)
    size = 75 if name.startswith("inception") else 64
    theirs = reference(name, torchvision, timm, **({"img_size": size} if "patch16" in name else {}))
    ours = create(name, image_size=size, **_published_layout(name)).eval()
    _unlike_any_other(theirs)
    dtype, bound = torch.float, 1e-5
    if name.startswith("efficientnet"):
        dtype, bound = torch.double, 1e-8
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = torch.randn(8, 3, size, size, dtype=dtype)
    settle(theirs, x)
    renamed = {ours.key_map(key): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict({key: value for key, value in renamed.items() if key is not None})
    with torch.inference_mode():
        found, expected = ours(x[:2]), theirs(x[:2])
    largest = expected.abs().max()
    assert expected.std(dim=0).mean() > 1e-3 * largest  # the images decide
    assert (found - expected).abs().max() <= bound * largest


def _published_layout(name: str) -> dict[str, object]:
    """What makes a model for small images the one that was published for large ones."""
    published = {"stem": "imagenet", "patch": 4 if name.startswith("swin") else 16, "window": 7}
    return {key: value for key, value in published.items() if key in models.options_of(name)}


def _unlike_any_other(model: torch.nn.Module) -> None:
    """Adds noise to what starts constant, as norms and biases do, or nearly."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == 1 or parameter.std() < 1e-3:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _tuple(outputs):
    return (outputs,) if torch.is_tensor(outputs) else tuple(outputs)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_fresh_weights_are_spread_as_torchvisions(name, torchvision):
    torch.manual_seed(0)
    ours = create(name, **({"zero_init": False} if name == "resnet18" else {})).state_dict()
    theirs = getattr(torchvision.models, name)().state_dict()
    for key, value in theirs.items():
        if value.ndim < 2 and key != "fc.bias":  # norms, statistics and zero biases
            assert torch.equal(ours[key], value), key
        elif value.numel() >= 256:
            spread, n = value.std().item(), value.numel()
            # Five standard errors of a standard deviation, twice estimated, and of a mean.
            assert ours[key].std().item() == pytest.approx(spread, rel=5 * n**-0.5), key
            assert abs(ours[key].mean().item()) < 5 * spread * n**-0.5, key


def test_zero_init_starts_blocks_as_the_identity():
    model = models.create("resnet18", num_classes=2, in_channels=1, image_size=32)
    x = torch.rand(2, 64, 8, 8)
    assert torch.equal(model.layer1[0](x), x)


@pytest.mark.parametrize(
    ("phi", "width", "depth", "resolution"),
    [(0, 1, 1, 224), (1, 1.1, 1.2, 258), (-2, 1.1**-2, 1.2**-2, 169)],
)
def test_compound_scaling_is_equation_3(phi, width, depth, resolution):
    variant = compound(phi)
    assert variant.width == pytest.approx(width)
    assert variant.depth == pytest.approx(depth)
    assert variant.resolution == resolution


def test_phi_zero_is_b0_and_more_is_larger():
    with torch.device("meta"):
        counts = [parameters(create("efficientnet", phi=phi)) for phi in (-6, -3, 0, 1, 4)]
        assert create("efficientnet", phi=1.0).resolution == 258
    assert counts == sorted(set(counts))
    assert counts[2] == PUBLISHED["efficientnet_b0"].parameters


def test_width_and_depth_replace_the_variants():
    with torch.device("meta"):
        b0 = create("efficientnet_b0", width=1.1, depth=1.2).state_dict()
        b2 = create("efficientnet_b2").state_dict()
        thin = create("resnet18", width=0.5)
    assert {k: v.shape for k, v in b0.items()} == {k: v.shape for k, v in b2.items()}
    assert VARIANTS["efficientnet_b2"].width == 1.1
    assert [thin.layer1[0].conv1.out_channels, thin.fc.in_features] == [32, 256]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
@pytest.mark.parametrize(
    ("size", "stem", "downsampling"),
    [(64, "auto", "small"), (65, "auto", "imagenet"), (28, "imagenet", "imagenet")],
)
def test_auto_keeps_small_images_whole(name, size, stem, downsampling):
    with torch.device("meta"):
        model = models.create(name, num_classes=2, image_size=size, stem=stem)
        out = model.stages()[0].fn(torch.empty(1, 3, 64, 64))
    halvings = {"small": 0, "imagenet": 2 if name == "resnet18" else 1}[downsampling]
    assert out.shape[-1] == 64 >> halvings
