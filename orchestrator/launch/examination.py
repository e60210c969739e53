"""Examines a machine or a cluster: nodes, storage, clocks, network, and parity."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.plugins import load_plugins
from orchestrator.config.user_code import named_modules
from orchestrator.doctor.nodes import Check, NodeFacts, check_nodes, clock_skew, describe_node
from orchestrator.doctor.parity import EXAMPLE, Trace, Variant, Verdict, examine, judge, variants
from orchestrator.errors import OrchError
from orchestrator.host import Host, Resources
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.nodes import every_node
from orchestrator.launch.ray_host import RayHost

Say = Callable[[str], None]


@dataclass
class Examination:
    """Everything that was found; it is healthy unless a part of it failed."""

    nodes: list[NodeFacts] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing failed."""
        states = [*(one.state for one in self.checks), *(one.state for one in self.verdicts)]
        return "failed" not in states


def examine_cluster(
    config: ExperimentConfig | None = None,
    *,
    runs_dir: Path = Path("runs"),
    address: str | None = None,
    workers: int | None = None,
    steps: int = 8,
    parity: bool = True,
    say: Say = lambda line: None,
) -> Examination:
    """Examines this machine, or the cluster behind an address.

    Args:
        config: the experiment that parity is proved on; a small one of our own by default.
        runs_dir: where runs are kept; every node must reach it.
        workers: of the parity runs; by default 2, or every GPU up to 8.
        steps: optimizer steps of each parity run.
        parity: whether to train at all.
        say: told what is being done.

    Raises:
        UserError: for an address that can't be reached, or more workers than there is room for.
    """
    config = config or ExperimentConfig.model_validate(EXAMPLE)
    load_plugins(config.plugins)
    found = Examination()
    session = start_or_attach(address, modules=named_modules(config))
    host = RayHost(session)
    try:
        say("asking every node")
        found.nodes, found.checks = _nodes(runs_dir.resolve())
        if parity:
            _parity(found, config, host, workers, steps, say)
    finally:
        host.close()
    return found


def _nodes(folder: Path) -> tuple[list[NodeFacts], list[Check]]:
    token = f".orch-doctor-{secrets.token_hex(8)}"
    with _token(folder, token), contextlib.ExitStack() as stack:
        nodes = every_node()
        for node in nodes:
            stack.callback(node.close)
        facts = [node.ask(describe_node, str(folder), token, node.name) for node in nodes]
        skews = [clock_skew(node.clock) for node in nodes]
    return facts, check_nodes(facts, skews, folder)


@contextlib.contextmanager
def _token(folder: Path, token: str) -> Iterator[None]:
    """A file that only this examination can have written; nothing of it is left behind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / token).write_text("seen")
    try:
        yield
    finally:
        for path in folder.glob(f"{token}*"):
            path.unlink(missing_ok=True)


def _parity(
    found: Examination,
    config: ExperimentConfig,
    host: Host,
    workers: int | None,
    steps: int,
    say: Say,
) -> None:
    gpus = 1.0 if any(node.gpus for node in found.nodes) else 0.0
    count = workers or _room(host, gpus)
    host.capacity(Resources(count, 1, gpus))
    ways = variants(config, count, gpus)
    traces: dict[str, Trace] = {}
    for size in sorted({way.workers for way in ways}):
        group = [way for way in ways if way.workers == size and way.config is not None]
        say(f"training {len(group)} variants with {size} worker{'s' * (size > 1)}, {steps} steps")
        found.checks += _group(host, group, size, gpus, steps, traces)
    found.verdicts = judge(ways, traces)


def _room(host: Host, gpus: float) -> int:
    """Workers that there are devices for: every GPU up to 8, two processes of a CPU."""
    most = host.capacity(Resources(1, 1, gpus))
    return min(most, 8 if gpus else 2)


def _group(
    host: Host,
    group: list[Variant],
    size: int,
    gpus: float,
    steps: int,
    traces: dict[str, Trace],
) -> list[Check]:
    """Trains variants of one number of workers; says how their network did."""
    arguments = {"configs": [way.config for way in group], "steps": steps}
    try:
        reach, results = host.submit(examine, arguments, Resources(size, 1, gpus)).result()
    except OrchError as error:
        traces.update({way.label: Trace((), str(error)) for way in group})
        return [Check(f"group of {size}", "failed", str(error))]
    traces.update({way.label: trace for way, trace in zip(group, results, strict=True)})
    if size == 1:
        return []
    text = f"{reach.backend} summed 4 MiB over {size} workers in {reach.seconds * 1000:.1f} ms"
    if not reach.right:
        return [Check("network", "failed", f"{text}, and the sum is wrong; check the interfaces")]
    return [Check("network", "ok", text)]
