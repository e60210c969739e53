"""`orch serve`: trained models over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import runs_dir_option

if TYPE_CHECKING:
    from orchestrator.serve.server import Listening


@click.command("serve")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Clients must send one of its lines as `Authorization: Bearer` or `X-API-Key`.",
)
@click.option(
    "--insecure-any-host", is_flag=True, help="Let other machines ask without an API key."
)
@click.option("--replicas", type=click.IntRange(1), help="Processes of each model.")
@click.option("--cpus", type=click.FloatRange(min=0), help="CPU cores of each replica.")
@runs_dir_option
def serve_command(
    targets: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    insecure_any_host: bool,
    replicas: int | None,
    cpus: float | None,
    runs_dir: Path,
) -> None:
    """Answer for TARGETS (runs, sweeps, ensembles) until Ctrl-C.

    A sweep offers its ensemble under its own name, and its student as NAME-student.
    """
    from orchestrator.serve import server
    from orchestrator.serve.guards import read_api_keys
    from orchestrator.serve.settings import serve_config
    from orchestrator.serve.targets import find_served

    digests = read_api_keys(api_key_file) if api_key_file else ()
    server.check_host(host, digests, insecure_any_host)
    served = find_served(targets, runs_dir)
    config = serve_config(served[0].root, replicas=replicas, cpus=cpus)
    click.echo(f"starting {', '.join(one.name for one in served)} …", err=True)
    server.run(
        served,
        config,
        host=host,
        port=port,
        key_digests=digests,
        on_ready=lambda listening: _say_ready(listening, bool(digests)),
    )


def _say_ready(listening: Listening, needs_key: bool) -> None:
    for card in listening.cards:
        size = "×".join(map(str, card.shape))
        what = f"{card.members} networks" if card.members > 1 else "1 network"
        click.echo(f"  {card.name}  {size} → {len(card.label_names)} labels, {what}")
        click.echo(f"    {listening.url}/predict/{card.name}")
        click.echo(f"    {listening.url}/v2/models/{card.name}")
    key = " -H 'X-API-Key: …'" if needs_key else ""
    url = f"{listening.url}/predict/{listening.cards[0].name}"
    click.echo(f"READY. Try: curl{key} --data-binary @image.png {url}   (Ctrl-C ends it)")
