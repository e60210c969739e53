"""`orch serve`: trained models over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import runs_dir_option

if TYPE_CHECKING:
    from orchestrator.serve.control.table import Event, ModelEntry
    from orchestrator.serve.server import Door, Listening

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("serve")
@click.argument(
    "targets", nargs=-1, metavar="[TARGET | NAME[@VERSION]=TARGET | serve.KEY=VALUE]..."
)
@click.option("--config", type=_FILE, help="YAML file whose `serve:` section is used.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--api-key-file",
    type=_FILE,
    help="Clients must send one of its lines as `Authorization: Bearer` or `X-API-Key`.",
)
@click.option(
    "--admin-key-file",
    type=_FILE,
    help="Who sends one of its lines may change what is served, from other machines too.",
)
@click.option(
    "--insecure-any-host", is_flag=True, help="Let other machines ask without an API key."
)
@click.option("--tls-cert", type=_FILE, help="Certificate (PEM): answer over HTTPS.")
@click.option("--tls-key", type=_FILE, help="Its key (PEM, without a password).")
@click.option("--replicas", type=click.IntRange(1), help="Processes of each version.")
@click.option("--cpus", type=click.FloatRange(min=0), help="CPU cores of each replica.")
@click.option(
    "--write-config", type=_FILE, help="Write what `serve deploy FILE` takes, and start nothing."
)
@runs_dir_option
def serve_command(
    targets: tuple[str, ...],
    config: Path | None,
    replicas: int | None,
    cpus: float | None,
    write_config: Path | None,
    runs_dir: Path,
    **door: Any,
) -> None:
    """Answer for TARGETs (runs, sweeps, ensembles, registry:NAME) until Ctrl-C.

    A sweep offers its ensemble under its own name, and its student as NAME-student. Versions of
    one model are named NAME@1=TARGET NAME@2=TARGET; which of them answers, serve.traffic says.
    """
    from orchestrator.serve import server
    from orchestrator.serve.settings import find_all

    overrides = [text for text in targets if text.startswith("serve.") and "=" in text]
    wanted = [text for text in targets if text not in overrides]
    served, section = find_all(wanted, runs_dir, config, overrides, replicas=replicas, cpus=cpus)
    entrance = _door(section.tls, **door)
    if write_config is not None:
        from orchestrator.serve.deployable import write_deployable

        entrance.check()
        server.check_models(served, section)
        write_deployable(write_config, served, section, entrance, runs_dir)
        click.echo(f"wrote {write_config}; deploy it with: serve deploy {write_config}")
        return
    names = ", ".join(f"{one.name}@{one.version}" for one in served)
    click.echo(f"starting {names} …", err=True)
    server.run(
        served,
        section,
        entrance,
        models_root=runs_dir,
        on_ready=lambda listening: _say_ready(listening, entrance),
        on_event=_say_event,
    )


def _door(
    tls: Any,
    host: str,
    port: int,
    api_key_file: Path | None,
    admin_key_file: Path | None,
    insecure_any_host: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> Door:
    from orchestrator.serve.guards.keys import read_api_keys
    from orchestrator.serve.server import Door
    from orchestrator.serve.tls import Certificate

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if tls_cert is None and tls is not None:
        tls_cert, tls_key = Path(tls.cert), Path(tls.key)
    return Door(
        host,
        port,
        key_digests=read_api_keys(api_key_file) if api_key_file else (),
        admin_digests=read_api_keys(admin_key_file) if admin_key_file else (),
        insecure=insecure_any_host,
        certificate=Certificate(tls_cert, tls_key) if tls_cert and tls_key else None,
    )


def _say_ready(listening: Listening, door: Door) -> None:
    for name, entry in listening.table.models.items():
        _say_model(listening.url, name, entry)
    key = " -H 'X-API-Key: …'" if door.key_digests else ""
    trust = f" --cacert {door.certificate.certificate}" if door.certificate else ""
    models = listening.table.models
    cards = [version.started.card for one in models.values() for version in one.versions.values()]
    text = bool(cards) and cards[0].reads == "text"
    data = "-H 'Content-Type: text/plain' -d 'a text'" if text else "--data-binary @image.png"
    url = f"{listening.url}/predict/{next(iter(models), 'NAME')}"
    click.echo(f"READY. Try: curl{key}{trust} {data} {url}   (Ctrl-C ends it)")


def _say_model(url: str, name: str, entry: ModelEntry) -> None:
    card = next(iter(entry.versions.values())).started.card
    size = "×".join(map(str, card.shape))
    click.echo(f"  {name}  {size} → {len(card.label_names)} labels")
    for version, one in entry.versions.items():
        members = one.started.card.members
        what = f"{members} networks" if members > 1 else "1 network"
        click.echo(f"    version {version}: {what}, {one.started.executor}")
    if len(entry.versions) > 1 or entry.rule["type"] != "latest":
        click.echo(f"    traffic: {_rule_text(entry.rule)}")
    click.echo(f"    {url}/predict/{name}")
    click.echo(f"    {url}/v2/models/{name}")


def _rule_text(rule: Mapping[str, Any]) -> str:
    """A traffic section in a line: its type, and what is not as it mostly is."""
    usual = {"type": rule["type"], "shadows": [], "sticky": True, "explore": 0.0}
    parts = [f"{key} {_text(value)}" for key, value in rule.items() if value != usual.get(key)]
    return ", ".join([rule["type"], *parts])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{number:g}" for key, number in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _say_event(event: Event) -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    click.echo(f"{clock} {event.model}: {event.message}")
