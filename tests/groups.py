"""Work in several processes at once, each a rank of one gloo group."""

from __future__ import annotations

import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from orchestrator.host import GroupWorker


def in_group(workers: int, call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``call(worker, *arguments)`` returns on each rank, one thread each.

    Raises:
        Exception: with the traceback, when it failed on any.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (workers, folder, call, arguments)
        torch.multiprocessing.spawn(_rank, given, nprocs=workers)
        files = sorted(Path(folder).glob("*.pkl"))
        return [pickle.loads(path.read_bytes()) for path in files]


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
