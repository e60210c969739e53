"""`orch predict`: what a trained model says of files, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.cli.common import json_option, json_stdout, runs_dir_option


@click.command("predict")
@click.argument("target")
@click.argument(
    "inputs",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="INPUT...",
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Labels shown.")
@runs_dir_option
@json_option
def predict_command(
    target: str, inputs: tuple[Path, ...], top: int, runs_dir: Path, as_json: bool
) -> None:
    """Say what TARGET sees in INPUTS.

    An input is a PNG or JPEG file, or an .npy array [C, H, W] or [B, C, H, W]: uint8 in 0..255
    or floats in 0..1. For a model of texts, inputs are .txt files.
    """
    with json_stdout(as_json) as emit:
        from orchestrator.serve.files import predict_files, predict_text_files
        from orchestrator.serve.predictor import load_predictor
        from orchestrator.serve.targets import find_one

        served = find_one(target, runs_dir)
        if all(path.suffix == ".txt" for path in inputs):
            answers = predict_text_files(served.root, inputs, top)
        else:
            answers = predict_files(load_predictor(served.root, served.name), inputs, top)
        emit({"model": served.name, "inputs": [answer.model_dump() for answer in answers]})
    if not as_json:
        for answer in answers:
            _show(answer)


def _show(answer: Any) -> None:
    click.echo(answer.input)
    for one in answer.predictions:
        click.echo(f"  {one.probability:7.2%}  {one.label}")
