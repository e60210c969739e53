"""`orch distill`: a student that learns from a trained run or ensemble."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.common import config_arguments, json_option, json_stdout, runs_dir_option


@click.command("distill")
@config_arguments
@click.option("--teacher", required=True, help="A run, a sweep (its ensemble) or an ensemble.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished student.")
@runs_dir_option
@json_option
def distill_command(
    config: Path,
    overrides: tuple[str, ...],
    teacher: str,
    resume: bool,
    runs_dir: Path,
    as_json: bool,
) -> int:
    """Train CONFIG's student (its `distill.set` applied) from a teacher."""
    from orchestrator.config.load import load_config

    experiment = load_config(config, overrides)
    with json_stdout(as_json) as emit:
        from orchestrator import api
        from orchestrator.cli.progress import TrainProgress

        with TrainProgress(experiment) as progress:
            result = api.distill(
                experiment, teacher, runs_dir=runs_dir, resume=resume, on_step=progress.step
            )
        emit({"run": str(result.root), "state": result.state, "best": dict(result.best or {})})
        if not as_json:
            progress.summary(result)
    return 130 if result.state == "interrupted" else 0
