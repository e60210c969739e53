"""`orch sweep`: search, ensemble, student and comparison from one file."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.common import json_stdout, run_options


@click.command("sweep")
@run_options
def sweep_command(
    config: Path,
    overrides: tuple[str, ...],
    address: str | None,
    resume: bool,
    dry_run: bool,
    runs_dir: Path,
    as_json: bool,
) -> int:
    """Run CONFIG's whole pipeline: sweep, ensemble, distilled student, comparison."""
    from orchestrator.config.load import load_config

    experiment = load_config(config, overrides)
    with json_stdout(as_json) as emit:
        from orchestrator import api
        from orchestrator.cli.plan import show_plan
        from orchestrator.cli.sweep_view import SweepView

        if dry_run:
            emit(show_plan(experiment, quiet=as_json, address=address))
            return 0
        try:
            with SweepView(experiment) as view:
                table = api.sweep(
                    experiment,
                    runs_dir=runs_dir,
                    address=address,
                    resume=resume,
                    config_path=config,
                    listen=view.listen,
                )
        except KeyboardInterrupt:
            click.echo("interrupted; go on with the same command and --resume", err=True)
            return 130
        emit(table.to_json())
        if not as_json:
            view.summary(table)
    return 0
