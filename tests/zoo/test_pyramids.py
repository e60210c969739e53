"""Transformers whose maps shrink: what PVT v2 and CvT have beyond what all models have."""

import pytest
import torch
from torch.nn import functional as F

from orchestrator import models
from orchestrator.models.cvt import HEADS, VARIANTS, QuickGELU
from orchestrator.models.pvt_v2 import PyramidVisionTransformer
from tests.zoo.small import settle

CVT = {"head_dim": 8, "depths": (1, 2, 2), "drop_path": 0.0}


def create(name, *, size=28, **options):
    torch.manual_seed(0)
    return models.create(name, num_classes=5, in_channels=3, image_size=size, **options)


def images(size=28):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "stem", "sides", "keys"),
    [
        (28, "auto", [28, 14, 7, 4], [49, 49, 49, 16]),
        (64, "auto", [64, 32, 16, 8], [256, 256, 256, 64]),
        (65, "auto", [17, 9, 5, 3], [4, 4, 4, 9]),
        (224, "imagenet", [56, 28, 14, 7], [49, 49, 49, 49]),
    ],
)
def test_pvt_has_as_many_keys_in_every_group(size, stem, sides, keys):
    found = []

    def note(module, inputs, output):
        found.append(output.shape[1])

    with torch.device("meta"):
        model = create("pvt_v2_b0", size=size, stem=stem, depths=(1, 1, 1, 1))
        for group in model.groups:
            group.blocks[0].attn.kv.register_forward_hook(note)
        names = [f"group{n}" for n in range(1, 5)]
        _, taps = model.forward_taps(torch.empty(1, 3, size, size), names)
    assert [taps[name].shape[-1] for name in names] == sides
    assert [taps[name].shape[1] for name in names] == [32, 64, 160, 256]
    assert found == keys


def test_pvt_refuses_maps_smaller_than_their_reduction():
    with pytest.raises(ValueError, match=r"at least 29 pixels a side, .* 28×28; take stem: small"):
        create("pvt_v2_b0", stem="imagenet")
    with torch.device("meta"):
        model = create("pvt_v2_b0", size=29, stem="imagenet")
        assert model(torch.empty(1, 3, 29, 29)).shape == (1, 5)


def test_pvt_drops_paths_along_a_line():
    with torch.device("meta"):
        model = create("pvt_v2_b2", drop_path=0.3)
    rates = [block.drop_path.rate for group in model.groups for block in group.blocks]
    assert rates == pytest.approx([0.3 * n / 15 for n in range(16)])


def test_pvt_starts_as_timms(timm):
    torch.manual_seed(0)
    theirs = timm.create_model("pvt_v2_b0", pretrained=False).state_dict()
    ours = models.create("pvt_v2_b0", num_classes=1000).state_dict()
    for key, value in theirs.items():
        own, n = ours[PyramidVisionTransformer.key_map(key)], value.numel()
        if value.ndim < 2:  # norms and biases
            assert torch.equal(own, value), key
        else:
            # Five standard errors of a standard deviation, twice estimated.
            assert own.std().item() == pytest.approx(value.std().item(), rel=5 * n**-0.5), key


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("patch_embed1.proj.weight", "patch_embed.proj.weight"),
        ("patch_embed3.norm.bias", "groups.2.downsample.norm.bias"),
        ("block1.1.attn.sr.weight", "groups.0.blocks.1.attn.sr.weight"),
        ("block4.0.mlp.dwconv.dwconv.bias", "groups.3.blocks.0.mlp.dwconv.bias"),
        ("norm2.weight", "groups.1.norm.weight"),
        ("head.bias", "head.bias"),
    ],
)
def test_pvt_knows_the_authors_names(theirs, ours):
    assert PyramidVisionTransformer.key_map(theirs) == ours
    with torch.device("meta"):
        assert ours in create("pvt_v2_b0").state_dict()


