"""Sources on disk: listed like their in-memory loading, read in pieces."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.config.data import ImageFolder, Parquet, Synthetic
from orchestrator.data import stored
from orchestrator.data.sources import image_folder, parquet
from orchestrator.data.stored import open_stored
from orchestrator.errors import DataError

RANDOM = np.random.default_rng(0)


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def read(split, ids) -> tuple[np.ndarray, np.ndarray]:
    """Through pickle, as the pieces travel."""
    pieces = pickle.loads(pickle.dumps(list(split.pieces(np.asarray(ids)))))
    pixels = [part for piece in pieces for part in piece.read()]
    assert not any(note for part in pixels for note in part.notes)
    return (
        np.concatenate([part.ids for part in pixels]),
        np.concatenate([part.images for part in pixels]),
    )


IMAGES = RANDOM.integers(0, 256, (30, 5, 5, 3), np.uint8)
COLUMNS = {
    "bytes": [encoded(image) for image in IMAGES],
    "structs": [{"bytes": encoded(image), "path": None} for image in IMAGES],
    "flat arrays": [image.ravel().tolist() for image in IMAGES],
}


@pytest.mark.parametrize("form", COLUMNS)
def test_parquet_reads_what_loading_gives(tmp_path, form):
    labels = [f"class {n % 3}" for n in range(30)]
    table = pa.table({"image": COLUMNS[form], "label": labels})
    for file, rows in (("a", slice(0, 18)), ("b", slice(18, 30))):
        part = table.slice(rows.start, rows.stop - rows.start)
        pq.write_table(part, tmp_path / f"{file}.parquet", row_group_size=7)
    config = Parquet(path=str(tmp_path), shape=(5, 5, 3) if "arrays" in form else None)
    whole, source = parquet.load(config, tmp_path), open_stored(config)
    assert source.label_names == whole.label_names
    assert np.array_equal(source.train.labels, whole.train.targets["label"])
    assert source.train.groups == [7, 7, 4, 7, 5]
    ids, images = read(source.train, [3, 6, 7, 17, 18, 29])
    assert ids.tolist() == [3, 6, 7, 17, 18, 29]
    assert np.array_equal(images, whole.train.inputs["image"][ids])


def test_folders_read_what_loading_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CHUNK", 4)
    for split, images in (("train", IMAGES[:20]), ("test", IMAGES[20:])):
        for n, image in enumerate(images):
            place = tmp_path / split / "ab"[n % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{n:02}.png").write_bytes(encoded(image))
    config = ImageFolder(path=str(tmp_path), size=5)
    whole, source = image_folder.load(config, tmp_path), open_stored(config)
    assert source.label_names == whole.label_names == ("a", "b")
    for mine, its in ((source.train, whole.train), (source.test, whole.test)):
        assert np.array_equal(mine.labels, its.targets["label"])
        assert sum(mine.groups) == len(its)
        ids, images = read(mine, np.arange(len(its)))
        assert ids.tolist() == list(range(len(its)))
        assert np.array_equal(images, its.inputs["image"])
    digest = source.digest
    (tmp_path / "train" / "a" / "00.png").write_bytes(b"another size")
    assert open_stored(config).digest != digest


def test_row_groups_are_read_once_and_handed_on_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CHUNK", 4)
    table = pa.table({"image": COLUMNS["bytes"], "label": [0, 1] * 15})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    source = open_stored(Parquet(path=str(tmp_path / "a.parquet")))
    first, second = source.train.pieces(np.arange(30))
    assert [len(part.ids) for part in first.read()] == [4, 4, 4, 4, 4]
    assert [len(part.ids) for part in second.read()] == [4, 4, 2]


def test_classes_that_only_the_test_split_has(tmp_path):
    for place in ("train/a", "train/b", "test/c"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.png").write_bytes(encoded(IMAGES[0]))
    with pytest.raises(DataError, match="lacks: c"):
        open_stored(ImageFolder(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Synthetic(), "image_folder and parquet"),
        (ImageFolder(path="/nowhere"), "is not a folder"),
        (Parquet(path="/nowhere"), "neither a Parquet file nor a folder"),
    ],
)
def test_what_cannot_be_opened(config, message):
    with pytest.raises(DataError, match=message):
        open_stored(config)
