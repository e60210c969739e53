"""Calls that tests send to workers. Imported there by name."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from orchestrator.errors import DataError


def describe(worker, **arguments):
    return {
        "pid": os.getpid(),
        "rank": worker.rank,
        "world_size": worker.world_size,
        "device": str(worker.device),
        "threads": torch.get_num_threads(),
        "cwd": str(Path.cwd()),
        **arguments,
    }


def environment(worker, name):
    return os.environ.get(name)


def fail(worker, rank=0):
    if worker.rank == rank:
        raise ValueError("bad luck")
    worker.barrier()


def fail_for_the_user(worker):
    raise DataError("no such folder: /data; give data.source.path")


def unpicklable_result(worker):
    return threading.Lock()


def generated(worker, steps):
    for step in range(steps):
        yield {"step": step}
    return "done"


def summed(worker):
    return {
        "sum": int(worker.sum(torch.tensor([worker.rank + 1]))),
        "rank": worker.rank,
        "world_size": worker.world_size,
        "threads": torch.get_num_threads(),
        "cwd": str(Path.cwd()),
    }


def die_once(worker, marker, rank=0, resume=False):
    if not resume and worker.rank == rank:
        Path(marker).write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    worker.barrier()
    return {"resume": resume, "pid": os.getpid()}


def die(worker):
    os.kill(os.getpid(), signal.SIGKILL)


def where(worker, started, seconds=60.0, resume=False):
    """Says on which node it runs, then works until it is killed or resumed."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    if not resume:
        Path(started).write_text(node)
        time.sleep(seconds)
    return node


def work_until_interrupted(worker, folder, started="started"):
    """As training does: SIGINT asks for a checkpoint at the next step."""
    with listening() as asked:
        return work_until_asked(asked, folder, started)


@contextmanager
def listening():
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def work_until_asked(asked, folder, started):
    (Path(folder) / started).touch()
    for _ in range(1800):
        time.sleep(0.1)
        if asked:
            (Path(folder) / "checkpoint").touch()
            return "interrupted"
    return "not interrupted"


# --- trials -------------------------------------------------------------------------------


def trial(worker, steps, closed=None, fail_at=None, die_at=None, marker=None, seconds=0.0):
    """Reports `steps` times; may fail, or die once (`marker` remembers)."""
    try:
        for step in range(steps):
            time.sleep(seconds)
            if step == fail_at:
                raise ValueError("bad luck")
            if step == die_at and not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"step": step, "pid": os.getpid(), "nested": {"a": [1, 2]}}
    except GeneratorExit:
        if closed:
            Path(closed).write_text(str(step))
        raise


def group_trial(worker, steps, closed=None, fail_at=None, die_at=None, marker=None):
    try:
        for step in range(steps):
            total = int(worker.sum(torch.tensor([worker.rank + step])))
            if step == fail_at and worker.rank == 1:
                raise ValueError("bad luck")
            if step == die_at and worker.rank == 1 and not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"step": step, "sum": total, "world_size": worker.world_size}
    except GeneratorExit:
        if closed:
            Path(f"{closed}-{worker.rank}").write_text(str(step))
        raise


def interruptible_trial(worker, folder, name):
    """As training does: it listens from its first step on, over all of its reports."""
    with listening() as asked:
        yield {"step": 0}
        (Path(folder) / f"{name}-{work_until_asked(asked, folder, f'{name}-started')}").touch()
