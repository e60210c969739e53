"""Vision transformers: which images they take, whose weights they load, and two heads."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from orchestrator import models
from orchestrator.config.zoo.vit import VisionTransformer as Section
from orchestrator.models.vit import VisionTransformer
from orchestrator.models.weights import WeightsMismatch, load_weights
from orchestrator.networks import build_network

SLIM = {"embed_dim": 16, "depth": 2, "heads": 2}


def make(name: str = "vit_tiny_patch16", size=32, seed: int = 0, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    given = {**SLIM, "num_classes": 5, **options}
    return models.create(name, image_size=size, **given).eval()


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights large enough that each of them shows in the outputs."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def saved(tmp_path, state: dict[str, torch.Tensor]):
    save_file(
        {k: v.detach().contiguous().clone() for k, v in state.items()}, tmp_path / "w.safetensors"
    )
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize(
    ("size", "patch", "grid"),
    [
        (28, "auto", (7, 7)),
        (64, "auto", (16, 16)),
        (80, "auto", (5, 5)),
        (224, "auto", (14, 14)),
        (30, 5, (6, 6)),
        (32, 32, (1, 1)),
        ((32, 48), "auto", (8, 12)),
        ((32, 80), "auto", (2, 5)),
    ],
)
def test_patches_cover_the_image(size, patch, grid):
    model = make(size=size, patch=patch)
    height, width = model.image_size
    assert model.grid == grid
    assert model.pos_embed.shape == (1, 1 + grid[0] * grid[1], 16)
    assert model(torch.zeros(2, 3, height, width)).shape == (2, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"size": (100, 80)},
            r"patch must divide both sides .* 16 does not divide 100×80 pixels; "
            r"choose one of 1, 2, 4, 5, 10, 20, or resize",
        ),
        ({"size": 28, "patch": 16}, "16 does not divide 28×28"),
        ({"patch": 0}, "patch must be auto or a whole number >= 1, but got 0"),
        ({"patch": "large"}, "patch must be auto or a whole number >= 1, but got 'large'"),
        ({"heads": 3}, "heads must divide embed_dim, but got heads=3 and embed_dim=16; 15 is"),
        ({"depth": 0}, "depth must be a whole number >= 1, but got 0"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\)"),
    ],
)
def test_impossible_networks_name_rule_value_and_way_out(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_oblong_data_gives_an_oblong_network():
    section = Section(type="vit_tiny_patch16", embed_dim=16, depth=1, heads=2)
    network = build_network(section, outputs=3, shape=(1, 28, 32))
    assert network.grid == (7, 8)
    assert network(torch.zeros(2, 1, 28, 32)).shape == (2, 3)


def test_heads_that_do_not_divide_are_refused_in_the_file():
    with pytest.raises(ValidationError, match="`heads` must divide `embed_dim`"):
        Section(type="vit_tiny_patch16", embed_dim=16, heads=3)


def test_images_of_another_size_are_refused():
    message = r"must have 32×32 pixels, for which this network was built, but have 28×32; resize"
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(1, 3, 28, 32))


@pytest.mark.parametrize("published_names", [False, True])
def test_torchvisions_weights_give_its_numbers(published_names, torchvision, tmp_path):
    torch.manual_seed(0)
    theirs = drawn(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=5))
    state = theirs.state_dict()
    if published_names:
        old = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
        for new, published in old.items():
            state = {key.replace(new, published): value for key, value in state.items()}
    ours = make(patch=8)
    assert load_weights(ours, saved(tmp_path, state)).loaded == len(ours.state_dict())
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "theirs"), [("vit_base_patch16", "vit_b_16"), ("vit_large_patch16", "vit_l_16")]
)
def test_torchvisions_names_become_ours(name, theirs, torchvision):
    with torch.device("meta"):
        ours = models.create(name, num_classes=1000).state_dict()
        state = torchvision.models.get_model(theirs, weights=None).state_dict()
    renamed = {VisionTransformer.key_map(k): v.shape for k, v in state.items()}
    assert renamed == {key: value.shape for key, value in ours.items()}


def test_names_that_neither_has_are_reported_as_they_are():
    for name in ("encoder.layers.encoder_layer_0.gate.weight", "fc.weight"):
        assert VisionTransformer.key_map(name) == name


@pytest.mark.parametrize("name", ["vit_tiny_patch16", "deit_tiny_distilled_patch16"])
def test_positions_of_another_size_are_resampled_as_timms(name, timm, tmp_path):
    trained, fresh = make(name, 32, seed=1), make(name, (48, 24), seed=2)
    extra = trained.extra_tokens
    expected = timm.layers.resample_abs_pos_embed(
        trained.pos_embed, (12, 6), (8, 8), num_prefix_tokens=extra
    )
    report = load_weights(fresh, saved(tmp_path, trained.state_dict()))
    assert str(report).endswith("positions are resampled from 8×8 to 12×6 patches")
    torch.testing.assert_close(fresh.pos_embed, expected)
    assert torch.equal(fresh.pos_embed[:, :extra], trained.pos_embed[:, :extra])
    assert torch.equal(fresh.head.weight, trained.head.weight)


def test_positions_of_the_same_size_are_copied(tmp_path):
    trained, fresh = make(size=(32, 16), seed=1), make(size=(32, 16), seed=2)
    report = load_weights(fresh, saved(tmp_path, trained.state_dict()))
    assert report.adapted == ()
    assert torch.equal(fresh.pos_embed, trained.pos_embed)


@pytest.mark.parametrize(
    ("trained", "fresh", "message"),
    [
        ({"patch": 8}, {"patch": 4}, r"patch_embed.proj.weight \(16, 3, 8, 8\) in the file"),
        (
            {"size": (32, 16)},
            {},
            r"pos_embed \(1, 33, 16\) in the file, \(1, 65, 16\) in the model",
        ),
        ({"name": "deit_tiny_distilled_patch16"}, {}, "unknown to the model: dist_token"),
        ({}, {"name": "deit_tiny_distilled_patch16"}, "missing from the file: .*dist_token"),
    ],
)
def test_weights_that_can_not_fit_are_refused(trained, fresh, message, tmp_path):
    path = saved(tmp_path, make(**trained).state_dict())
    with pytest.raises(WeightsMismatch, match=message):
        load_weights(make(**fresh), path)


@pytest.mark.parametrize("name", ["vit_tiny_patch16", "deit_tiny_distilled_patch16"])
def test_fresh_weights_are_spread_as_timms(name, timm):
    torch.manual_seed(0)
    ours = models.create(name, num_classes=1000).state_dict()
    for key, value in timm.create_model(f"{name}_224").state_dict().items():
        if value.unique().numel() == 1:  # norms and zero biases
            assert torch.equal(ours[key], value), key
        elif value.numel() >= 192:
            spread, n = value.std().item(), value.numel()
            # Five standard errors of a standard deviation, twice estimated, and of a mean.
            assert ours[key].std().item() == pytest.approx(spread, rel=5 * n**-0.5), key
            assert abs(ours[key].mean().item()) < 5 * spread * n**-0.5, key


def test_stochastic_depth_grows_linearly_and_is_the_variants():
    def rates(name, **options):
        return [block.drop_path.rate for block in make(name, depth=3, **options).blocks]

    assert rates("vit_tiny_patch16") == [0, 0, 0]
    assert rates("deit_tiny_patch16") == pytest.approx([0, 0.05, 0.1])
    assert rates("vit_tiny_patch16", drop_path=0.4) == pytest.approx([0, 0.2, 0.4])


def test_a_distilled_network_answers_as_timms_in_training_and_evaluation(timm):
    torch.manual_seed(0)
    theirs = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, num_classes=5, **TIMM
    )
    drawn(theirs).set_distilled_training(True)
    ours = make("deit_tiny_distilled_patch16", patch=8, drop_path=0.0)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 32, 32)
    expected, found = theirs.train()(x), ours.train()(x)
    assert len(found) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(x), (found[0] + found[1]) / 2, rtol=1e-4, atol=1e-4)


TIMM = {"embed_dim": 16, "depth": 2, "num_heads": 2}
