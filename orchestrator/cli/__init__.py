"""The command line: one file a command; nothing heavy is imported before it is needed."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from orchestrator.errors import OrchError, suggest

COMMANDS = {
    "train": "Train one model.",
    "sweep": "Search, choose an ensemble, distil a student, compare.",
    "ensemble": "Choose which trained models answer together.",
    "distill": "Train a student from a trained run or ensemble.",
    "evaluate": "Measure something trained on a split of its data.",
    "predict": "Say what a trained model sees in image files.",
    "serve": "Answer over HTTP for trained models and ensembles.",
    "registry": "Give trained models names, numbers and stages.",
    "runs": "List, show and compare runs; remove checkpoints that nobody needs.",
    "data": "Get a data set, or say what it looks like.",
    "validate": "Check experiment files and say everything that is wrong.",
    "doctor": "Examine this machine or a cluster, and prove that training is the same on it.",
    "schema": "Print the JSON Schema of the file, for editors.",
    "list": "List what can stand behind a `type:`.",
    "show": "Show what a model consists of, stage by stage.",
}
"""Each command's one-line help, in the order shown. Its code is the function of the command's
name followed by `_command` in `orchestrator.cli.<name>`, imported when the command is called."""


class LazyGroup(click.Group):
    """A group that shows its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return [*COMMANDS]  # `list` is a module here, once `orch list` has run

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module, or answers None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"orchestrator.cli.{cmd_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Looks the command up; a wrong name is answered with the nearest right ones."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; {suggest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="orch", prog_name="orch")
def cli() -> None:
    """Deep-learning experiments from one YAML file: train, sweep, ensemble, distil, serve."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits: 0 done, 1 the work failed, 2 bad usage, 130 interrupted."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; an error becomes a message on stderr."""
    try:
        code = cli.main(args, prog_name="orch", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OrchError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter's last flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report(error)
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    """Says what failed, orch or code of the user's own, and where the traceback is.

    Returns:
        The exit code: 2 for the user's code, 1 for a defect.
    """
    trace = "".join(traceback.format_exception(error))
    place = _own_code(error)
    what = "unexpected error" if place is None else "error in your own code"
    summary = f"{what}: {type(error).__name__}: {error}"
    if os.environ.get("ORCH_DEBUG") == "1":
        click.echo(trace + summary, err=True)
    else:
        handle, path = tempfile.mkstemp(prefix="orch-error-", suffix=".txt")
        os.close(handle)
        Path(path).write_text(trace, encoding="utf-8", errors="backslashreplace")
        who = "This is a defect of orch" if place is None else f"It happened in {place}"
        click.echo(f"{summary}\n{who}; the traceback is in {path}", err=True)
    return 1 if place is None else 2


def _own_code(error: Exception) -> str | None:
    """Where the user's own code failed, or what it called of a library; None if orch did."""
    root = Path(__file__).resolve().parents[2]
    ours = [root / room for room in ("orchestrator", "models", "serve")]
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    libraries = [Path(sysconfig.get_path(name)).resolve() for name in names]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if any(file.is_relative_to(one) for one in ours):
            return None
        if file.exists() and not any(file.is_relative_to(one) for one in libraries):
            return f"{file}, line {frame.lineno} ({frame.name})"
    return None
