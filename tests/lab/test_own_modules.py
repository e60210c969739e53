"""A run with its user's own modules works from any folder, also once they are gone there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILE = """
name: own
data: {{source: {{type: digits}}}}
{model}
scale: {{cpus: 1, gpus: 0}}
train: {{for: 20 steps, batch_size: 64, precision: fp32, memory_format: contiguous}}
evaluate: {{every: 20 steps}}
"""
MODELS = {
    "plugin": "plugins: [my_parts]\nmodel: {type: my_mlp, hidden: 24}",
    "import": "model: {type: import, target: 'my_nets:Mlp', args: {outputs: $outputs}}",
}
# Neither names torch at the top, or the other file by an import: only a text does.
PARTS = """
from typing import Literal
from orchestrator.config.base import part
from orchestrator.config.model import Model

@part("model", "my_mlp", build="my_nets:build")
class MyMlp(Model):
    type: Literal["my_mlp"] = "my_mlp"
    hidden: int = 16
"""
NETS = """
from torch import nn
from my_sizes import PIXELS

class Mlp(nn.Sequential):
    def __init__(self, outputs, hidden=24):
        layers = nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        super().__init__(nn.Flatten(), *layers)

def build(config, *, outputs, shape):
    return Mlp(outputs, config.hidden)
"""
SERVED = """
import sys, torch
from pathlib import Path
from orchestrator.serve.predictor import load_predictor
from orchestrator.serve.targets import find_served
(one,) = find_served(sys.argv[1:], Path("runs"))
answer = load_predictor(one.root, one.name).predict(torch.rand(3, 1, 8, 8))
print(list(answer.shape), bool(torch.allclose(answer.sum(1), torch.ones(3))))
"""


def command(*arguments, cwd, code=0):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def orch(*arguments, cwd, code=0):
    return command("-m", "orchestrator", *arguments, cwd=cwd, code=code)


@pytest.fixture(scope="module", params=["plugin", pytest.param("import", marks=pytest.mark.slow)])
def places(request, tmp_path_factory):
    """A run whose project is gone, and a folder elsewhere."""
    folder = tmp_path_factory.mktemp(request.param)
    project, elsewhere, runs = folder / "project", folder / "elsewhere", folder / "runs"
    project.mkdir()
    elsewhere.mkdir()
    (project / "own.yaml").write_text(FILE.format(model=MODELS[request.param]))
    (project / "my_parts.py").write_text(PARTS)
    (project / "my_nets.py").write_text(NETS)
    (project / "my_sizes.py").write_text("PIXELS = 64\n")
    orch("train", project / "own.yaml", "--runs-dir", runs, cwd=elsewhere)
    shutil.rmtree(project)
    return runs / "own", elsewhere


def best(run: Path) -> float:
    return json.loads((run / "status.json").read_text())["best"]["value"]


def test_it_is_evaluated(places):
    run, elsewhere = places
    done = orch("evaluate", run, "--json", cwd=elsewhere)
    assert json.loads(done.stdout)["accuracy"] == pytest.approx(best(run), abs=1e-6)


def test_it_is_repeated_from_its_own_file(places):
    run, elsewhere = places
    orch("train", run / "config.yaml", "--runs-dir", run.parent, cwd=elsewhere)
    again = run.with_name("own-2")
    assert best(again) == best(run)
    kept = [json.loads((one / "code" / "code.json").read_text())["files"] for one in (run, again)]
    assert kept[0] == kept[1]
    assert kept[0].keys() >= {"my_nets.py", "my_sizes.py"}


def test_it_is_served(places):
    run, elsewhere = places
    done = command("-c", SERVED, run, cwd=elsewhere)
    assert done.stdout == "[3, 10] True\n", done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_rays_workers_find_it(places):
    run, elsewhere = places
    changes = ["name=two", "scale.workers=2", "train.micro_batch=32", "train.for=2 steps"]
    orch("train", run / "config.yaml", *changes, "--runs-dir", run.parent, cwd=elsewhere)
    assert json.loads((run.with_name("two") / "status.json").read_text())["state"] == "done"


def test_without_originals_and_copies_it_is_said(places):
    run, elsewhere = places
    bare = run.with_name("bare")
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "code")
    shutil.rmtree(bare / "predictions")
    done = orch("evaluate", bare, cwd=elsewhere, code=2)
    if "my_parts" in (bare / "config.yaml").read_text():
        said = "there is no module 'my_parts'; it must be installed, or stand beside this file"
    else:
        said = "was made with the module 'my_nets', of which neither the original nor the run's"
    assert said in done.stderr
