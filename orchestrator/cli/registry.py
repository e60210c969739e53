"""`orch registry`: trained models with a name, a number and a stage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import json_option, print_json, print_table, runs_dir_option

if TYPE_CHECKING:
    from orchestrator.run_folder.registry import ModelVersion

_STAGES = click.Choice(["none", "staging", "production", "archived"])


@click.group("registry")
def registry_command() -> None:
    """Give trained models names, numbers and stages.

    Every command that takes a TARGET takes `registry:NAME`, `registry:NAME@3` and
    `registry:NAME@production` too.
    """


@registry_command.command("register")
@click.argument("target")
@click.option("--name", help="By default what `orch serve` would call it.")
@click.option("--stage", type=_STAGES, default="none", show_default=True)
@click.option("--note", default="", help="A line for people.")
@runs_dir_option
@json_option
def register_command(
    target: str, name: str | None, stage: str, note: str, runs_dir: Path, as_json: bool
) -> None:
    """Add TARGET (a run, a sweep's ensemble, an ensemble) as the next version of its name."""
    from orchestrator.run_folder.paths import resolve_target
    from orchestrator.run_folder.registry import Registry, stage_of
    from orchestrator.serve.targets import find_one

    served = find_one(target, runs_dir)
    registry = Registry(runs_dir)
    found = resolve_target(served.root, runs_dir)
    version = registry.register(found, name or served.name, note)
    if stage != "none":
        version = registry.promote(version.key, stage_of(stage))
    _say(version, as_json, f"registered {version.key} ({version.stage}): {version.path}")


@registry_command.command("promote")
@click.argument("reference", metavar="NAME@VERSION")
@click.option("--stage", type=_STAGES, default="production", show_default=True)
@runs_dir_option
@json_option
def promote_command(reference: str, stage: str, runs_dir: Path, as_json: bool) -> None:
    """Put a version on a stage; the version that was in production is archived."""
    from orchestrator.run_folder.registry import Registry, stage_of

    version = Registry(runs_dir).promote(reference, stage_of(stage))
    _say(version, as_json, f"{version.key} is {version.stage} now")


@registry_command.command("rollback")
@click.argument("name")
@runs_dir_option
@json_option
def rollback_command(name: str, runs_dir: Path, as_json: bool) -> None:
    """Bring back the version that was in production before."""
    from orchestrator.run_folder.registry import Registry

    version = Registry(runs_dir).rollback(name)
    _say(version, as_json, f"{version.key} is {version.stage} again")


@registry_command.command("list")
@click.argument("name", required=False)
@runs_dir_option
@json_option
def list_command(name: str | None, runs_dir: Path, as_json: bool) -> None:
    """List the versions of NAME, or of every name."""
    from orchestrator.run_folder.registry import Registry

    registry = Registry(runs_dir)
    names = [name] if name else registry.names()
    versions = [version for one in names for version in registry.versions(one)]
    if as_json:
        print_json([asdict(version) for version in versions])
        return
    rows = [
        [one.key, one.stage, one.kind, one.created, str(one.origin.get("source", one.path))]
        for one in versions
    ]
    if not rows:
        click.echo(f"nothing is registered in {registry.folder}")
        return
    print_table(["version", "stage", "kind", "registered", "source"], rows)


@registry_command.command("show")
@click.argument("reference", metavar="NAME[@VERSION|@STAGE]")
@runs_dir_option
@json_option
def show_command(reference: str, runs_dir: Path, as_json: bool) -> None:
    """Show where a version comes from, and whether its files are still the same."""
    from orchestrator.errors import RunFolderError
    from orchestrator.run_folder.registry import Registry, check_files

    registry = Registry(runs_dir)
    version = registry.find(reference)
    try:
        check_files(registry.root(version), version.files.items(), version.key)
        problem = ""
    except RunFolderError as error:
        problem = str(error)
    if as_json:
        print_json(asdict(version) | {"intact": not problem, "problem": problem})
        return
    click.echo(f"{version.key}  {version.stage}  {version.kind}  {version.created}")
    origin: dict[str, Any] = {"note": version.note, **version.origin}
    for key, value in origin.items():
        if value not in (None, "", [], {}):
            click.echo(f"  {key.replace('_', ' ')}: {_text(value)}")
    for path, digest in version.files.items():
        click.echo(f"  {path}  sha256 {digest}")
    click.echo(f"  {problem or 'all files are as they were registered'}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:.4g}" for key, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _say(version: ModelVersion, as_json: bool, text: str) -> None:
    if as_json:
        print_json(asdict(version))
    else:
        click.echo(text)
