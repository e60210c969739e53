"""`orch data`: gets a data set, or says what one looks like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import json_option, json_stdout

if TYPE_CHECKING:
    from orchestrator.config.base import Part
    from orchestrator.config.data import DataConfig


@click.group("data")
def data_command() -> None:
    """Get a data set, or say what it looks like."""


@data_command.command("get")
@click.argument("name")
@click.option("--root", type=click.Path(path_type=Path), help="Folder that has the files already.")
@json_option
def get_command(name: str, root: Path | None, as_json: bool) -> int:
    """Fetch, decode and check the source NAME, such as fashion_mnist."""
    with json_stdout(as_json) as emit:
        from orchestrator.data.cache import open_source

        cached = open_source(_source(name, root), verify=True)
        source = cached.data
        emit(
            {
                "source": name,
                "folder": str(cached.folder),
                "digest": cached.digest,
                "train": len(source.train),
                "test": len(source.test) if source.test else 0,
                "notes": list(source.notes),
            }
        )
        if not as_json:
            test = f" and {len(source.test):,} test" if source.test else ", no test"
            click.echo(f"{name}: {len(source.train):,} training{test} samples in {cached.folder}")
            for note in source.notes:
                click.echo(note, err=True)
    return 0


@data_command.command("info")
@click.argument("target", metavar="NAME|CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def info_command(target: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Say what a source, or the data of an experiment file, looks like once it is split."""
    with json_stdout(as_json) as emit:
        from orchestrator.data.memory import describe

        info = describe(_data(target, overrides))
        emit(
            {
                "shape": list(info.shape),
                "labels": list(info.label_names),
                "sizes": dict(info.sizes),
                "mean": list(info.mean),
                "std": list(info.std),
                "vocabulary": info.vocabulary,
                "digest": info.digest,
                "split_digest": info.split_digest,
                "notes": list(info.notes),
            }
        )
        if not as_json:
            _print(info)
    return 0


def _print(info: Any) -> None:
    sizes = ", ".join(f"{name} {size:,}" for name, size in info.sizes.items())
    if info.tokenizer is None:
        channels, height, width = info.shape
        click.echo(f"images   {channels} channel(s), {height}×{width} pixels")
    else:
        lengths = " and ".join(map(str, info.shape))
        kind = f"{info.tokenizer.level} tokens, {info.vocabulary:,} known"
        click.echo(f"texts    {lengths} {kind}; the answer is a {info.answers}")
    if info.label_names:
        click.echo(f"classes  {info.classes}: {', '.join(info.label_names[:20])}")
    click.echo(f"samples  {sizes}")
    if info.mean:
        pairs = zip(info.mean, info.std, strict=True)
        click.echo("pixels   " + ", ".join(f"{mean:.4f} ± {std:.4f}" for mean, std in pairs))
    click.echo(f"digest   {info.digest[:16]}, split {info.split_digest[:16]}")
    for note in info.notes:
        click.echo(f"note     {note}")


def _data(target: str, overrides: tuple[str, ...]) -> DataConfig:
    """The `data` section of a file, or the defaults around a source's name."""
    from orchestrator.config.base import names
    from orchestrator.config.data import DataConfig
    from orchestrator.config.load import load_config

    if target in names("source") and not overrides and not Path(target).is_file():
        return DataConfig(source=_source(target, None))
    return load_config(Path(target), overrides).data


def _source(name: str, root: Path | None) -> Part:
    """A source's section from its name and, where it takes one, its folder."""
    from orchestrator.config.base import find
    from orchestrator.errors import DataError

    section = find("source", name).config
    field = next((name for name in ("root", "path") if name in section.model_fields), None)
    if root is not None and field is None:
        raise DataError(f"source {name} reads no folder; leave --root out")
    if root is None and field is not None and section.model_fields[field].is_required():
        raise DataError(f"source {name} needs a folder; add --root DIR")
    return section.model_validate({"type": name} | ({field: str(root)} if root and field else {}))
