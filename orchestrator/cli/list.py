"""`orch list`: what can stand behind a `type:`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import json_option, print_json, print_table
from orchestrator.errors import UnknownNameError

if TYPE_CHECKING:
    from orchestrator.analysis.model_table import Figures

Names = list[tuple[str, str]]
"""Names with a line about each."""

KINDS = {
    "models": "model",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "losses": "loss",
    "soft_losses": "soft_loss",
    "augmentations": "augmentation",
    "sources": "source",
    "loaders": "loader",
    "tasks": "task",
    "engines": "engine",
    "samplers": "sampler",
    "schedulers": "scheduler",
    "distributions": "distribution",
    "ensembles": "ensemble",
    "traffic": "traffic",
}
"""What the user writes, and what the registry calls it."""


@click.command("list", epilog=f"KIND is one of: {', '.join(KINDS)}.")
@click.argument("kind", metavar="KIND")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="MODULE", help="Include a module's own parts."
)
@click.option("--markdown", is_flag=True, help="Of models: print the page docs/models.md.")
@json_option
def list_command(kind: str, plugins: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """List the names of one KIND with a line about each.

    Of models also parameters (with 1,000 classes), multiply-adds (of one sample of the size under
    `input`: pixels a side, or tokens; a multiplication and its addition count as one) and paper.
    They are counted when first asked for, which takes some seconds, and kept.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    if markdown and (kind != "models" or as_json):
        raise click.UsageError("--markdown is for `orch list models`, without --json")
    from orchestrator.config.base import entries
    from orchestrator.config.plugins import load_plugins

    load_plugins(plugins)
    found: Names = [(entry.name, entry.summary) for entry in entries(KINDS[kind])]
    figures = _figures() if kind == "models" else {}
    if markdown:
        click.echo(_page(figures), nl=False)
    elif as_json:
        print_json({"format": 1, "kind": kind, "items": _items(found, figures)})
    elif kind == "models":
        _print_models(found, figures)
    else:
        width = max((len(name) for name, _ in found), default=0)
        for name, summary in found:
            click.echo(f"{name:<{width}}  {summary}")


def _figures() -> dict[str, Figures]:
    from orchestrator.analysis.model_table import count_all, kept_figures, zoo_names

    kept = kept_figures()
    if kept is None:
        click.echo(f"counting {len(zoo_names())} models, this once …", err=True)
        return count_all()
    return kept


def _page(figures: dict[str, Figures]) -> str:
    from orchestrator.analysis.model_table import markdown

    return markdown(figures.values())


def _items(found: Names, figures: dict[str, Figures]) -> list[dict[str, Any]]:
    items = []
    for name, summary in found:
        known = asdict(figures[name]) if name in figures else {}
        items.append({"name": name, "summary": summary} | known)
    return items


def _print_models(found: Names, figures: dict[str, Figures]) -> None:
    from orchestrator.analysis.model_table import input_text, short

    rows = []
    for name, summary in found:
        cells = ["-", "-", "-", ""]
        if known := figures.get(name):
            sizes = (known.parameters, known.multiply_adds)
            cells = [*map(short, sizes), input_text(known.input), known.paper]
        rows.append([name, *cells, summary])
    header = ["name", "params", "mult-adds", "input", "paper", "summary"]
    print_table(header, rows, right=(1, 2, 3), last="cut")