def cvt_by_formula(state, x, heads=(1, 3, 6)):
    """Logits in evaluation mode, from a state dict in the authors' names and torch's functions."""

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def project(name, part, tokens, side, stride):
        token, grid = tokens[:, : -side * side], tokens[:, -side * side :]
        grid = grid.mT.reshape(len(x), -1, side, side)
        conv = f"{name}.conv_proj_{part}"
        grid = F.conv2d(grid, state[f"{conv}.conv.weight"], None, stride, 1, 1, grid.shape[1])
        mean, variance = state[f"{conv}.bn.running_mean"], state[f"{conv}.bn.running_var"]
        scale, shift = state[f"{conv}.bn.weight"], state[f"{conv}.bn.bias"]
        grid = F.batch_norm(grid, mean, variance, scale, shift)
        return linear(f"{name}.proj_{part}", torch.cat([token, grid.flatten(2).mT], 1))

    def attention(name, tokens, side, count):
        q, k, v = (project(name, p, tokens, side, 1 if p == "q" else 2) for p in "qkv")
        outputs = []
        for q1, k1, v1 in zip(*(t.chunk(count, -1) for t in (q, k, v)), strict=True):
            scores = q1 @ k1.mT / q.shape[-1] ** 0.5
            outputs.append(scores.softmax(-1) @ v1)
        return linear(f"{name}.proj", torch.cat(outputs, -1))

    for group, count in enumerate(heads):
        name = f"stage{group}"
        weight = state[f"{name}.patch_embed.proj.weight"]
        stride, padding = {7: (4, 2), 3: (2, 1)}[weight.shape[-1]]
        x = F.conv2d(x, weight, state[f"{name}.patch_embed.proj.bias"], stride, padding)
        side, tokens = x.shape[-1], norm(f"{name}.patch_embed.norm", x.flatten(2).mT)
        if f"{name}.cls_token" in state:
            tokens = torch.cat([state[f"{name}.cls_token"].expand(len(x), 1, -1), tokens], 1)
        block = 0
        while f"{name}.blocks.{block}.norm1.weight" in state:
            path = f"{name}.blocks.{block}"
            normed = norm(f"{path}.norm1", tokens)
            tokens = tokens + attention(f"{path}.attn", normed, side, count)
            hidden = linear(f"{path}.mlp.fc1", norm(f"{path}.norm2", tokens))
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            tokens = tokens + linear(f"{path}.mlp.fc2", hidden)
            block += 1
        x = tokens[:, -side * side :].mT.reshape(len(x), -1, side, side)
    tokens = norm("norm", tokens)
    has_token = tokens.shape[1] > side * side
    return linear("head", tokens[:, 0] if has_token else tokens.mean(1))


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_cvt_is_its_formula(pool):
    model = create("cvt_13", size=45, stem="imagenet", pool=pool, **CVT).double()
    for name, parameter in model.named_parameters():
        is_scale = name.endswith("weight") and parameter.ndim == 1
        torch.nn.init.normal_(parameter, mean=1.0 if is_scale else 0.0, std=0.3)
    x = images(45).double()
    model(x)  # moves the statistics of the batch norms
    expected = cvt_by_formula(model.state_dict(), x)
    assert expected.std(0).mean() > 1e-2
    torch.testing.assert_close(model.eval()(x), expected)


def test_cvts_parameters_are_the_authors_names_and_the_papers_sizes():
    """Table 2 of the paper, counted by hand, layer by layer."""
    with torch.device("meta"):
        state = models.create("cvt_13", num_classes=1000).state_dict()
    expected, before = {"norm.weight": 384, "norm.bias": 384}, 3
    expected |= {"head.weight": 384 * 1000, "head.bias": 1000, "stage2.cls_token": 384}
    for group, (c, depth, kernel) in enumerate([(64, 1, 7), (192, 2, 3), (384, 10, 3)]):
        embed = f"stage{group}.patch_embed"
        expected |= {f"{embed}.proj.weight": kernel**2 * before * c, f"{embed}.proj.bias": c}
        expected |= {f"{embed}.norm.{part}": c for part in ("weight", "bias")}
        for number in range(depth):
            block = f"stage{group}.blocks.{number}"
            for part in ("weight", "bias"):
                expected |= {f"{block}.norm{n}.{part}": c for n in (1, 2)}
                expected |= {f"{block}.attn.conv_proj_{p}.bn.{part}": c for p in "qkv"}
            for name in ("proj_q", "proj_k", "proj_v", "proj"):
                expected |= {f"{block}.attn.{name}.weight": c * c, f"{block}.attn.{name}.bias": c}
            expected |= {f"{block}.attn.conv_proj_{p}.conv.weight": 9 * c for p in "qkv"}
            expected |= {f"{block}.mlp.fc1.weight": 4 * c * c, f"{block}.mlp.fc1.bias": 4 * c}
            expected |= {f"{block}.mlp.fc2.weight": 4 * c * c, f"{block}.mlp.fc2.bias": c}
        before = c
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    found = {key: v.numel() for key, v in state.items() if not key.endswith(statistics)}
    assert found == expected
    assert sum(expected.values()) == models.published("cvt_13").parameters


