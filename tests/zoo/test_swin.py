"""Swin transformers: windows and shifts for every size, and whose weights they load."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from orchestrator import models
from orchestrator.config.zoo.swin import Swin as Section
from orchestrator.models.layers.window_attention import WindowAttention, offset_index
from orchestrator.models.weights import load_weights

SLIM = {"embed_dim": 16, "head_dim": 8, "depths": (2, 2), "patch": 4, "window": 7}


def make(size=56, seed: int = 0, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    given = {**SLIM, "num_classes": 5, **options}
    return models.create("swin_tiny", image_size=size, **given).eval()


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights large enough that each of them shows in the outputs."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def saved(tmp_path, state: dict[str, torch.Tensor]):
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def windows(model: torch.nn.Module) -> list[int]:
    return [m.window for m in model.modules() if isinstance(m, WindowAttention)]


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (28, {}, [7, 7, 4, 2]),
        (32, {}, [4, 4, 4, 2]),
        (64, {}, [4, 4, 4, 4]),
        (28, {"patch": 4}, [7, 4, 2, 1]),
        (28, {"window": 5}, [5, 5, 5, 5]),
        ((28, 56), {}, [7, 7, 4, 2]),
        (100, {}, [7, 7, 7, 7]),
        (224, {}, [7, 7, 7, 7]),
    ],
)
def test_windows_fit_small_images_and_are_as_published_for_others(size, options, expected):
    given = {"depths": (1, 1, 1, 1), "patch": "auto", "window": "auto", **options}
    model = make(size, **given)
    assert windows(model) == expected
    height, width = model.image_size
    assert model(torch.zeros(2, 3, height, width)).shape == (2, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 30}, "4 does not divide 30×30 pixels; choose one of 1, 2, 3, 5, 6, 10, 15, 30"),
        ({"window": 0}, "window must be auto or a whole number >= 1, but got 0"),
        (
            {"head_dim": 5},
            "head_dim must divide embed_dim, but got head_dim=5 and embed_dim=16; 15",
        ),
        ({"depths": ()}, "depths must name at least one group"),
        ({"depths": (1, 0)}, "depths of group 2 must be a whole number >= 1, but got 0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
    ],
)
def test_impossible_networks_name_rule_value_and_way_out(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize("given", [{"embed_dim": 40}, {"depths": []}, {"depths": [2, 0]}])
def test_the_file_refuses_them_too(given):
    with pytest.raises(ValidationError):
        Section(type="swin_tiny", **given)


def test_the_table_s_rows_are_offsets():
    index = offset_index(2).view(4, 4)
    # Patches 0 and 3 are a window's upper left and lower right.
    assert [index[0, 3].item(), index[0, 0].item(), index[3, 0].item()] == [0, 4, 8]
    assert [index[0, 1].item(), index[0, 2].item()] == [3, 1]


# Maps of 8×4 patches shift in one direction alone; those of 6×9 are padded on one side alone.
@pytest.mark.parametrize("size", [(32, 16), (24, 36), (40, 20)])
def test_oblong_images_give_torchvisions_numbers(size, torchvision):
    torch.manual_seed(0)
    theirs = drawn(
        torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)
    )
    ours = make(size, window=4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, *size)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_timms_weights_give_its_numbers(timm, tmp_path):
    torch.manual_seed(0)
    theirs = drawn(
        timm.models.SwinTransformer(
            56, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=5
        )
    )
    ours = make(56)
    report = load_weights(ours, saved(tmp_path, theirs.state_dict()))
    assert report.adapted == ()
    x = torch.randn(4, 3, 56, 56)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_biases_of_another_window_are_resampled(tmp_path):
    trained, fresh = make(56, seed=1), make(48, seed=2, window=4)
    name = "features.1.1.attn.relative_position_bias_table"
    state = trained.state_dict()
    down, right = torch.meshgrid(torch.arange(-6.0, 7), torch.arange(-6.0, 7), indexing="ij")
    state[name] = torch.stack([down.flatten() ** 3, right.flatten()], 1)
    report = load_weights(fresh, saved(tmp_path, state))
    assert "features.1.1.attn: biases are resampled from 13×13 to 7×7" in report.adapted
    cube, ramp = fresh.state_dict()[name].view(7, 7, 2).unbind(-1)
    # What depends on one direction still does, and what is odd about no offset stays odd.
    torch.testing.assert_close(cube, cube[:, :1].expand(-1, 7))
    torch.testing.assert_close(ramp, ramp[:1].expand(7, -1))
    torch.testing.assert_close(cube, -cube.flip(0))
    assert ramp[0, 3:].tolist() == pytest.approx([0, 13 / 7, 26 / 7, 39 / 7], abs=0.3)
    assert fresh(torch.randn(2, 3, 48, 48)).isfinite().all()


@pytest.mark.slow
def test_fresh_weights_are_spread_as_torchvisions(torchvision):
    torch.manual_seed(0)
    ours = models.create("swin_tiny", num_classes=1000).state_dict()
    for key, value in torchvision.models.swin_t(weights=None).state_dict().items():
        if not value.is_floating_point() or value.unique().numel() == 1:
            assert torch.equal(ours[key], value), key
        elif value.numel() >= 192:
            spread, n = value.std().item(), value.numel()
            # Five standard errors of a standard deviation, twice estimated, and of a mean.
            assert ours[key].std().item() == pytest.approx(spread, rel=5 * n**-0.5), key
            assert abs(ours[key].mean().item()) < 5 * spread * n**-0.5, key


def test_rates_are_torchvisions(torchvision):
    for name, theirs in (("swin_tiny", "swin_t"), ("swin_base", "swin_b")):
        with torch.device("meta"):
            ours = models.create(name, num_classes=2)
            reference = torchvision.models.get_model(theirs, weights=None)
        drops = [m.rate for n, m in ours.named_modules() if n.endswith("stochastic_depth")]
        expected = [m.p for n, m in reference.named_modules() if n.endswith("stochastic_depth")]
        assert drops == pytest.approx(expected)
