"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def config_arguments(command: F) -> F:
    """Adds `CONFIG` (as `config: Path`) and `key=value ...` (as `overrides`)."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("config", type=click.Path(path_type=Path))(command)


def runs_dir_option(command: F) -> F:
    """Adds `--runs-dir` (as `runs_dir: Path`)."""
    return click.option(
        "--runs-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="ORCH_RUNS",
        default="runs",
        show_default=True,
        show_envvar=True,
        help="Folder that holds run folders.",
    )(command)


def json_option(command: F) -> F:
    """Adds `--json` (as `as_json: bool`)."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
    )(command)


def address_option(command: F) -> F:
    """Adds `--address` (as `address: str | None`)."""
    return click.option(
        "--address",
        callback=_check_address,
        metavar="auto|HOST:PORT",
        help="Ray cluster to work on; without it, this machine.",
    )(command)


def run_options(command: F) -> F:
    """Adds everything that `orch train` and `orch sweep` have in common."""
    dry_run = click.option(
        "--dry-run", is_flag=True, help="Say what would happen, without training."
    )
    resume = click.option("--resume", is_flag=True, help="Go on with what is unfinished.")
    for option in (json_option, runs_dir_option, dry_run, resume, address_option):
        command = option(command)
    return config_arguments(command)


def _check_address(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuses the addresses that Ray would take but that do not keep a run alive."""
    if value is None or "://" not in value:
        return value
    raise click.BadParameter(
        f"{value} is not supported; run orch on a node of the cluster with --address auto"
    )


def split_overrides(arguments: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Parts arguments into files and overrides: what contains `=` is an override."""
    files = [Path(argument) for argument in arguments if "=" not in argument]
    return files, [argument for argument in arguments if "=" in argument]


@contextlib.contextmanager
def json_stdout(active: bool) -> Iterator[Callable[[Any], None]]:
    """Keeps stdout for one JSON document; gives the function that prints it.

    While active, everything else that is written to stdout, by libraries and child processes
    too, goes to stderr. When not active, the function prints nothing.
    """
    if not active:
        yield lambda document: None
        return
    sys.stdout.flush()
    documents: list[Any] = []
    with _stdout_to_stderr():
        yield documents.append
    for document in documents:
        print_json(document)


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout; NaN and infinity become null."""
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    click.echo(text)


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    last: Literal["whole", "fold", "cut"] = "whole",
) -> None:
    """Prints plain columns rather than boxes, so that `grep` and `cut` work on them.

    Args:
        header: what stands above the columns.
        rows: as many cells each.
        right: the columns of numbers, which end below each other.
        last: what becomes of the last column where a terminal is too narrow for it: it may go on
            in further lines, or end early. Where little of it would be seen it is left out, and
            the column before it may end early.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    margin = sum(widths[:-1]) + 2 * len(widths[:-1])
    # Elsewhere than on a terminal lines may be as long as they are.
    room = shutil.get_terminal_size().columns - margin if sys.stdout.isatty() else widths[-1]
    if last == "cut" and room < min(20, widths[-1]) and len(header) > 1:
        print_table(header[:-1], [row[:-1] for row in rows], right=right, last="cut")
        return
    for row in [header, *rows]:
        text = [row[-1]]
        if last == "fold":
            text = textwrap.wrap(row[-1], max(room, 20)) or [""]
        elif last == "cut" and len(row[-1]) > room:
            text = [row[-1][: room - 1] + "…"]
        cells = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip([*row[:-1], text[0]], widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())
        for line in text[1:]:
            click.echo(" " * margin + line)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a metric that is not finite is null."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Sends the descriptor and Python's stream of stdout to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        saved = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)
