"""`orch train`: one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.cli.common import json_stdout, run_options


@click.command("train")
@run_options
def train_command(
    config: Path,
    overrides: tuple[str, ...],
    address: str | None,
    resume: bool,
    dry_run: bool,
    runs_dir: Path,
    as_json: bool,
) -> int:
    """Train one model from CONFIG, with KEY=VALUE overrides."""
    from orchestrator.config.load import load_config

    experiment = load_config(config, overrides, single_run=True)
    with json_stdout(as_json) as emit:
        from orchestrator import api
        from orchestrator.cli.plan import show_plan
        from orchestrator.cli.progress import TrainProgress

        if dry_run:
            emit(show_plan(experiment, quiet=as_json, address=address))
            return 0
        with TrainProgress(experiment) as progress:
            try:
                result = api.train(
                    experiment,
                    runs_dir=runs_dir,
                    address=address,
                    resume=resume,
                    config_path=config,
                    on_step=progress.step,
                    on_status=progress.status,
                )
            except KeyboardInterrupt:
                progress.interrupted()
                raise
        best: dict[str, Any] = dict(result.best or {})
        emit({"run": str(result.root), "state": result.state, "why": result.why, "best": best})
        if not as_json:
            progress.summary(result)
    return 130 if result.state == "interrupted" else 0
