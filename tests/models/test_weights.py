"""Weights files: what is mended, and what is refused with which words."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator import models
from orchestrator.models.weights import WeightsMismatch, check_weights, load_weights


def make(classes: int = 4, channels: int = 3, name: str = "resnet18", seed: int = 0, **options):
    torch.manual_seed(seed)
    given = {"width": 0.125} | options
    return models.create(
        name, num_classes=classes, in_channels=channels, image_size=32, **given
    ).eval()


def saved(tmp_path, state, suffix=".safetensors"):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_makes_models_equal(tmp_path, suffix):
    trained, fresh = make(seed=1), make(seed=2)
    trained.train()(torch.randn(4, 3, 32, 32))
    report = load_weights(fresh, saved(tmp_path, trained.state_dict(), suffix))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(x), trained.eval()(x))
    assert report.loaded == len(fresh.state_dict())
    assert str(report) == f"{report.loaded} tensors"


def test_files_from_before_pytorch_1_6_load(tmp_path):
    trained, fresh = make(seed=1), make(seed=2)
    path = tmp_path / "old.pth"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=False)
    load_weights(fresh, path)
    assert torch.equal(fresh.fc.weight, trained.fc.weight)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16", "swin_tiny"])
def test_a_file_is_checked_without_memory_for_the_network(tmp_path, name):
    options = {"width": 0.125} if name == "resnet18" else {"embed_dim": 96}
    large = models.create(name, num_classes=7, in_channels=3, image_size=64, **options)
    path = saved(tmp_path, large.state_dict())
    given = {"num_classes": 3, "in_channels": 1, "image_size": 32, **options}
    with torch.device("meta"):
        empty = models.create(name, **given)
    fresh = models.create(name, **given)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    found = check_weights(fresh, path)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    assert found == check_weights(empty, path) == load_weights(fresh, path)
    assert (found.head_replaced, found.stem_summed) == (7, True)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_small"])
def test_another_class_count_leaves_the_head(tmp_path, name):
    trained, fresh = make(7, name=name, seed=1), make(3, name=name, seed=2)
    head = fresh.head_layer.weight.clone()
    report = load_weights(fresh, saved(tmp_path, trained.state_dict()))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh.forward_features(x), trained.forward_features(x))
    assert torch.equal(fresh.head_layer.weight, head)
    assert report.head_replaced == 7
    assert "the head, of 7 classes in the file, starts fresh" in str(report)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_small"])
def test_colour_weights_see_a_grey_image_as_three_equal_channels(tmp_path, name):
    colour, grey = make(name=name, seed=1).double(), make(name=name, channels=1, seed=2).double()
    report = load_weights(grey, saved(tmp_path, colour.state_dict()))
    x = torch.randn(2, 1, 32, 32, dtype=torch.double)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)))
    assert report.stem_summed
    assert "summed" in str(report)


def test_other_channels_are_refused_and_nothing_is_copied(tmp_path):
    model = make(channels=2, seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = r"conv1.weight \(8, 3, 3, 3\) in the file, \(8, 2, 3, 3\) in the model"
    with pytest.raises(WeightsMismatch, match=message):
        load_weights(model, saved(tmp_path, make(seed=1).state_dict()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_every_kind_of_difference_is_listed_once_and_cut_at_ten(tmp_path):
    state = make().state_dict()
    for key in list(state)[:14]:
        if not key.endswith("num_batches_tracked"):
            state[f"module.{key}"] = state.pop(key)
    state["fc.bias"] = torch.zeros(9)
    with pytest.raises(WeightsMismatch) as caught:
        load_weights(make(), saved(tmp_path, state))
    message = str(caught.value)
    assert "does not fit ResNet" in message
    assert re.search(r"missing from the file: conv1.weight, .*, … \(12 in all\)", message)
    assert re.search(r"unknown to the model: module\..*, … \(12 in all\)", message)
    assert "of another shape: fc.bias (9,) in the file, (4,) in the model" in message
    assert message.count("module.") == 10


def test_names_can_be_mapped(tmp_path):
    trained, fresh = make(seed=1), make(seed=2)
    state = {f"module.{key}": value for key, value in trained.state_dict().items()}
    state["epoch"] = torch.tensor(3)
    path = saved(tmp_path, state, ".pth")
    load_weights(fresh, path, key_map=lambda n: None if n == "epoch" else n.removeprefix("module."))
    assert torch.equal(fresh.fc.weight, trained.fc.weight)


def test_files_without_batch_counts_load(tmp_path):
    trained, fresh = make(seed=1), make(seed=2)
    state = {k: v for k, v in trained.state_dict().items() if "num_batches" not in k}
    load_weights(fresh, saved(tmp_path, state))
    assert torch.equal(fresh.fc.weight, trained.fc.weight)


def test_any_module_loads_strictly(tmp_path):
    path = saved(tmp_path, nn.Linear(3, 2).state_dict())
    load_weights(nn.Linear(3, 2), path)
    with pytest.raises(WeightsMismatch, match="of another shape: weight"):
        load_weights(nn.Linear(3, 5), path)


class Bomb:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_a_file_with_code_is_refused_unrun(tmp_path, capsys):
    path = saved(tmp_path, {"conv1.weight": Bomb()}, ".pth")
    said = r"holds more than tensors, so it is refused: it needs print\. Save its"
    with pytest.raises(WeightsMismatch, match=said):
        load_weights(make(), path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.bin", b"", r"must be a \.safetensors, \.pth or \.pt file"),
        ("w.safetensors", b"no header", r"can't be read"),
        ("w.pth", b"", r"can't be read|refused"),
        ("w.pth", pickle.dumps([1, 2], protocol=2), r"can't be read|refused|state dict"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsMismatch, match=message):
        load_weights(make(), tmp_path / name)


def test_no_file_and_no_state_dict(tmp_path):
    with pytest.raises(WeightsMismatch, match="there is no weights file"):
        load_weights(make(), tmp_path / "none.pth")
    with pytest.raises(WeightsMismatch, match="must hold a state dict"):
        load_weights(make(), saved(tmp_path, {"epoch": 3, "model": {}}, ".pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"state_dict": s, "epoch": 3}, r"there is one in its entry 'state_dict': save"),
        (lambda s: dict(enumerate(s.values())), r"a mapping from names to tensors; save model"),
        (lambda s: [s], r"must hold a state dict, a mapping from names to tensors; save model"),
        (lambda s: s["fc.weight"], r"must hold a state dict"),
        (lambda s: s | {"fc.weight": s["fc.weight"].to_sparse()}, r"dense tensors alone; others"),
        (lambda s: s | {"fc.weight": torch.zeros(())}, r"another shape: fc\.weight \(\) in the f"),
        (
            lambda s: s | {"fc.weight": s["fc.weight"].to(torch.complex64)},
            r"no floating-point numbers: fc\.weight torch\.complex64 in the file, torch\.float32",
        ),
        (lambda s: s | {"bn1.weight": s["bn1.weight"].to(torch.int8)}, r"bn1\.weight torch\.int8"),
        (lambda s: {}, r"missing from the file: conv1\.weight"),
    ],
)
def test_files_that_hold_something_else(tmp_path, change, message):
    path = saved(tmp_path, change(make().state_dict()), ".pth")
    with pytest.raises(WeightsMismatch, match=message):
        load_weights(make(), path)
