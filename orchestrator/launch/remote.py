"""What runs inside Ray's processes: a worker's set-up, its failures, and how it is interrupted."""

from __future__ import annotations

import _thread
import gc
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.cloudpickle
import torch
from ray.experimental import internal_kv

from orchestrator.allocator import give_freed_memory_back
from orchestrator.errors import OrchError, TrialError
from orchestrator.host import Resources, SingleWorker, Worker, arguments_after

POLL_SECONDS = 0.5
"""How often a busy worker looks whether it was asked to end."""


@dataclass(frozen=True)
class Packed:
    """``call(worker=…, **arguments)``, pickled once by the driver and opened where it runs."""

    data: bytes

    @classmethod
    def of(cls, call: Callable[..., Any], arguments: Mapping[str, Any]) -> Packed:
        """Pickles a call, by value where workers could not import it."""
        return cls(ray.cloudpickle.dumps((call, dict(arguments))))

    def start(self, worker: Worker) -> Any:
        """Opens and makes the call."""
        call, arguments = ray.cloudpickle.loads(self.data)
        return call(worker=worker, **arguments)

    def after(self, failed: WorkFailedError) -> Packed:
        """The call that a group is started with once more; see `host.restarted_by`.

        Raises:
            WorkFailedError: the one given, where the group would only fail again.
            OrchError: what speaks against another start.
        """
        error = failed.failure.own()
        if error is None:
            raise failed
        call, arguments = ray.cloudpickle.loads(self.data)
        try:
            return Packed.of(call, arguments_after(call, error, arguments))
        except OrchError as last:
            if last is error:
                raise failed from None
            raise

    def __repr__(self) -> str:
        # Ray Tune writes a trial's parameters into names and files.
        return f"Packed({len(self.data)} bytes)"


@dataclass(frozen=True)
class Failure:
    """An exception, in a form that always travels between processes.

    Attributes:
        text: one line for people.
        trace: the traceback.
        error: the exception, pickled, when it is one of orch's own.
    """

    text: str
    trace: str
    error: bytes | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describes an exception."""
        known = isinstance(error, OrchError)
        text = str(error) if known else f"{type(error).__name__}: {error}".removesuffix(": ")
        pickled: bytes | None = None
        if known:
            with suppress(Exception):
                pickled = ray.cloudpickle.dumps(error)
                ray.cloudpickle.loads(pickled)
        return cls(text, "".join(traceback.format_exception(error)), pickled)

    def exception(self, where: str, trace: Path) -> OrchError:
        """The exception to raise in the driver: orch's own as it was, others as a `TrialError`."""
        return self.own() or TrialError(f"{where}{self.text} (traceback in {trace})")

    def own(self) -> OrchError | None:
        """The exception, where it is one of orch's own."""
        found: Any = None
        if self.error is not None:
            with suppress(Exception):
                found = ray.cloudpickle.loads(self.error)
        return found if isinstance(found, OrchError) else None


class WorkFailedError(Exception):
    """Carries a `Failure` out of a Ray task; its only argument, so that it pickles."""

    @property
    def failure(self) -> Failure:
        """What went wrong."""
        found: Failure = self.args[0]
        return found

    def __str__(self) -> str:
        return f"{self.failure.text}\n{self.failure.trace}"


class WorkerLostError(Exception):
    """The process or the node of a group's worker died; says how."""


@dataclass(frozen=True)
class Lost:
    """In place of a result: how the worker died."""

    text: str


def single_worker(cpus: int) -> SingleWorker:
    """Gives this process its threads and its device (Ray makes other GPUs invisible)."""
    torch.set_num_threads(cpus)
    device = "cuda:0" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
    return SingleWorker(device)


def exhaust(value: Any) -> Any:
    """Runs a generator to its end and gives what it returned; gives other values back."""
    if not isinstance(value, Generator):
        return value
    while True:
        try:
            next(value)
        except StopIteration as end:
            return end.value


def free_memory() -> None:
    """Drops what ended work left behind, on the device too."""
    gc.collect()
    give_freed_memory_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- interruption ---------------------------------------------------------------------------


def ask_to_end(token: str) -> None:
    """Asks every worker that watches `token` to end its work in order."""
    internal_kv._internal_kv_put(_key(token), b"1")


def forget(token: str) -> None:
    """Withdraws what `ask_to_end` asked."""
    internal_kv._internal_kv_del(_key(token))


def asked_to_end(token: str) -> bool:
    """Whether `ask_to_end` was called."""
    return internal_kv._internal_kv_exists(_key(token)) is True


def _key(token: str) -> bytes:
    return f"orch:end:{token}".encode()


class Interruptible:
    """Lets the driver interrupt this process's main thread while it works.

    Ray cannot interrupt an actor's method, and stops what is queued behind a busy one by killing
    the process. Here a thread raises SIGINT in the main thread instead, as Ctrl-C does in a local
    run, so that training can write a checkpoint.
    """

    def __init__(self) -> None:
        self._token = ""
        self._interrupted = ""
        self._busy = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="orch-interrupt", daemon=True).start()

    @contextmanager
    def __call__(self, token: str) -> Iterator[None]:
        """Work inside the block is interrupted, once, when `ask_to_end` is called for `token`."""
        # interrupt_main calls Python's handler, which Ray's processes may lack. The one of a trial
        # that goes on writes a checkpoint, and stays.
        if not callable(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with self._lock:
            self._token = token
            self._busy.set()
        try:
            yield
        finally:
            with self._lock:
                self._busy.clear()

    def _watch(self) -> None:
        while True:
            self._busy.wait()
            # Ray may be on its way out; then nobody asks any more.
            with suppress(Exception):
                self._look()
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        token = self._token
        if token == self._interrupted or not asked_to_end(token):
            return
        with self._lock:
            if self._busy.is_set() and self._token == token:
                self._interrupted = token
                _thread.interrupt_main()


def bundle(resources: Resources) -> dict[str, float]:
    """What one worker takes, in Ray's words."""
    return {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})


def save_trace(folder: Path, name: str, trace: str) -> Path:
    """Keeps a traceback that a message names, each in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{name}.txt" if number == 1 else f"{name}-{number}.txt")
        try:
            with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(trace)
        except FileExistsError:
            number += 1
        else:
            return path


def died(error: BaseException) -> str:
    """Says in one line how a worker died, from Ray's account of it."""
    text = " ".join(str(error).split())
    process, place = re.search(r"pid: (\d+)", text), re.search(r"\bip: ([\d.:a-f]+)", text)
    who = f"process {process[1]}" if process else "process"
    where = f" on {place[1]}" if place else ""
    for mark, reason in _DEATHS.items():
        if mark in text:
            return f"the worker died ({who}{where}): {reason}"
    return f"the worker died ({who}{where}): {text[:300]}"


_DEATHS = {
    "node has died": "its node is gone",
    "running low on memory": "the node ran out of memory",
    "worker process has died": "killed, out of memory, or a crash in native code",
    "connection error code 2": "killed, out of memory, or a crash in native code",
}
"""Words of Ray's, and what they mean."""