def transformers_cvt(transformers, depths, head_dim):
    sizes = {"depth": list(depths), "embed_dim": [head_dim * heads for heads in HEADS]}
    config = transformers.CvtConfig(**sizes, drop_path_rate=[0.0, 0.0, 0.0])
    return transformers.CvtForImageClassification(config)


@pytest.mark.parametrize("name", ["cvt_13", "cvt_21"])
def test_cvts_public_weights_load(name, transformers):
    with torch.device("meta"):
        model = models.create(name, num_classes=1000)
        theirs = transformers_cvt(transformers, VARIANTS[name].depths, VARIANTS[name].head_dim)
        theirs.classifier = torch.nn.Linear(theirs.classifier.in_features, 1000)
    shapes = {model.key_map(key): value.shape for key, value in theirs.state_dict().items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    count = sum(p.numel() for p in theirs.parameters())
    assert count == models.published(name).parameters
    assert set(map(model.key_map, shapes)) == set(shapes)  # the authors' names are ours


def test_cvt_answers_as_transformers(transformers):
    """Given the activation that the authors trained with, which transformers has not."""
    torch.manual_seed(0)
    options = CVT | {"depths": (1, 2, 3)}  # fewer in the last group, and theirs fails
    theirs = transformers_cvt(transformers, options["depths"], options["head_dim"]).double()
    for module in theirs.modules():
        if hasattr(module, "activation"):
            module.activation = QuickGELU()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    x = images(64).double()
    settle(theirs, x)
    ours = create("cvt_13", size=64, stem="imagenet", **options).double().eval()
    ours.reset_head(theirs.classifier.out_features)
    ours.load_state_dict({ours.key_map(key): v for key, v in theirs.state_dict().items()})
    with torch.inference_mode():
        expected = theirs(x).logits
        assert expected.std(0).mean() > 1e-2
        torch.testing.assert_close(ours(x), expected, rtol=1e-8, atol=1e-8)


def test_cvts_class_token_leaves_the_last_filter_of_queries_idle():
    silent = {}
    for pool in ("token", "mean"):
        model = create("cvt_13", pool=pool, **CVT)
        model(images()).square().sum().backward()
        silent[pool] = {n for n, p in model.named_parameters() if not p.grad.any()}
    idle = "stage2.blocks.1.attn.conv_proj_q"
    assert silent["token"] == {f"{idle}.conv.weight", f"{idle}.bn.weight", f"{idle}.bn.bias"}
    assert silent["mean"] == set()


def test_cvt_drops_paths_in_its_last_group():
    with torch.device("meta"):
        model = create("cvt_13", drop_path=0.3)
    rates = [
        [block.drop_path.rate for block in stage.blocks]
        for stage in (model.stage0, model.stage1, model.stage2)
    ]
    assert rates[:2] == [[0.0], [0.0, 0.0]]
    assert rates[2] == pytest.approx([0.3 * n / 9 for n in range(10)])


@pytest.mark.parametrize("name", ["pvt_v2_b0", "cvt_13"])
def test_images_may_have_another_size_than_planned(name):
    depths = (1, 1, 1, 1) if name == "pvt_v2_b0" else (1, 1, 1)
    model = create(name, size=32, head_dim=8, depths=depths).eval()
    for shape in ((28, 28), (40, 24)):
        assert model(torch.rand(2, 3, *shape)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pvt_v2_b0", {"depths": (1, 1, 1)}, r"depths must be 4 numbers of blocks.*\(1, 1, 1\)"),
        ("pvt_v2_b0", {"depths": (1, 0, 1, 1)}, "depths of group 2 must be a whole number >= 1"),
        ("pvt_v2_b0", {"head_dim": 0}, "head_dim must be a whole number >= 1, but got 0"),
        ("pvt_v2_b0", {"stem": "tiny"}, "stem must be auto, imagenet or small"),
        ("cvt_13", {"depths": (1, 1)}, r"depths must be 3 numbers of blocks.*\(1, 1\)"),
        ("cvt_13", {"pool": "max"}, "pool must be token or mean, but got 'max'"),
        ("cvt_13", {"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create(name, **options)
