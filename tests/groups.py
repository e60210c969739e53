"""Work in several processes at once, each a rank of one gloo group."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from orchestrator.host import GroupWorker

ROOT = Path(__file__).parents[1]


def in_group(workers: int, call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``call(worker, *arguments)`` returns on each rank, one thread each.

    Ranks have the environment variables of the first such call.

    Raises:
        Exception: with the traceback, when it failed on any.
    """
    multiprocessing.set_forkserver_preload(["tests.warm"])
    with contextlib.chdir(ROOT):
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        given = (workers, folder, call, arguments)
        torch.multiprocessing.start_processes(
            _rank, given, nprocs=workers, start_method="forkserver"
        )
        files = sorted(Path(folder).glob("*.pkl"))
        return [pickle.loads(path.read_bytes()) for path in files]


def freeze() -> None:
    """Has garbage collection pass over all that there is now.

    DeepSpeed collects garbage whenever it starts, and we when an engine closes: half a second each
    where torch's modules are gone over.
    """
    gc.collect()
    gc.freeze()


def _rank(rank: int, workers: int, folder: str, call: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    try:
        result = call(GroupWorker(), *arguments)
        Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(result))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
