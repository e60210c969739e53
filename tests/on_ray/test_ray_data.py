"""The Ray Data loader reads what the epoch plan says: the same samples, once, in any parts."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.config.data import (
    DataConfig,
    Digits,
    ImageFolder,
    MemoryLoader,
    Parquet,
    RayLoader,
)
from orchestrator.data.batches import BatchMaker, stored
from orchestrator.data.memory import build_loader as load_memory
from orchestrator.data.plan import EpochPlan
from orchestrator.errors import DataError, ResourceError
from orchestrator.host import SingleWorker
from orchestrator.launch import ray_reader
from orchestrator.launch.ray_data import RayDataLoader

pytestmark = pytest.mark.ray
FILES, ROWS, ROW_GROUP, WINDOW, BATCH, SIDE = 2, 150, 40, 100, 32, 6
TOTAL = FILES * ROWS


class Rank(SingleWorker):
    """One of several ranks that are tried one after another; rank 0 comes first."""

    def __init__(self, rank: int, world_size: int, said: list[Any]) -> None:
        super().__init__()
        self.rank, self.world_size, self.said = rank, world_size, said
        self.is_main = rank == 0

    def broadcast(self, value: Any) -> Any:
        if self.is_main:
            self.said[:] = [value]
        return self.said[0]


def png(number: int) -> bytes:
    """An image that tells its number."""
    pixels = np.full((SIDE, SIDE), number % 256, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Parquet files with several row groups each, more rows than a window."""
    path = tmp_path / "rows"
    path.mkdir()
    for file in range(FILES):
        rows = range(file * ROWS, (file + 1) * ROWS)
        table = pa.table({"image": [png(n) for n in rows], "label": [n % 3 for n in rows]})
        pq.write_table(table, path / f"{file}.parquet", row_group_size=ROW_GROUP)
    return path


def section(source: Any, **loader: Any) -> DataConfig:
    settings = {"window": WINDOW, "prefetch": 1} | loader
    return DataConfig(source=source, loader=RayLoader(**settings))


def build(data: DataConfig, *, worker: Any = None, micro: int | None = None, **more: Any) -> Any:
    return RayDataLoader(
        data.loader,
        data=data,
        seed=5,
        batch_size=BATCH,
        micro_batch=micro,
        worker=worker or SingleWorker(),
        **more,
    )


def parquet(path: Any, **options: Any) -> Parquet:
    return Parquet(path=str(path), channels=1, **options)


def ids_of(*batches: Any) -> list[int]:
    """The samples of global batches, in order."""
    return [n for batch in batches for micro in batch.micro_batches for n in micro.ids.tolist()]


def numbers(batch: Any, info: Any) -> list[int]:
    """Which images a batch shows, from their pixels."""
    pixels = batch.inputs["image"].permute(0, 2, 3, 1) * torch.tensor(info.std)
    values = ((pixels + torch.tensor(info.mean)) * 255).round().long()
    assert (values == values[:, :1, :1]).all()
    return values[:, 0, 0, 0].tolist()


