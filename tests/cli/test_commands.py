"""The entry point: exit codes, messages, and what is not imported."""

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.errors import TrialError, UserError

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "ray", "numpy", "deepspeed", "wandb"]


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], [*HEAVY, "pydantic", "yaml"]),
        (["--version"], [*HEAVY, "pydantic", "yaml"]),
        (["validate", "sweeps/efficientnet.yaml", "sweeps/imagenet.yaml"], HEAVY),
        (["list", "optimizers"], HEAVY),
        (["schema"], HEAVY),
        *([[name, "--help"], HEAVY] for name in cli.COMMANDS),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_for_what_is_light(arguments, absent):
    done = python(
        "import sys\nfrom orchestrator.cli import run\n"
        f"code = run({arguments!r})\n"
        f"print([m for m in {absent!r} if m in sys.modules], code, file=sys.stderr)"
    )
    assert done.stderr.splitlines()[-1] == "[] 0", done.stderr
    assert done.stdout


def test_importing_the_package_imports_nothing_heavy():
    done = python(
        "import sys, orchestrator\nfrom orchestrator import load_config\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_public_surface():
    import orchestrator

    assert orchestrator.__all__ == ["evaluate", "load_config", "load_model", "sweep", "train"]
    assert all(callable(getattr(orchestrator, name)) for name in orchestrator.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        orchestrator.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["evaluate", "sweep"])
def test_a_room_does_not_hide_the_function_of_its_name(name):
    import orchestrator
    from orchestrator import api

    room = importlib.import_module(f"orchestrator.{name}")
    assert getattr(orchestrator, name) is room
    expected = inspect.signature(getattr(api, name))
    missing = next(iter(expected.parameters))
    with pytest.raises(TypeError, match=rf"{name}\(\) missing .*'{missing}'"):
        room()


def test_every_command_of_the_table_is_there(capsys):
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, line in cli.COMMANDS.items():
        assert name in shown
        assert line.split()[0] in shown
        assert cli.run([name, "--help"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["list", "modles"], "unknown kind 'modles'; did you mean 'models'?"),
        (["validate"], "Missing argument"),
        (["validate", "a=b"], "name a file"),
        (["train", "no-such-file.yaml"], "error: no-such-file.yaml: can't be read"),
        (["train", "sweeps/resnet.yaml", "model.type=x"], "override 'model.type=x'"),
        (["train", "x.yaml", "--address", "ray://head:10001"], "ray://head:10001 is not supported"),
        (["train", "x.yaml", "--no-such-option"], "No such option"),
    ],
)
def test_bad_usage_ends_with_2(arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.run(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err


@pytest.fixture
def failing(monkeypatch):
    """Makes `orch list` end with an error."""
    from orchestrator.cli import list as command

    def fail(error):
        def raise_it(*args, **kwargs):
            raise error

        monkeypatch.setattr(command.list_command, "callback", raise_it)

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("do that instead"), 2, "error: do that instead\n"),
        (TrialError("trial 3 failed"), 1, "error: trial 3 failed\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_messages_and_exit_codes(failing, capsys, error, code, said):
    failing(error)
    assert cli.run(["list", "models"]) == code
    assert capsys.readouterr().err.endswith(said)


@pytest.fixture
def broken(monkeypatch):
    """Makes `orch list` fail in a line of its own."""
    from orchestrator.cli import list as command

    monkeypatch.setattr(command.list_command, "callback", json.loads)


def test_a_defect_leaves_its_traceback_in_a_file(broken, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("ORCH_DEBUG", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.run(["list", "models"]) == 1
    shown = capsys.readouterr().err
    assert "unexpected error: TypeError: loads() " in shown
    assert "This is a defect of orch" in shown
    assert "Traceback" not in shown
    (file,) = tmp_path.iterdir()
    assert str(file) in shown
    assert "cli.main(" in file.read_text()


def test_a_defect_shows_its_traceback_when_asked(broken, capsys, monkeypatch):
    monkeypatch.setenv("ORCH_DEBUG", "1")
    assert cli.run(["list", "models"]) == 1
    assert "cli.main(" in capsys.readouterr().err


def test_code_of_the_users_own_that_fails_is_named(failing, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("ORCH_DEBUG", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(ZeroDivisionError("oh"))
    assert cli.run(["list", "models"]) == 2
    shown = capsys.readouterr().err
    assert "error in your own code: ZeroDivisionError: oh" in shown
    assert f"It happened in {__file__}, line " in shown and "(raise_it)" in shown
    assert "defect" not in shown and "Traceback" not in shown


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m orchestrator schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout in ("0\n", "1\n")


def test_stdout_holds_one_document_whatever_libraries_print():
    done = python(
        "import os, sys\nfrom orchestrator.cli.common import json_stdout\n"
        "with json_stdout(True) as emit:\n"
        "    print('from python'); os.write(1, b'from C\\n'); os.system('echo from a child')\n"
        "    emit({'loss': float('nan'), 'values': (1, 2.5)})\n"
    )
    assert json.loads(done.stdout) == {"loss": None, "values": [1, 2.5]}
    assert {"from python", "from C", "from a child"} <= set(done.stderr.splitlines())
