"""Names, lazy families, and what bad options are answered with."""

import subprocess
import sys

import pytest
import torch

from orchestrator import models
from orchestrator.models import registry


def test_listing_and_creating_import_no_more_than_needed():
    code = (
        "import sys\nfrom orchestrator import models\nmodels.names()\n"
        "assert 'torch' not in sys.modules\n"
        "models.create('resnet18', num_classes=2, image_size=32, width=0.125)\n"
        "loaded = {m for m in sys.modules if m.startswith('orchestrator.models.')}\n"
        "assert 'orchestrator.models.resnet' in loaded\n"
        "assert 'orchestrator.models.efficientnet' not in loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", models.names())
def test_each_family_registers_what_the_table_says(name):
    assert all(option.isidentifier() for option in models.options_of(name))


def test_families_register_nothing_beyond_the_table():
    for family_names in registry.FAMILIES.values():
        models.options_of(family_names[0])
    ours = {n for n, f in registry._FACTORIES.items() if "orchestrator" in _module(f)}
    assert ours == {name for family in registry.FAMILIES.values() for name in family}


def _module(factory):
    return getattr(factory, "func", factory).__module__


def test_a_plugins_model_is_created_like_ours(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    def tiny(*, num_classes, in_channels, image_size, bias=True):
        return torch.nn.Linear(in_channels, num_classes, bias=bias)

    models.register("tiny", tiny)
    models.register("tiny", tiny)
    assert "tiny" in models.names()
    assert models.options_of("tiny") == {"bias": True}
    assert models.create("tiny", num_classes=3, in_channels=2, bias=False).bias is None
    with pytest.raises(ValueError, match="'tiny' is registered already"):
        models.register("tiny", lambda **_: torch.nn.Identity())


def make(name="resnet18", **given):
    with torch.device("meta"):
        return models.create(name, **({"num_classes": 10, "image_size": 32} | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "resnet19"}, r"unknown model 'resnet19'; did you mean 'resnet9' or 'resnet1"),
        ({"name": "vit_large"}, r"unknown model 'vit_large'; did you mean 'vit_large_patch16'\?"),
        ({"name": "zzz"}, r"unknown model 'zzz'; choose from: .*, efficientnet, "),
        ({"widht": 0.5}, r"resnet18 has no option 'widht'; did you mean 'width'\?"),
        ({"phi": 1.0}, r"no option 'phi'; choose from: stem, width, dropout, zero_init"),
        ({"name": "efficientnet_b1", "phi": 1.0}, r"efficientnet_b1 has no option 'phi'"),
        ({"image_size": 4}, r"image_size must be .* >= 8, but got 4; resize or pad"),
        ({"image_size": (32, 0)}, r"image_size must be .* but got \(32, 0\)"),
        ({"image_size": (32, 32, 3)}, r"one or two whole numbers"),
        ({"image_size": 32.5}, r"image_size must be .* but got 32.5"),
        ({"num_classes": 0}, r"num_classes must be a whole number >= 1, but got 0"),
        ({"in_channels": 0}, r"in_channels must be a whole number >= 1, but got 0"),
        ({"width": 0.0}, r"width must be a number above 0, but got 0.0"),
        ({"width": float("nan")}, r"width must be a number above 0, but got nan"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), but got 1.0"),
        ({"stem": "big"}, r"stem must be auto, imagenet or small, but got 'big'"),
        ({"name": "efficientnet_b0", "depth": -1.0}, r"depth must be a number above 0"),
        ({"name": "efficientnet_b0", "drop_path": -0.1}, r"drop_path must be in \[0, 1\)"),
        ({"name": "efficientnet", "phi": 99.0}, r"phi must be in \[-20, 20\], but got 99.0"),
    ],
)
def test_bad_options_name_rule_value_and_way_out(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_the_smallest_image_of_each_family_works():
    for name in ("resnet18", "efficientnet_small", "efficientnet_b0"):
        model = models.create(name, num_classes=2, in_channels=1, image_size=8, width=0.25)
        assert model(torch.rand(2, 1, 8, 8)).shape == (2, 2)


def test_oblong_images():
    model = make("resnet18", image_size=(32, 48), num_classes=2)
    assert model.image_size == (32, 48)
    assert model(torch.empty(2, 3, 32, 48, device="meta")).shape == (2, 2)