def test_follows_the_epoch_plan(session, folder):
    loader = build(section(parquet(folder)))
    train = loader._ids["train"]
    starts = [file * ROWS + start for file in range(FILES) for start in range(0, ROWS, ROW_GROUP)]
    groups = [group for group in np.split(train, np.searchsorted(train, starts)) if len(group)]
    plan = EpochPlan(groups, BATCH, 5, WINDOW)
    assert loader.steps_per_epoch == plan.steps_per_epoch == -(-len(train) // BATCH)
    for epoch in (0, 1):
        batches = list(loader.train(epoch))
        expected = plan.global_batches(epoch)
        assert [ids_of(batch) for batch in batches] == [ids.tolist() for ids in expected]
        assert [batch.samples for batch in batches] == [len(ids) for ids in expected]
        assert sorted(ids_of(*batches)) == train.tolist()
        for micro in (micro for batch in batches for micro in batch.micro_batches):
            assert numbers(micro, loader.info) == (micro.ids % 256).tolist()
            assert torch.equal(micro.targets["label"], micro.ids % 3)


def test_augments_as_every_loader_does(session, folder):
    data = section(parquet(folder))
    augment = [{"type": "crop", "padding": 2}, {"type": "flip"}]
    data = DataConfig.model_validate(data.model_dump() | {"augment": augment})
    teacher = np.random.default_rng(0).normal(size=(TOTAL, 3)).astype(np.float32)
    loader = build(data, micro=8, extra_targets={"teacher_logits": teacher})
    make = BatchMaker(data.augment, loader.info, 5, torch.device("cpu"))
    batch = list(loader.train(2))[3]
    for number, micro in zip(batch.numbers, batch.micro_batches, strict=True):
        ids = micro.ids.numpy()
        images = np.tile((ids % 256).astype(np.uint8)[:, None, None, None], (1, SIDE, SIDE, 1))
        plain = stored(ids, {"image": images}, {"label": ids % 3})
        expected = make.train(plain, 2, 3, number)
        assert torch.equal(micro.inputs["image"], expected.inputs["image"])
        assert torch.equal(micro.targets["teacher_logits"], torch.from_numpy(teacher[ids]))
    assert not torch.equal(expected.inputs["image"], make.evaluate(plain).inputs["image"])
    assert "teacher_logits" not in next(loader.evaluate("val")).targets


def test_shows_what_the_memory_loader_shows(session, folder):
    data = section(parquet(folder))
    mine = build(data)
    other = load_memory(
        MemoryLoader(), data=data, seed=5, batch_size=BATCH, micro_batch=None, worker=SingleWorker()
    )
    assert mine.info.split_digest == other.info.split_digest
    assert mine.info.sizes == other.info.sizes
    assert mine.info.label_names == other.info.label_names
    assert mine.info.mean == pytest.approx(other.info.mean)
    assert mine.info.std == pytest.approx(other.info.std)
    for split in ("train", "val", "select"):
        pairs = zip(mine.evaluate(split, 50), other.evaluate(split, 50), strict=True)
        for ours, theirs in pairs:
            assert torch.equal(ours.ids, theirs.ids)
            assert torch.equal(ours.targets["label"], theirs.targets["label"])
            torch.testing.assert_close(ours.inputs["image"], theirs.inputs["image"])


def test_targets_of_another_data_set_are_refused(session, folder):
    with pytest.raises(DataError, match=r"'teacher' must have a row .* but has 7"):
        build(section(parquet(folder)), extra_targets={"teacher": np.zeros((7, 3))})


def test_ranks_share_what_one_would_accumulate(session, folder):
    data, said = section(parquet(folder)), []
    alone = list(build(data, micro=8).train(0))
    ranks = [list(build(data, worker=Rank(n, 2, said), micro=8).train(0)) for n in range(2)]
    for index, whole in enumerate(alone):
        parts = [rank[index] for rank in ranks]
        assert sum((part.numbers for part in parts), ()) == whole.numbers == (0, 1, 2, 3)
        assert {part.samples for part in parts} == {whole.samples}
        micro = [micro for part in parts for micro in part.micro_batches]
        for mine, its in zip(micro, whole.micro_batches, strict=True):
            assert torch.equal(mine.ids, its.ids)
            assert torch.equal(mine.inputs["image"], its.inputs["image"])


def test_resumes_inside_an_epoch_without_reading_what_was(session, folder):
    loader = build(section(parquet(folder)))
    straight = [ids_of(batch) for batch in loader.train(1)]
    asked = []
    pieces = loader._source.train.pieces
    loader._source.train.pieces = lambda ids: asked.extend(ids.tolist()) or pieces(ids)
    resumed = list(loader.train(1, start=5))
    assert [ids_of(batch) for batch in resumed] == straight[5:]
    assert [batch.index for batch in resumed] == list(range(5, len(straight)))
    assert sorted(asked) == sorted(n for batch in straight[5:] for n in batch)
    assert list(loader.train(1, start=len(straight))) == []


def test_evaluates_each_sample_once_over_ranks(session, folder):
    data, said = section(parquet(folder)), []
    loaders = [build(data, worker=Rank(n, 2, said)) for n in range(2)]
    for split in ("val", "select", "train"):
        batches = [list(loader.evaluate(split, 7)) for loader in loaders]
        ids = [torch.cat([batch.ids for batch in rank]) for rank in batches]
        assert torch.cat(ids).tolist() == loaders[0]._ids[split].tolist()
        assert abs(len(ids[0]) - len(ids[1])) <= 1
        for batch in batches[0]:
            assert numbers(batch, loaders[0].info) == (batch.ids % 256).tolist()
    assert loaders[0].info.sizes == {split: len(ids) for split, ids in loaders[0]._ids.items()}


def test_a_rank_without_samples_gets_an_empty_batch(session, folder):
    data = section(parquet(folder))
    data = DataConfig.model_validate(data.model_dump() | {"split": {"val": 0.003, "select": 0.0}})
    loader = build(data, worker=Rank(0, 2, []))
    assert loader.info.sizes["val"] == 1
    (batch,) = loader.evaluate("val", 4)
    assert batch.inputs["image"].shape == (0, 1, SIDE, SIDE)


def test_reads_image_folders_with_a_test_split(session, tmp_path):
    for split, count in (("train", 40), ("test", 10)):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for n in range(count // 2):
                (place / f"{n:03}.png").write_bytes(png(100 * label + n))
    source = ImageFolder(path=str(tmp_path / "images"), size=SIDE, channels=1)
    loader = build(section(source))
    assert loader.info.label_names == ("cat", "dog")
    assert loader.info.sizes["test"] == 10
    for batch in (*loader.evaluate("test", 4), *next(loader.train(0)).micro_batches):
        assert [n // 100 for n in numbers(batch, loader.info)] == batch.targets["label"].tolist()


def test_unreadable_images_are_left_out_and_named(session, folder):
    file = folder / "0.parquet"
    table = pq.read_table(file).to_pydict()
    table["image"][:3] = [b"no image", None, png(1)[:40]]
    pq.write_table(pa.table(table), file, row_group_size=ROW_GROUP)
    data = section(parquet(folder, max_corrupt=3))
    data = DataConfig.model_validate(data.model_dump() | {"split": {"val": 0.0, "select": 0.0}})
    loader = build(data)
    seen = ids_of(*loader.train(0))
    assert sorted(seen) == list(range(3, TOTAL))
    assert sorted(ids_of(*loader.train(1))) == sorted(seen)  # counted once
    assert any("row 1 of row group 0: there is no image" in n for n in loader.info.notes)
    strict = DataConfig.model_validate(
        data.model_dump() | {"source": parquet(folder, max_corrupt=2).model_dump()}
    )
    with pytest.raises(DataError, match=r"max_corrupt=2 images can't be read:\n.*row 0 of row"):
        build(strict)


def test_a_damaged_file(session, folder):
    loader = build(section(parquet(folder)))
    file = folder / "1.parquet"
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"1\.parquet, row group \d: "):
        list(loader.train(0))


def test_images_of_several_sizes(session, tmp_path):
    for name, side in (("a", 6), ("b", 7)):
        (tmp_path / name).mkdir()
        image = Image.fromarray(np.zeros((side, side), np.uint8))
        for n in range(300):
            image.save(tmp_path / name / f"{n}.png")
    source = ImageFolder(path=str(tmp_path), channels=1, size=SIDE)
    assert build(section(source)).info.shape == (1, SIDE, SIDE)
    table = pa.table(
        {"image": [png(0)] * 5 + [(tmp_path / "b" / "0.png").read_bytes()] * 5, "label": [0, 1] * 5}
    )
    pq.write_table(table, tmp_path / "mixed.parquet", row_group_size=5)
    with pytest.raises(DataError, match=r"images must be of one size.*set data\.source\.size"):
        list(build(section(parquet(tmp_path / "mixed.parquet"))).train(0))


def test_an_unknown_split(session, folder):
    with pytest.raises(DataError, match="no samples in split 'vall'; did you mean 'val'"):
        next(build(section(parquet(folder))).evaluate("vall"))
    with pytest.raises(DataError, match="no samples in split 'test'"):
        next(build(section(parquet(folder))).evaluate("test"))


def test_sources_that_are_not_files_are_refused(session):
    with pytest.raises(DataError, match=r"source\.type is digits; set data\.loader\.type=memory"):
        build(section(Digits()))


def test_says_so_when_no_cpu_is_left(session, folder, monkeypatch):
    monkeypatch.setattr(ray_reader, "PATIENCE", 1.0)

    @ray.remote
    class Busy:
        def ready(self):
            return True

    busy = [Busy.options(num_cpus=1).remote() for _ in range(2)]
    ray.get([one.ready.remote() for one in busy])
    # What is free is told by the nodes, a moment later.
    while ray.available_resources().get("CPU"):
        time.sleep(0.05)
    try:
        with pytest.raises(ResourceError, match=r"needs 1 CPU, but of the cluster's 2 0 are free"):
            build(section(parquet(folder)))
        shared = build(section(parquet(folder), cpus=0))
        assert len(list(shared.train(0))) == shared.steps_per_epoch
    finally:
        for one in busy:
            ray.kill(one)
    with pytest.raises(ResourceError, match="of the cluster's 2"):
        monkeypatch.setattr(ray_reader.ray, "cluster_resources", lambda: {"CPU": 2.0})
        ray_reader._await_cpu(3.0)


def test_reads_outside_the_placement_group_of_its_worker(session, folder):
    """A trial's group holds its worker alone; reading inside it would wait for ever."""
    data = section(parquet(folder))
    group = placement_group([{"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    @ray.remote(num_cpus=1, scheduling_strategy=inside)
    def trial() -> int:
        loader = RayDataLoader(
            data.loader, data=data, seed=5, batch_size=32, micro_batch=None, worker=SingleWorker()
        )
        return sum(len(m) for batch in loader.train(0) for m in batch.micro_batches)

    try:
        assert ray.get(trial.remote(), timeout=600) == TOTAL * 0.85
    finally:
        remove_placement_group(group)


def test_an_abandoned_epoch_frees_its_cpus(session, folder):
    loader = build(section(parquet(folder)))
    batches = loader.train(0)
    next(batches)
    batches.close()
    ray_reader._await_cpu(2.0)
