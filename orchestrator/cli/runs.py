"""`orch runs`: what is in the runs folder, and what of it may go."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.common import json_option, print_json, print_table, runs_dir_option


@click.group("runs")
def runs_command() -> None:
    """List, show and compare runs; remove checkpoints that nobody needs."""


@runs_command.command("list")
@click.option("--all", "everything", is_flag=True, help="The parts of sweeps too.")
@runs_dir_option
@json_option
def list_command(everything: bool, runs_dir: Path, as_json: bool) -> None:
    """Runs, sweeps and ensembles, the newest first."""
    from orchestrator.cli.run_catalog import summaries

    found = summaries(runs_dir, everything)
    if as_json:
        print_json({"runs": [asdict(one) for one in found]})
        return
    if not found:
        click.echo(f"there is no run in {runs_dir}", err=True)
        return
    header = ["name", "kind", "state", "best", "epochs", "trials", "age"]
    rows = [
        [
            one.name,
            one.kind,
            one.state,
            *map(_text, (one.best, one.epoch, one.trials)),
            _age(one.age),
        ]
        for one in found
    ]
    print_table(header, rows)


@runs_command.command("show")
@click.argument("name")
@runs_dir_option
@json_option
def show_command(name: str, runs_dir: Path, as_json: bool) -> None:
    """Digest, best and last metrics, timings and checkpoints of NAME."""
    from orchestrator.cli.run_catalog import details

    found = details(name, runs_dir)
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if value in (None, "", {}, []):
            continue
        click.echo(f"{key}: {value if not isinstance(value, dict | list) else ''}".rstrip())
        items = value.items() if isinstance(value, dict) else ()
        for name_, item in items:
            click.echo(f"  {name_}: {_inline(item)}")
        for item in value if isinstance(value, list) else ():
            click.echo(f"  {_inline(item)}")


@runs_command.command("compare")
@click.argument("names", nargs=-1, required=True)
@runs_dir_option
@json_option
def compare_command(names: tuple[str, ...], runs_dir: Path, as_json: bool) -> None:
    """Where the configurations of NAMES differ, and their results."""
    from orchestrator.cli.run_catalog import compare

    if len(names) < 2:
        raise click.UsageError(f"compare needs two names or more, but got {names[0]!r} alone")
    found = compare(names, runs_dir)
    if as_json:
        print_json(asdict(found))
        return
    for title, section in (("config", found.config), ("results", found.metrics)):
        rows = [[key, *map(_text, values)] for key, values in section.items()]
        print_table([title, *found.names], rows or [["(the same)", *("" for _ in names)]])
        click.echo()


@runs_command.command("prune")
@click.argument("names", nargs=-1)
@click.option("--failed", is_flag=True, help="Failed runs too, which then can't be resumed.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@runs_dir_option
@json_option
def prune_command(
    names: tuple[str, ...], failed: bool, dry_run: bool, yes: bool, runs_dir: Path, as_json: bool
) -> None:
    """Remove the checkpoints of finished runs, except the best.

    NAMES are runs or sweeps; without any, everything in the runs folder is looked at. Exported
    models, metrics and predictions stay; so does everything of runs that may still be resumed.
    """
    from orchestrator.cli.run_catalog import plan_removals, remove

    plan = plan_removals(names, runs_dir, failed)
    total = sum(one.size for one in plan)
    for one in plan:
        steps = ", ".join(str(checkpoint.step) for checkpoint in one.checkpoints)
        click.echo(f"{one.name}: step {steps} ({_bytes(one.size)})", err=True)
    if plan and not (dry_run or yes):
        click.confirm(f"remove {_bytes(total)}?", abort=True, err=True)
    if not dry_run:
        for one in plan:
            remove(one)
    if as_json:
        removed = {one.name: [checkpoint.step for checkpoint in one.checkpoints] for one in plan}
        print_json({"removed": removed, "bytes": total, "dry_run": dry_run})
    else:
        what = "would be freed" if dry_run else "freed"
        click.echo(f"{_bytes(total)} {what}" if plan else "nothing to remove")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _age(seconds: float) -> str:
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
