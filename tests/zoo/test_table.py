"""What is counted in models: against hand formulas, torchvision's figures and the docs' page."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import orchestrator.models
from orchestrator import models
from orchestrator.analysis import model_table
from orchestrator.analysis.model_summary import Input, describe, summarize
from orchestrator.analysis.model_table import Figures, count_all, kept_figures, markdown, short
from orchestrator.config.base import find
from orchestrator.errors import UserError

ROOT = Path(__file__).parents[2]
TORCHVISION = {
    name: known.reference.partition(":")[2]
    for name in models.names()
    if (known := models.published(name)) and known.reference.startswith("torchvision:")
}


@pytest.fixture(scope="module")
def figures():
    """Counted once for all source texts that are the same; see the tests of what is kept."""
    return kept_figures() or count_all()


def section(name: str, **options):
    return find("model", name).config.model_validate({"type": name, **options})


# --- against formulas ------------------------------------------------------------------------


def follow(network: nn.Module, *shape: int):
    return summarize(network.to("meta"), torch.empty(1, *shape, device="meta"))


@pytest.mark.parametrize(
    ("layer", "parameters", "multiply_adds", "output"),
    [
        # Each of 6·6·5 places sees 3·3 pixels of 4 channels, for each of 8 outputs.
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), 8 * 4 * 9 + 8, 36 * 8 * 4 * 9, (1, 8, 6, 6)),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), 8 * 2 * 9 + 8, 144 * 8 * 2 * 9, (1, 8, 12, 12)),
        (nn.Conv2d(4, 4, 5, groups=4, bias=False), 4 * 25, 64 * 4 * 25, (1, 4, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 4 * 6 * 4 + 6, 144 * 4 * 6 * 4, (1, 6, 24, 24)),
        (nn.Linear(12, 7), 12 * 7 + 7, 4 * 12 * 12 * 7, (1, 4, 12, 7)),
        (nn.BatchNorm2d(4), 8, 0, (1, 4, 12, 12)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_cost_what_the_formula_says(layer, parameters, multiply_adds, output):
    found = follow(nn.Sequential(layer, nn.ReLU()), 4, 12, 12)
    assert (found.parameters, found.multiply_adds) == (parameters, multiply_adds)
    (stage,) = found.stages
    (row,) = stage.layers  # the rectifier has nothing to count
    assert (stage.name, row.name, row.kind) == ("forward", "0", type(layer).__name__)
    assert (row.parameters, row.multiply_adds) == (parameters, multiply_adds)
    assert row.outputs == stage.outputs == (output,)


class Attention(nn.Module):
    """One head of 16 features, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.qkv = nn.Linear(16, 48)

    def forward(self, x_NTD):
        q, k, v = (self.qkv(x_NTD) * self.scale.repeat(3)).chunk(3, -1)
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def test_a_layer_counts_what_it_does_itself_and_a_stage_all():
    found = follow(nn.Sequential(Attention()), 10, 16)
    outer, inner = found.stages[0].layers
    assert (outer.name, outer.kind, outer.parameters) == ("0", "Attention", 16)
    assert outer.multiply_adds == 2 * 10 * 10 * 16  # queries with keys, weights with values
    assert (inner.name, inner.parameters) == ("0.qkv", 16 * 48 + 48)
    assert inner.multiply_adds == 10 * 16 * 48
    assert found.stages[0].multiply_adds == 2 * 10 * 10 * 16 + 10 * 16 * 48
    assert found.stages[0].parameters == found.parameters == 16 + 16 * 48 + 48


def test_weights_that_are_used_twice_count_once_and_multiply_twice():
    layer = nn.Linear(5, 5, bias=False)
    found = follow(nn.Sequential(layer, layer), 5)
    assert (found.parameters, found.multiply_adds) == (25, 50)
    assert [row.parameters for row in found.stages[0].layers] == [25, 0]
    assert [row.multiply_adds for row in found.stages[0].layers] == [25, 25]


def test_resnet50_by_hand():
    found = describe(section("resnet50"), Input((3, 224, 224)))
    stages = {stage.name: stage for stage in found.stages}
    assert found.parameters == 25_557_032
    assert found.multiply_adds == pytest.approx(4.1e9, rel=0.005)
    assert stages["stem"].multiply_adds == 112 * 112 * 64 * 3 * 49
    assert stages["stem"].outputs == ((1, 64, 56, 56),)
    # 1×1, 3×3 and 1×1 convolutions of 64, 64 and 256 channels, on 56² places, and the shortcut.
    assert stages["layer1.0"].multiply_adds == 56**2 * 64 * (64 + 9 * 64 + 256 + 256)
    classifier = stages["head"].layers[-1]
    assert (classifier.name, classifier.multiply_adds) == ("fc", 2048 * 1000)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16", "swin_tiny", "googlenet"])
