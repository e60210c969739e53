"""Decoded data on disk: shared, checked, rebuilt when damaged."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.base import Part, part
from orchestrator.config.data import ImageFolder, Synthetic
from orchestrator.data.cache import check_source, open_source, remember, source_key
from orchestrator.data.types import Samples, SourceData
from orchestrator.errors import DataError
from orchestrator.files import cache_root

SMALL = Synthetic(samples=40, test_samples=10, size=6)


class Counted(Part):
    """A source that tells how often it was decoded."""

    type: str = "counted_in_tests"
    path: str


def load_counted(config: Counted, cache) -> SourceData:
    with Path(config.path + ".log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    while Path(config.path + ".hold").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    images = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3, 1)
    samples = Samples({"image": images}, {"label": np.array([0, 1, 0, 1])})
    return SourceData(samples, None, ("a", "b"), ("a note",))


part("source", "counted_in_tests", build=load_counted)(Counted)


def times_decoded(config: Counted) -> int:
    return len(Path(config.path + ".log").read_text().splitlines())


def test_arrays_come_back_as_read_only_maps(cache):
    first = open_source(SMALL)
    again = open_source(SMALL, verify=True)
    image = again.data.train.inputs["image"]
    assert first.folder.is_relative_to(cache) and cache_root() == cache
    assert isinstance(image.base, np.memmap)
    assert not image.flags.writeable
    assert image.shape == (40, 6, 6, 1)
    assert first.digest == again.digest
    assert len(again.data.test) == 10


def test_the_digest_follows_the_content_not_the_place(tmp_path, monkeypatch):
    here = open_source(SMALL).digest
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "elsewhere"))
    assert open_source(SMALL).digest == here
    assert open_source(Synthetic(samples=40, test_samples=10, size=6, seed=1)).digest != here


def test_processes_that_come_at_once_decode_once(tmp_path):
    config = Counted(path=str(tmp_path / "data"))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_source, args=(config,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert times_decoded(config) == 1
    assert open_source(config).data.notes == ("a note",)


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path):
    config = Counted(path=str(tmp_path / "data"))
    hold = Path(config.path + ".hold")
    hold.touch()
    process = multiprocessing.get_context("fork").Process(target=open_source, args=(config,))
    process.start()
    while not Path(config.path + ".log").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    hold.unlink()
    found = open_source(config)
    assert times_decoded(config) == 2
    assert [p.name for p in found.folder.parent.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "shape"])
def test_damage_is_noticed_and_mended(damage, caplog):
    found = open_source(SMALL)
    path = found.folder / "train.inputs.image.npy"
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "missing":
        path.unlink()
    elif damage == "manifest":
        (found.folder / "manifest.json").write_text('{"format": 1')
    else:
        other = np.zeros((40, 4, 9, 1), np.uint8)  # as many bytes, another shape
        np.save(path, other)
    with caplog.at_level(logging.WARNING):
        again = open_source(SMALL)
    assert "built again" in caplog.text
    assert again.digest == found.digest
    assert again.data.train.inputs["image"].shape == (40, 6, 6, 1)


def test_a_flipped_bit_is_found_by_verifying(caplog):
    found = open_source(SMALL)
    path = found.folder / "train.inputs.image.npy"
    before = np.array(found.data.train.inputs["image"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = open_source(SMALL, verify=True)
    assert "checksum" in caplog.text
    assert np.array_equal(again.data.train.inputs["image"], before)


def test_changed_files_are_another_source(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"x")
    config = ImageFolder(path=str(tmp_path))
    before = source_key(config)
    assert source_key(config) == before
    (tmp_path / "a" / "1.png").write_bytes(b"xy")
    assert source_key(config) != before
    assert source_key(ImageFolder(path=str(tmp_path), size=9)) != source_key(config)


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"can't be used.*set ORCH_CACHE"):
        open_source(SMALL)


def test_remember_computes_once_and_survives_damage(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return [0.1, len(calls)]

    path = tmp_path / "value.json"
    assert remember(path, compute) == remember(path, compute) == [0.1, 1]
    path.write_text("{")
    assert remember(path, compute) == [0.1, 2]
    assert json.loads(path.read_text()) == [0.1, 2]


@pytest.mark.parametrize(
    ("image", "label", "names", "message"),
    [
        (np.zeros((2, 3, 3, 1), np.float32), [0, 1], "ab", "must be uint8"),
        (np.zeros((2, 3, 3), np.uint8), [0, 1], "ab", r"\(N, H, W, C\)"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0.0, 1.0], "ab", "must be int64"),
        (np.zeros((3, 3, 3, 1), np.uint8), [0, 1], "ab", "3 rows.*2 labels"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 2], "ab", r"0\.\.1.*0\.\.2"),
        (np.zeros((2, 3, 3, 1), np.uint8), [-1, 1], "ab", r"-1\.\.1"),
        (np.zeros((0, 3, 3, 1), np.uint8), np.zeros(0, np.int64), "ab", "there are none"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 0], "a", "two classes"),
    ],
)
def test_sources_that_make_no_sense_are_refused(image, label, names, message):
    data = SourceData(Samples({"image": image}, {"label": np.array(label)}), None, tuple(names))
    with pytest.raises(DataError, match=message):
        check_source(data, "mine")
