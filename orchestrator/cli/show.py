"""`orch show`: what a model consists of."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from orchestrator.analysis.model_table import short
from orchestrator.cli.common import json_option, json_stdout, print_table

if TYPE_CHECKING:
    from orchestrator.analysis.model_card import ModelCard
    from orchestrator.analysis.model_summary import Row


def _read_size(ctx: click.Context, option: click.Parameter, value: str | None) -> Any:
    """(height, width) from `28` or `28x32`."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", value)
    if not found:
        raise click.BadParameter(f"{value!r} must be PIXELS or HEIGHTxWIDTH, such as 28 or 28x32")
    return int(found[1]), int(found[2] or found[1])


@click.command("show")
@click.argument("model")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--size", callback=_read_size, metavar="PIXELS", help="Of the images; 28x32 is height x width."
)
@click.option("--channels", type=click.IntRange(1), help="Of the images; usually 3.")
@click.option("--length", type=click.IntRange(1), help="Of the texts, in tokens; usually 128.")
@click.option("--vocabulary", type=click.IntRange(2), help="Of the texts; usually 10,000.")
@click.option("--classes", type=click.IntRange(1), help="Outputs of the head; usually 1,000.")
@click.option("--layers", is_flag=True, help="The layers of each stage too.")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="MODULE", help="Include a module's own models."
)
@json_option
def show_command(
    model: str,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    layers: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Show the stages of MODEL with shapes, parameters and multiply-adds, and its options.

    KEY=VALUE sets an option, as under `model:` in a file. Nothing is computed or downloaded; the
    images are as large as those that the model was published for (our own: 32 pixels a side).
    """
    for text in overrides:
        if "=" not in text:
            raise click.UsageError(f"{text!r} is no KEY=VALUE, such as width=0.5")
    with json_stdout(as_json) as emit:
        from orchestrator.analysis.model_card import Asked, model_card

        card = model_card(model, overrides, asked=Asked(**asked), plugins=plugins)
        emit(_document(card, layers))
    if not as_json:
        _print_head(card)
        _print_rows(card, layers)


def _document(card: ModelCard, layers: bool) -> dict[str, Any]:
    stages = [asdict(stage) for stage in card.summary.stages]
    for stage in stages:
        del stage["kind"]
        if not layers:
            del stage["layers"]
    return {"format": 1, **asdict(card), "summary": {**asdict(card.summary), "stages": stages}}


def _print_head(card: ModelCard) -> None:
    rows, known, reads = [], card.published, card.input
    if known:
        stated = f", which states {known.figure} parameters" if known.figure else ""
        rows.append(["paper", f"{known.paper}{stated}"])
    if known and known.reference:
        rows.append(["reference", f"{known.reference}, {known.parameters:,} parameters"])
    tokens = f" tokens of {reads.vocabulary:,}" if reads.vocabulary else ""
    rows.append(["input", f"{_sides(reads.shape)}{tokens}, {reads.classes:,} classes"])
    print_table([card.name, card.about], rows, last="fold")
    click.echo()
    options = [
        [one.name, _value(one.value), _value(one.default), one.about] for one in card.options
    ]
    if options:
        print_table(["option", "value", "default", ""], options, last="fold")
        click.echo()


def _print_rows(card: ModelCard, layers: bool) -> None:
    found = card.summary
    rows = []
    for stage in found.stages:
        rows.append([stage.name, *_cells(stage)])
        rows += [[f"  {layer.name}", *_cells(layer)] for layer in stage.layers if layers]
    total = ["total", "", f"{found.parameters:,}", short(found.multiply_adds), ""]
    header = ["stage", "output", "parameters", "multiply-adds", "layer" if layers else ""]
    print_table(header, [*rows, total], right=(2, 3))
    click.echo("\nMultiply-adds of one sample: a multiplication and its addition count as one.")


def _cells(row: Row) -> list[str]:
    outputs = " + ".join(map(_sides, row.outputs[:2]))
    if len(row.outputs) > 2:
        outputs = f"{_sides(row.outputs[0])} + {len(row.outputs) - 1} more"
    cost = short(row.multiply_adds) if row.multiply_adds else "-"
    return [outputs, f"{row.parameters:,}", cost, row.kind]


def _sides(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _value(value: Any) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False, default=str).strip('"')
