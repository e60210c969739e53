"""`orch doctor`: can this machine, or this cluster, be trusted?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import (
    address_option,
    json_option,
    json_stdout,
    print_table,
    runs_dir_option,
)

if TYPE_CHECKING:
    from orchestrator.doctor.parity import Verdict
    from orchestrator.launch.examination import Examination


@click.command("doctor")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--workers", type=click.IntRange(1), help="Workers of the parity runs.")
@click.option(
    "--steps", type=click.IntRange(1), default=8, show_default=True, help="Steps of each."
)
@click.option("--no-parity", is_flag=True, help="Look at the nodes only; train nothing.")
@address_option
@runs_dir_option
@json_option
def doctor_command(
    config: Path | None,
    overrides: tuple[str, ...],
    workers: int | None,
    steps: int,
    no_parity: bool,
    address: str | None,
    runs_dir: Path,
    as_json: bool,
) -> int:
    """Examine this machine, or a cluster: versions, storage, clocks, network, and parity.

    Parity trains the same seeded experiment (CONFIG, or a small one of our own) on one worker, on
    several, and with each engine, ZeRO stage and precision, and compares the losses step by step.
    Exit code 1 if anything failed.
    """
    from orchestrator.config.load import load_config

    experiment = load_config(config, overrides, single_run=True) if config else None
    with json_stdout(as_json) as emit:
        from orchestrator import api

        found = api.doctor(
            experiment,
            runs_dir=runs_dir,
            address=address,
            workers=workers,
            steps=steps,
            parity=not no_parity,
            say=lambda line: click.echo(f"{line} …", err=True),
        )
        emit(_document(found))
    if not as_json:
        _show(found)
    return 0 if found.healthy else 1


def _show(found: Examination) -> None:
    rows = [[one.name, one.state, one.detail] for one in found.checks]
    print_table(["check", "", "seen"], rows, last="fold")
    if found.verdicts:
        click.echo()
        header = ["parity", "workers", "precision", "", "largest difference", "first step", "note"]
        lines = [_line(one) for one in found.verdicts]
        print_table(header, lines, right={1, 4, 5}, last="fold")
    click.echo()
    failed = [one.name for one in found.checks if one.state == "failed"]
    failed += [
        one.variant.label + (f" (from step {one.differs_at})" if one.differs_at else "")
        for one in found.verdicts
        if one.state == "failed"
    ]
    click.echo(f"failed: {'; '.join(failed)}" if failed else "healthy")


def _line(one: Verdict) -> list[str]:
    way = one.variant
    known = not math.isnan(one.difference)
    note = one.trace.error or (f"against {one.against}" if one.against else "the reference")
    return [
        way.name,
        str(way.workers),
        way.precision,
        one.state,
        f"{one.difference:.1e}" if known else "",
        str(one.differs_at or ""),
        note.splitlines()[0],
    ]


def _document(found: Examination) -> dict[str, Any]:
    from orchestrator.doctor.nodes import as_json

    return {
        "format": 1,
        "healthy": found.healthy,
        "nodes": [as_json(node) for node in found.nodes],
        "checks": [vars(check) for check in found.checks],
        "parity": [
            {
                "variant": one.variant.name,
                "workers": one.variant.workers,
                "precision": one.variant.precision,
                "state": one.state,
                "against": one.against,
                "difference": one.difference,
                "differs_at": one.differs_at,
                "losses": list(one.trace.losses),
                "error": one.trace.error,
            }
            for one in found.verdicts
        ],
    }
