"""Ranks that save one checkpoint together."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch.distributed as dist

from orchestrator.errors import CheckpointError
from orchestrator.host import GroupWorker, SingleWorker
from orchestrator.run_folder.checkpoint import Checkpoints, CheckpointStore
from orchestrator.run_folder.checkpoint_group import save_together


def test_one_rank(tmp_path):
    def write(path):
        (path / "model.pt").write_bytes(b"1")

    save_together(CheckpointStore(tmp_path), SingleWorker(), 7, write, meta={"a": 1}, metric=0.5)
    one = Checkpoints(tmp_path).latest_intact()
    assert (one.step, one.meta, one.metric) == (7, {"a": 1}, 0.5)


def test_an_error_of_the_only_rank_keeps_its_cause(tmp_path):
    def write(path):
        raise RuntimeError("[enforce fail at inline_container.cc]")

    with pytest.raises(CheckpointError, match="inline_container") as caught:
        save_together(CheckpointStore(tmp_path), SingleWorker(), 7, write)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert list(tmp_path.iterdir()) == []


def rank(index: int, folder: Path, fails: bool, results) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2
    )
    store = CheckpointStore(folder / "checkpoints") if index == 0 else None

    def write(path: Path) -> None:
        if fails and index == 1:
            raise OSError(28, "No space left on device")
        (path / f"rank-{index}.pt").write_bytes(bytes([index]))

    try:
        save_together(store, GroupWorker(), 3, write)
        results.put((index, "saved"))
    except CheckpointError as error:
        results.put((index, str(error)))
    dist.destroy_process_group()


@pytest.mark.parametrize("fails", [False, True])
def test_two_ranks_agree(tmp_path, fails):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=rank, args=(n, tmp_path, fails, results)) for n in (0, 1)]
    for process in ranks:
        process.start()
    answers = dict(results.get(timeout=600) for _ in ranks)
    for process in ranks:
        process.join(timeout=180)
    found = Checkpoints(tmp_path / "checkpoints").valid()
    if fails:
        assert "No space left" in answers[0]
        assert answers[0] == answers[1], "every rank learns of it"
        assert found == []
    else:
        assert answers == {0: "saved", 1: "saved"}
        assert sorted(found[0].files) == ["rank-0.pt", "rank-1.pt"]
