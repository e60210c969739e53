"""DenseNet: what its stages keep, its published files' old names, and sizes that cannot be."""

import pytest
import torch
from safetensors.torch import save_file

from orchestrator import models
from orchestrator.models.weights import load_weights


def build(name="densenet121", size=32, **options):
    return models.create(name, num_classes=5, in_channels=1, image_size=size, **options)


def test_a_block_keeps_each_map_once():
    model = build(width=0.25, depth=0.3).eval()
    growth = 8
    x, kept, channels = torch.randn(2, 1, 32, 32), {}, 2 * growth
    stages = model.stages()
    layers = [stage for stage in stages if stage.name.startswith("denseblock2.")]
    with torch.no_grad():
        for stage in stages:
            if stage in layers:
                maps = (x,) if torch.is_tensor(x) else x
                kept.update({m.data_ptr(): m.shape[1] for m in maps})
            x = stage.fn(x)
            if stage.name == "transition1":
                channels = x.shape[1]
    assert len(layers) == 4
    # The input once, and the new maps of every layer but the last, whose stage concatenates.
    assert sum(kept.values()) == channels + growth * 3


def test_growth_and_transitions_are_the_papers_table_1():
    with torch.device("meta"):
        model = build("densenet161", size=224, stem="imagenet").eval()
        x = torch.empty(1, 1, 224, 224)
        names = ["stem", "transition1", "transition2", "transition3", "denseblock4"]
        _, taps = model.forward_taps(x, names)
    assert [tuple(taps[name].shape[1:]) for name in names] == [
        (96, 56, 56),
        ((96 + 6 * 48) // 2, 28, 28),
        ((192 + 12 * 48) // 2, 14, 14),
        ((384 + 36 * 48) // 2, 7, 7),
        (1056 + 24 * 48, 7, 7),
    ]


def test_files_with_the_old_names_load(tmp_path):
    torch.manual_seed(0)
    small = {"width": 0.125, "depth": 0.1}
    trained, fresh = build(**small), build(**small)
    old = {}
    for key, value in trained.state_dict().items():
        head, dense, rest = key.partition(".denselayer")
        for part in ("norm1", "norm2", "conv1", "conv2") if dense else ():
            rest = rest.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        if not key.endswith("num_batches_tracked"):
            old[head + dense + rest] = value
    assert "features.denseblock1.denselayer1.norm.2.running_mean" in old
    save_file(old, tmp_path / "old.safetensors")
    assert load_weights(fresh, tmp_path / "old.safetensors").loaded == len(old)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(fresh.eval()(x), trained.eval()(x))


def test_the_imagenet_layout_says_what_it_needs():
    with torch.device("meta"):
        assert build(size=29, stem="imagenet").eval()(torch.empty(1, 1, 29, 29)).shape == (1, 5)
        with pytest.raises(ValueError, match=r"at least 29 pixels a side, but got .*28×28; choose"):
            build(size=28, stem="imagenet")


def test_a_fresh_classifier_has_no_bias():
    model = build(width=0.125, depth=0.1)
    model.reset_head(3)
    assert not model.classifier.bias.any()
