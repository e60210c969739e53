"""`orch show MODEL` and what `orch list models` adds to a list."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.analysis import model_table
from orchestrator.analysis.model_table import Figures
from orchestrator.cli.common import print_table

ROOT = Path(__file__).parents[2]


def show(capsys, *arguments):
    assert cli.run(["show", *arguments]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def document(capsys, *arguments):
    return json.loads(show(capsys, *arguments, "--json"))


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of some width."""

    def of(columns):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))

    return of


# --- show ------------------------------------------------------------------------------------


def test_what_people_see(capsys):
    lines = show(capsys, "resnet50").splitlines()
    assert lines[:4] == [
        "resnet50   Residual networks (He et al., 2016).",
        "paper      He et al., 2016",
        "reference  torchvision:resnet50, 25,557,032 parameters",
        "input      3×224×224, 1,000 classes",
    ]
    cells = [line.split() for line in lines]
    assert ["stage", "output", "parameters", "multiply-adds"] in cells
    assert ["stem", "1×64×56×56", "9,536", "118M"] in cells
    assert ["total", "25,557,032", "4.089G"] in cells
    assert not any("conv" in line for line in lines)
    assert cells[6][:3] == ["stem", "auto", "auto"]


def test_the_papers_own_figure_is_told(capsys):
    lines = show(capsys, "efficientnet_b0").splitlines()
    assert lines[1].split(maxsplit=1) == ["paper", "Tan and Le, 2019, which states 5.3M parameters"]


def test_layers_stand_below_their_stage(capsys):
    lines = [line.split() for line in show(capsys, "resnet18", "--layers").splitlines()]
    first = lines.index(["stem", "1×64×56×56", "9,536", "118M"])
    assert lines[first + 1] == ["conv1", "1×64×112×112", "9,408", "118M", "Conv2d"]
    assert lines[first + 2] == ["bn1", "1×64×112×112", "128", "-", "BatchNorm2d"]


def test_one_document_and_nothing_else(capsys):
    found = document(capsys, "resnet50")
    assert found["format"] == 1
    assert found["published"]["reference"] == "torchvision:resnet50"
    assert found["published"]["parameters"] == found["summary"]["parameters"] == 25_557_032
    assert found["input"]["shape"] == [3, 224, 224]
    stages = found["summary"]["stages"]
    assert [stages[0]["name"], stages[-1]["name"]] == ["stem", "head"]
    assert set(stages[0]) == {"name", "outputs", "parameters", "multiply_adds"}
    assert sum(one["multiply_adds"] for one in stages) == found["summary"]["multiply_adds"]
    detailed = document(capsys, "resnet50", "--layers")["summary"]["stages"]
    assert detailed[-1]["layers"][-1]["name"] == "fc"


def test_options_and_inputs_change_the_network(capsys):
    given = ["resnet18", "width=0.5", "model.dropout=0.1"]
    found = document(capsys, *given, "--size", "28x32", "--channels", "1", "--classes", "10")
    assert found["input"]["shape"] == [1, 28, 32]
    assert found["summary"]["stages"][0]["outputs"] == [[1, 32, 28, 32]]
    # 3×3 convolution of one channel to 32 and its norm; 256 features to ten classes.
    assert found["summary"]["stages"][0]["parameters"] == 32 * 9 + 64
    assert found["summary"]["stages"][-1]["parameters"] == 2570
    options = {one["name"]: (one["value"], one["default"]) for one in found["options"]}
    assert options["width"] == (0.5, 1.0)
    assert options["dropout"] == (0.1, 0.0)
    assert "weights" not in options


def test_a_section_for_several_models_shows_the_keys_of_this_one(capsys):
    named = {
        name: {one["name"] for one in document(capsys, name)["options"]}
        for name in ("efficientnet", "efficientnet_small")
    }
    assert named["efficientnet"] - named["efficientnet_small"] == {"phi"}
    assert all(one["about"] for one in document(capsys, "efficientnet")["options"][:2])


def test_a_text_model_reads_tokens(capsys):
    given = ["gru", "--length", "16", "--vocabulary", "50", "--classes", "2"]
    found = document(capsys, *given)
    assert found["input"]["shape"] == [16]
    assert found["input"]["vocabulary"] == 50
    assert found["summary"]["stages"][-1]["outputs"] == [[1, 2]]
    assert "input  16 tokens of 50, 2 classes\n" in show(capsys, *given)


def test_several_tensors_between_stages_stay_on_a_line(capsys):
    lines = [line.split() for line in show(capsys, "densenet121").splitlines()]
    first, second = (
        next(line for line in lines if line[:1] == [f"denseblock1.{n}"]) for n in (1, 2)
    )
    assert first[1:4] == ["1×64×56×56", "+", "1×32×56×56"]
    assert second[1:5] == ["1×64×56×56", "+", "2", "more"]


def test_any_module_that_can_be_imported(capsys):
    given = ["target=torch.nn:Conv2d", "args={in_channels: $channels, out_channels: $outputs, "]
    given[1] += "kernel_size: 3}"
    found = document(capsys, "import", *given, "--size", "8", "--classes", "5")
    assert found["summary"]["stages"] == [
        {
            "name": "forward",
            "outputs": [[1, 5, 6, 6]],
            "parameters": 5 * 3 * 9 + 5,
            "multiply_adds": 36 * 5 * 3 * 9,
        }
    ]
    assert found["published"] is None