def test_stages_add_up(name):
    found = describe(section(name), model_table.usual_input(section(name)))
    assert sum(stage.parameters for stage in found.stages) == found.parameters
    assert sum(stage.multiply_adds for stage in found.stages) == found.multiply_adds
    for stage in found.stages:
        assert sum(layer.parameters for layer in stage.layers) <= stage.parameters
        assert sum(layer.multiply_adds for layer in stage.layers) <= stage.multiply_adds


def test_half_the_width_is_a_quarter_of_the_work():
    whole, half = (
        describe(section("resnet18", width=width, stem="small"), Input((3, 32, 32), 10))
        for width in (1.0, 0.5)
    )
    assert half.multiply_adds / whole.multiply_adds == pytest.approx(0.25, rel=0.01)


def test_counting_changes_no_random_state():
    before = torch.get_rng_state()
    describe(section("vit_tiny_patch16"), Input((3, 224, 224)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_needs_numbers_is_named():
    given = section("import", target="torch.nn:NLLLoss")
    with pytest.raises(UserError, match=r"model import does not run on an input of 3×8×8 without"):
        describe(given, Input((3, 8, 8)))


# --- against torchvision ---------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHVISION)
def test_figures_are_torchvisions(name, figures, torchvision):
    theirs = torchvision.models.get_model_weights(TORCHVISION[name])["IMAGENET1K_V1"]
    side = theirs.transforms.keywords["crop_size"]
    ours = figures[name]
    if side == ours.input[-1]:
        parameters, cost = ours.parameters, ours.multiply_adds
    else:
        found = describe(section(name), Input((3, side, side)))
        parameters, cost = found.parameters, found.multiply_adds
    if name == "googlenet":  # its file has two more classifiers, which it then drops
        parameters = describe(section(name, aux=False), Input((3, side, side))).parameters
    assert parameters == theirs.meta["num_params"]
    # In billions, three digits behind the point. We also count means that are matrix products.
    assert cost / 1e9 == pytest.approx(theirs.meta["_ops"], rel=0.01, abs=0.0006)


def test_parameters_are_the_checkpoints(figures):
    pairs = {name: (one.parameters, one.reference_parameters) for name, one in figures.items()}
    assert {name for name, (_, theirs) in pairs.items() if theirs} >= set(TORCHVISION)
    assert all(theirs in (None, ours) for ours, theirs in pairs.values())


# --- the page and what is kept ---------------------------------------------------------------


def test_the_docs_have_todays_figures(figures):
    page = (ROOT / "docs" / "models.md").read_text()
    assert page == markdown(figures.values()), "run: orch list models --markdown > docs/models.md"


def test_a_line_of_the_page():
    one = Figures("net", 1_234_567, 4_089_284_608, (3, 224, 224), "He, 2016", "1.2M", "timm:n", 9)
    own = Figures("own", 54_264, 999, (128,))
    *_, first, second = markdown([one, own]).splitlines()
    assert first == "| `net` | 1,234,567 | 9 | 1.2M | 4.089G | 224 px | `timm:n` | He, 2016 |"
    assert second == "| `own` | 54,264 |  |  | 999 | 128 tok |  |  |"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (25_557_032, "25.56M"), (17_563_828_224, "17.56G")],
)
def test_short_numbers(number, text):
    assert short(number) == text


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Two models, and a copy of their source that may be changed."""
    source = tmp_path / "models"
    shutil.copytree(ROOT / "models", source, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(model_table, "FAMILIES", {"resnet": ("resnet18",), "lenet": ("lenet5",)})
    monkeypatch.setattr(orchestrator.models, "__file__", str(source / "__init__.py"))
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    return source


def test_figures_are_kept_until_a_source_changes(few):
    assert kept_figures() is None
    found = count_all()
    assert list(found) == ["resnet18", "lenet5"]
    assert kept_figures() == found
    (few / "resnet.py").write_text((few / "resnet.py").read_text() + "\n")
    assert kept_figures() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": 1, "models": []}', "\0"])
def test_a_damaged_file_is_counted_again(few, tmp_path, content):
    count_all()
    (tmp_path / "cache" / "models.json").write_text(content)
    assert kept_figures() is None


def test_lines_of_another_version_are_counted_again(few, tmp_path):
    count_all()
    path = tmp_path / "cache" / "models.json"
    kept = json.loads(path.read_text())
    kept["models"][0]["colour"] = "red"
    path.write_text(json.dumps(kept))
    assert kept_figures() is None


def test_a_folder_that_cannot_be_written_is_done_without(few, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert list(count_all()) == ["resnet18", "lenet5"]
    assert kept_figures() is None


def test_a_listing_needs_no_torch_once_counted(figures):
    code = (
        "import sys\nfrom orchestrator.cli import run\ncode = run(['list', 'models'])\n"
        "print('torch' in sys.modules, code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "False 0\n"
    assert len(done.stdout.splitlines()) >= len(figures) + 1
