"""What the relatives of ResNet add to it."""

import pytest
import torch
from torch.nn import functional as F

from orchestrator import models


def make(name: str, **options) -> torch.nn.Module:
    given = {"num_classes": 10, "in_channels": 3, "image_size": 32} | options
    return models.create(name, **given)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "groups", "inner"),
    [
        ("resnet50", 1, [64, 128, 256, 512]),
        ("resnext50_32x4d", 32, [128, 256, 512, 1024]),
        ("resnext101_32x8d", 32, [256, 512, 1024, 2048]),
        ("wide_resnet50_2", 1, [128, 256, 512, 1024]),
    ],
)
def test_inner_channels_of_bottlenecks(name, groups, inner):
    with torch.device("meta"):
        model = make(name)
    filters = [model.get_submodule(f"layer{n}.0.conv2") for n in (1, 2, 3, 4)]
    assert [conv.out_channels for conv in filters] == inner
    assert {conv.groups for conv in filters} == {groups}
    assert [model.get_submodule(f"layer{n}.0.conv3").out_channels for n in (1, 2, 3, 4)] == [
        256,
        512,
        1024,
        2048,
    ]


def test_thin_resnexts_keep_their_parts():
    with torch.device("meta"):
        conv = make("resnext50_32x4d", width=0.125).layer1[0].conv2
    assert (conv.groups, conv.out_channels) == (32, 32)


@pytest.mark.parametrize("name", ["seresnet18", "seresnet50"])
def test_squeeze_excite_ends_the_residual_branch(name):
    torch.manual_seed(0)
    model = make(name, width=0.25, zero_init=False).double().eval()
    block = model.layer1[-1]  # its shortcut is the input
    x = torch.randn(2, block.conv1.in_channels, 5, 5, dtype=torch.double)
    gated = []
    block.se.register_forward_pre_hook(lambda _, inputs: gated.append(inputs[0]))
    found = block(x)
    y, se = gated[0], block.se
    hidden = F.relu(y.mean((2, 3)) @ se.fc1.weight.flatten(1).T + se.fc1.bias)
    gate = (hidden @ se.fc2.weight.flatten(1).T + se.fc2.bias).sigmoid()
    torch.testing.assert_close(found, F.relu(x + y * gate[:, :, None, None]))


def test_squeeze_excite_narrows_to_a_sixteenth_but_eight():
    with torch.device("meta"):
        model = make("seresnet34")
    squeezed = [model.get_submodule(f"layer{n}.0.se.fc1").out_channels for n in (1, 2, 3, 4)]
    assert squeezed == [8, 8, 16, 32]


@pytest.mark.parametrize("name", ["seresnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_fresh_blocks_are_the_identity(name):
    model = make(name, width=0.25)
    block = model.layer1[-1]
    x = torch.rand(2, block.conv1.in_channels, 4, 4)
    assert torch.equal(block(x), x)


def test_wrn_has_the_papers_parameters():
    with torch.device("meta"):
        model = make("wrn_28_10")
    # 36.5M in Table 4; the authors' layers, counted one by one: convolutions, norms, classifier.
    convolutions = 27 * 16
    norms, entry = 0, 16
    for channels in (160, 320, 640):
        convolutions += 9 * entry * channels + 7 * 9 * channels**2 + entry * channels
        norms += 2 * entry + 7 * 2 * channels
        entry = channels
    assert parameters(model) == convolutions + norms + 2 * 640 + 641 * 10 == 36_479_194


def test_wrn_rectifies_before_it_convolves():
    torch.manual_seed(0)
    model = make("wrn_28_10", width=0.05).double().eval()
    block = model.block2[0]
    for norm in (block.bn1, block.bn2):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 6, 6, dtype=torch.double)
    scale = (1 + 1e-5) ** 0.5  # running means of 0 and variances of 1
    y = F.relu(x / scale * block.bn1.weight[:, None, None] + block.bn1.bias[:, None, None])
    z = F.conv2d(y, block.conv1.weight, stride=2, padding=1)
    z = F.relu(z / scale * block.bn2.weight[:, None, None] + block.bn2.bias[:, None, None])
    expected = F.conv2d(z, block.conv2.weight, padding=1)
    expected = expected + F.conv2d(y, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


def test_wrn_drops_within_blocks():
    model = make("wrn_28_10", width=0.05, dropout=0.3)
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.3] * 12


def test_resnet9_spends_what_its_text_says():
    spent = []

    def count(conv, _, out):
        spent.append(out[0, 0].numel() * conv.weight.numel())

    with torch.device("meta"):
        model = make("resnet9", in_channels=1)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        model(torch.empty(1, 1, 28, 28))
    assert sum(spent) / 1e6 == pytest.approx(11.4, abs=0.05)
    assert len(spent) == 8
    assert parameters(model) / 1e6 == pytest.approx(0.41, abs=0.005)