def test_a_plugins_model():
    command = [sys.executable, "-m", "orchestrator", "show", "example_mlp", "hidden=4", "--json"]
    command += ["--plugin", "example_parts.orch", "--size", "8", "--channels", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT / "tests" / "plugin_example"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["multiply_adds"] == 64 * 4 + 4 * 1000
    assert found["options"] == [
        {"name": "hidden", "value": 4, "default": 32, "about": "Units of the hidden layer."}
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet51"], "unknown model 'resnet51'; did you mean 'resnet50'"),
        (["resnet50", "widht=0.5"], "unknown key for 'resnet50'; did you mean 'width'"),
        (["resnet50", "width=-1"], "model.width: must be above 0, got -1"),
        (["resnet50", "width=a", "stem=b"], "model.stem: must be"),
        (["resnet50", "width"], "'width' is no KEY=VALUE, such as width=0.5"),
        (["resnet50", "--size", "4"], "image_size must be"),
        (["resnet50", "--size", "big"], "'big' must be PIXELS or HEIGHTxWIDTH"),
        (["resnet50", "--length", "9"], "resnet50 reads images, so leave --length out"),
        (["gru", "--size", "9"], "gru reads tokens, so leave --size out"),
        (["resnet50", "--classes", "0"], "0 is not in the range"),
        (["import"], "model.target: is missing"),
        (["resnet50", "type=vgg11"], "the model is resnet50, so leave type=vgg11 out"),
        (["import", "target=torch.nn:Nothing"], "torch.nn has no attribute 'Nothing'"),
        (["import", "target=torch.nn:NLLLoss"], "does not run on an input of 3×32×32"),
        ([], "Missing argument 'MODEL'"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_bad_usage_ends_with_2(arguments, said, form, capsys):
    assert cli.run(["show", *arguments, *form]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "efficientnet_b0"])
def test_a_terminal_is_wide_enough(name, columns, capsys, terminal):
    terminal(columns)
    lines = show(capsys, name).splitlines()
    assert max(map(len, lines)) <= columns


# --- list models -----------------------------------------------------------------------------

LISTED = {
    "resnet18": Figures(
        "resnet18", 11_689_512, 1_814_098_432, (3, 224, 224), "He, 2016", "", "torchvision:resnet18"
    ),
    "gru": Figures("gru", 1_833_448, 38_004_736, (128,)),
}


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(model_table, "kept_figures", lambda: LISTED)


def test_a_table_of_models(counted, capsys):
    assert cli.run(["list", "models"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "params", "mult-adds", "input", "paper", "summary"]
    by_name = {line[0]: line for line in lines}
    assert by_name["resnet18"][:7] == ["resnet18", "11.69M", "1.814G", "224", "px", "He,", "2016"]
    assert by_name["resnet18"][7:9] == ["Residual", "networks"]
    assert by_name["gru"][:5] == ["gru", "1.833M", "38M", "128", "tok"]
    assert by_name["import"][:4] == ["import", "-", "-", "-"]


def test_models_as_json(counted, capsys):
    assert cli.run(["list", "models", "--json"]) == 0
    shown = capsys.readouterr()
    items = {item["name"]: item for item in json.loads(shown.out)["items"]}
    one = items["resnet18"]
    assert one["summary"].startswith("Residual networks")
    assert (one["parameters"], one["multiply_adds"]) == (11_689_512, 1_814_098_432)
    assert (one["paper"], one["input"], one["reference"]) == (
        "He, 2016",
        [3, 224, 224],
        "torchvision:resnet18",
    )
    assert set(items["import"]) == {"name", "summary"}


def test_markdown_is_the_page(counted, capsys):
    assert cli.run(["list", "models", "--markdown"]) == 0
    assert capsys.readouterr().out == model_table.markdown(LISTED.values())


@pytest.mark.parametrize(
    "arguments", [["optimizers", "--markdown"], ["models", "--markdown", "--json"]]
)
def test_markdown_is_for_models(arguments, capsys):
    assert cli.run(["list", *arguments]) == 2
    assert "--markdown is for `orch list models`" in capsys.readouterr().err


def test_counting_is_announced_and_kept_off_stdout(monkeypatch, capsys):
    monkeypatch.setattr(model_table, "kept_figures", lambda: None)
    monkeypatch.setattr(model_table, "count_all", lambda: LISTED)
    assert cli.run(["list", "models", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["kind"] == "models"
    assert shown.err.startswith("counting ")


@pytest.mark.parametrize(("columns", "last"), [(80, "paper"), (120, "summary")])
def test_a_list_fits_its_terminal(columns, last, capsys, terminal):
    assert cli.run(["list", "models"]) == 0  # counted where no test before has
    capsys.readouterr()
    terminal(columns)
    assert cli.run(["list", "models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].split()[-1] == last
    assert any(line.endswith("…") for line in lines)


# --- columns ---------------------------------------------------------------------------------


ROWS = [["a", "1", "short"], ["bb", "20", "word " * 12 + "end"]]


@pytest.mark.parametrize("last", ["whole", "fold", "cut"])
def test_lines_are_whole_where_no_terminal_is(last, capsys):
    print_table(["n", "size", "text"], ROWS, right=(1,), last=last)
    assert capsys.readouterr().out.splitlines() == [
        "n   size  text",
        "a      1  short",
        "bb    20  " + "word " * 12 + "end",
    ]


def test_the_last_column_folds(capsys, terminal):
    terminal(40)
    print_table(["n", "size", "text"], ROWS, right=(1,), last="fold")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "bb    20  word word word word word word",
        "          word word word word word word",
        "          end",
    ]


@pytest.mark.parametrize(("columns", "text"), [(40, "  word word word word word word…"), (29, "")])
def test_the_last_column_is_cut_or_left_out(columns, text, capsys, terminal):
    terminal(columns)
    print_table(["n", "size", "text"], ROWS, right=(1,), last="cut")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "bb    20" + text
    assert max(map(len, lines)) <= columns
