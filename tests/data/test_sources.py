"""Sources against files that are right, damaged, missing or odd."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import struct
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.config.data import Digits, FashionMnist, ImageFolder, Parquet, Synthetic
from orchestrator.data.sources import (
    debian,
    digits,
    download,
    fashion_mnist,
    idx,
    image_folder,
    images,
    parquet,
    synthetic,
)
from orchestrator.errors import DataError

RANDOM = np.random.default_rng(0)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, train: int = 6, test: int = 4) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, count in (("train", train), ("t10k", test)):
        arrays[f"{split}-images-idx3-ubyte"] = RANDOM.integers(0, 256, (count, 5, 4))
        arrays[f"{split}-labels-idx1-ubyte"] = np.arange(count) % 10
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return arrays


# --- fashion_mnist ---------------------------------------------------------------------------


def test_idx_files_of_ones_own(tmp_path):
    arrays = write_idx(tmp_path)
    data = fashion_mnist.load(FashionMnist(root=str(tmp_path)), tmp_path)
    assert np.array_equal(
        data.train.inputs["image"][..., 0], arrays["train-images-idx3-ubyte"].astype(np.uint8)
    )
    assert data.test.targets["label"].tolist() == [0, 1, 2, 3]
    assert data.label_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], "can't be read"),
        (lambda data: data[:40] + b"\0\0\0\0" + data[44:], "can't be read"),
        (lambda data: b"<html>no such file</html>", "can't be read"),
        (lambda data: gzip.compress(b""), "start with 00 00 08 03"),
        (lambda data: gzip.compress(b"\0\0\x0d\3" + gzip.decompress(data)[4:]), "00 00 0d 03"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), "damaged.*has 135"),
        (lambda data: gzip.compress(gzip.decompress(data) + b"x"), "damaged.*has 137"),
        (lambda data: gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12), "damaged"),
        (lambda data: gzip.compress(idx_bytes(np.zeros((5, 5, 4)))), "5 images but 6 labels"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        fashion_mnist.load(FashionMnist(root=str(tmp_path)), tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_and_a_wrong_label_are_named(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.array([0, 1, 2, 10]))))
    with pytest.raises(DataError, match=r"0\.\.9, but reach 10"):
        fashion_mnist.load(FashionMnist(root=str(tmp_path)), tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"neither t10k-labels-idx1-ubyte.gz nor"):
        fashion_mnist.load(FashionMnist(root=str(tmp_path)), tmp_path)


def test_every_way_that_failed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "not-installed")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    with pytest.raises(DataError) as caught:
        fashion_mnist.load(FashionMnist(), tmp_path)
    said = str(caught.value)
    for part in ("cache", "not-installed", "no apt-get", "127.0.0.1:9", "type=digits", "root"):
        assert part in said


def test_a_damaged_download_gives_way_to_the_next_place(tmp_path, monkeypatch):
    """The cache has all four files, but of another data set: Debian's are taken instead."""
    if not fashion_mnist.INSTALLED.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    write_idx(tmp_path / "files" / "fashion_mnist")
    data = fashion_mnist.load(FashionMnist(), tmp_path)
    assert data.train.inputs["image"].shape == (60_000, 28, 28, 1)
    assert data.test.inputs["image"].shape == (10_000, 28, 28, 1)
    assert np.bincount(data.train.targets["label"]).tolist() == [6_000] * 10


@pytest.fixture
def server(tmp_path):
    """A real HTTP server over a folder; counts requests, and fails as often as it is told."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        requests = 0
        failures = 0

        def do_GET(self):
            Handler.requests += 1
            if Handler.failures:
                Handler.failures -= 1
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}", Handler
        running.shutdown()


def test_download_is_retried_checked_and_kept(tmp_path, server):
    folder, address, handler = server
    (folder / "a.gz").write_bytes(gzip.compress(b"right"))
    target = tmp_path / "files" / "a.gz"
    right = hashlib.sha256(b"right").hexdigest()
    handler.failures = 2
    download.fetch(f"{address}/a.gz", target, right, pause_s=0.01)
    assert gzip.decompress(target.read_bytes()) == b"right"
    assert handler.requests == 3
    download.fetch(f"{address}/a.gz", target, right)
    assert handler.requests == 3, "what is there and right is not fetched again"


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"wrong", mtime=0), gzip.compress(b"right", mtime=0)[:-4]],
    ids=["other", "short"],
)
def test_a_wrong_download_is_never_kept(tmp_path, server, content):
    folder, address, _ = server
    (folder / "a.gz").write_bytes(content)
    target = tmp_path / "files" / "a.gz"
    with pytest.raises(DataError, match=r"does not match its checksum.*3 attempts"):
        download.fetch(
            f"{address}/a.gz", target, hashlib.sha256(b"right").hexdigest(), pause_s=0.01
        )
    assert list(target.parent.iterdir()) == []


def test_download_fills_the_cache(tmp_path, server, monkeypatch):
    folder, address, _ = server
    arrays = write_idx(folder)
    sums = {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(fashion_mnist, "CHECKSUMS", sums)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "not-installed")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", address)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(fashion_mnist.load(FashionMnist(), tmp_path).train) == 6
    assert sorted(p.name for p in (tmp_path / "files" / "fashion_mnist").iterdir()) == sorted(
        f"{name}.gz" for name in arrays
    )


def test_an_unknown_debian_package_says_why(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg"):
        (programs / name).write_text(
            "#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n"
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    with pytest.raises(DataError, match="Unable to locate package"):
        debian.unpack("no-such-package", Path("/usr/share/none"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_idx_shape_of_labels():
    data = idx_bytes(np.arange(7))
    assert idx.parse(data, 1, "labels").tolist() == list(range(7))
    with pytest.raises(DataError, match="2 dimension"):
        idx.parse(data, 2, "labels")


# --- digits and synthetic --------------------------------------------------------------------


def test_digits_are_scaled_and_their_test_split_is_fixed(tmp_path):
    from sklearn.datasets import load_digits

    data = digits.load(Digits(), tmp_path)
    original = load_digits()
    assert (len(data.train), len(data.test)) == (1438, 359)
    every = np.concatenate([data.train.inputs["image"], data.test.inputs["image"]])
    assert every.max() == 255 and every.min() == 0
    assert every.astype(float).sum() == np.round(original.images * 255 / 16).sum()
    share = np.bincount(data.test.targets["label"]) / np.bincount(original.target)
    assert np.allclose(share, 0.2, atol=0.01)
    again = digits.load(Digits(), tmp_path)
    assert np.array_equal(again.test.inputs["image"], data.test.inputs["image"])


def test_synthetic_classes_can_be_learnt(tmp_path):
    config = Synthetic(samples=400, test_samples=100, size=10, channels=3, classes=5, noise=1.0)
    data = synthetic.load(config, tmp_path)
    assert data.train.inputs["image"].shape == (400, 10, 10, 3)
    assert np.bincount(data.train.targets["label"]).tolist() == [80] * 5
    x = data.train.inputs["image"].reshape(400, -1).astype(float)
    means = np.stack([x[data.train.targets["label"] == k].mean(0) for k in range(5)])
    test = data.test.inputs["image"].reshape(100, -1).astype(float)
    nearest = ((test[:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == data.test.targets["label"]).mean() > 0.95
    assert synthetic.load(Synthetic(test_samples=0), tmp_path).test is None


# --- image_folder ----------------------------------------------------------------------------


def write_images(folder: Path, counts: dict[str, int], size=(6, 8), mode="RGB") -> None:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            pixels = RANDOM.integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_folders_are_classes_in_sorted_order(tmp_path):
    write_images(tmp_path / "train", {"cat": 3, "ant": 2}, size=(5, 5))
    write_images(tmp_path / "test", {"cat": 1}, size=(5, 5))
    config = ImageFolder(path=str(tmp_path), size=5)
    data = image_folder.load(config, tmp_path)
    assert data.label_names == ("ant", "cat")
    assert data.train.targets["label"].tolist() == [0, 0, 1, 1, 1]
    assert data.test.targets["label"].tolist() == [1]
    with Image.open(tmp_path / "train" / "cat" / "0.png") as image:
        assert np.array_equal(data.train.inputs["image"][2], np.asarray(image))


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    """20×10, left half black, right half white: the centre 10×10 has the edge in its middle."""
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 10:] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    whole = images.decode(tmp_path / "wide.png", 10, 1)
    assert whole.shape == (10, 10, 1)
    assert whole[:, :5].max() == 0 and whole[:, 5:].min() == 255
    small = images.decode(tmp_path / "wide.png", 4, 3)
    assert small.shape == (4, 4, 3)
    assert small[:, 0].max() == 0 and small[:, 3].min() == 255


def test_exif_orientation_is_honoured(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert images.decode(tmp_path / "a.png", None, 1)[3].min() == 255


def test_corrupt_images_are_skipped_and_named_up_to_a_limit(tmp_path):
    write_images(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "1.png").write_bytes(b"not a picture")
    path = tmp_path / "b" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    data = image_folder.load(ImageFolder(path=str(tmp_path), size=4), tmp_path)
    assert data.train.targets["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert "2 unreadable" in data.notes[0]
    assert str(path) in data.notes[0]
    with pytest.raises(DataError, match="max_corrupt=1") as caught:
        image_folder.load(ImageFolder(path=str(tmp_path), size=4, max_corrupt=1), tmp_path)
    assert str(path) in str(caught.value)
    assert "1.png" in str(caught.value)


def test_folders_that_make_no_sense(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        image_folder.load(ImageFolder(path=str(tmp_path / "none")), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no folders"):
        image_folder.load(ImageFolder(path=str(tmp_path / "empty")), tmp_path)
    write_images(tmp_path / "d" / "train", {"a": 1, "b": 1})
    (tmp_path / "d" / "train" / "c").mkdir()
    with pytest.raises(DataError, match=r"d/train/c has no image"):
        image_folder.load(ImageFolder(path=str(tmp_path / "d")), tmp_path)
    (tmp_path / "d" / "train" / "c").rmdir()
    write_images(tmp_path / "d" / "test", {"z": 1})
    with pytest.raises(DataError, match=r"that .*train lacks: z"):
        image_folder.load(ImageFolder(path=str(tmp_path / "d")), tmp_path)


# --- parquet ---------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PIXELS = RANDOM.integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = ["b", "a", "b", "c", "a", "b"]


def encodings():
    plain = [png(pixels) for pixels in PIXELS]
    yield "bytes", pa.array(plain), {}
    yield "large bytes", pa.array(plain, pa.large_binary()), {}
    yield "structs", pa.array([{"bytes": data, "path": None} for data in plain]), {}
    yield "flat lists", pa.array(PIXELS.reshape(6, -1).tolist()), {"shape": (4, 5, 3)}
    yield (
        "nested lists",
        pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        {"shape": (4, 5, 3)},
    )
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(PIXELS.ravel()), 60)
    yield "fixed lists", fixed, {"shape": (4, 5, 3)}


@pytest.mark.parametrize(("name", "column", "extra"), list(encodings()), ids=lambda v: str(v)[:12])
def test_parquet_images_in_every_form(tmp_path, name, column, extra):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": column, "label": LABELS}), path, row_group_size=4)
    data = parquet.load(Parquet(path=str(path), **extra), tmp_path)
    assert np.array_equal(data.train.inputs["image"], PIXELS)
    assert data.label_names == ("a", "b", "c")
    assert data.train.targets["label"].tolist() == [1, 0, 1, 2, 0, 1]


def test_parquet_folders_and_integer_labels(tmp_path):
    for split, labels in (("train", [10, 2, 10]), ("test", [2])):
        (tmp_path / split).mkdir()
        grey = [bytes_.tolist() for bytes_ in PIXELS[: len(labels), ..., 0].reshape(-1, 20)]
        table = pa.table({"x": grey, "y": labels})
        pq.write_table(table, tmp_path / split / "0.parquet")
    config = Parquet(path=str(tmp_path), image="x", label="y", shape=(4, 5))
    data = parquet.load(config, tmp_path)
    assert data.label_names == ("2", "10")
    assert data.train.targets["label"].tolist() == [1, 0, 1]
    assert data.test.inputs["image"].shape == (1, 4, 5, 1)


def test_parquet_class_names_from_metadata(tmp_path):
    about = b'{"info": {"features": {"label": {"names": ["zero", "one", "two"]}}}}'
    table = pa.table({"image": [png(p) for p in PIXELS[:2]], "label": [2, 0]})
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({b"huggingface": about}), path)
    data = parquet.load(Parquet(path=str(path)), tmp_path)
    assert data.label_names == ("zero", "one", "two")
    assert data.train.targets["label"].tolist() == [2, 0]


def bad_tables():
    good = [png(pixels) for pixels in PIXELS]
    flat = PIXELS.reshape(6, -1).tolist()
    yield {"img": good, "label": LABELS}, {}, "no column 'image'; it has: img, label"
    yield {"image": good, "label": [None, *LABELS[1:]]}, {}, "1 rows have no label"
    yield {"image": good, "label": [0.5] * 6}, {}, "integers or strings, not double"
    yield {"image": flat, "label": LABELS}, {}, "data.source.shape must say"
    yield {"image": flat, "label": LABELS}, {"shape": (4, 4, 3)}, "must have 48 values"
    yield {"image": [flat[0] * 2, [], *flat[2:]], "label": LABELS}, {"shape": (4, 5, 3)}, "60 val"
    yield (
        {"image": [[300] * 60] * 6, "label": LABELS},
        {"shape": (4, 5, 3)},
        r"in 0\.\.255, but reach 300\.\.300",
    )
    yield {"image": [[0.5] * 60] * 6, "label": LABELS}, {"shape": (4, 5, 3)}, "integers"
    yield (
        {"image": LABELS, "label": LABELS},
        {"shape": (4, 5, 3)},
        "holds string; it must hold encoded",
    )
    empty = pa.array([None] * 6, pa.binary())
    yield {"image": empty, "label": LABELS}, {"max_corrupt": 5}, "max_corrupt=5"
    mixed = [png(PIXELS[0]), png(PIXELS[0][:3])] * 3
    yield {"image": mixed, "label": LABELS}, {}, "of one size.*set data.source.size"


@pytest.mark.parametrize(("columns", "extra", "message"), list(bad_tables()))
def test_parquet_that_does_not_fit_is_refused(tmp_path, columns, extra, message):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=message):
        parquet.load(Parquet(path=str(path), **extra), tmp_path)


def test_parquet_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="neither a Parquet file nor a folder"):
        parquet.load(Parquet(path=str(tmp_path / "none")), tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"a\.parquet can't be read as Parquet"):
        parquet.load(Parquet(path=str(tmp_path)), tmp_path)


def test_parquet_unknown_test_label(tmp_path):
    for split, label in (("train", "a"), ("test", "z")):
        (tmp_path / split).mkdir()
        table = pa.table({"image": [png(PIXELS[0])] * 2, "label": [label, "b"]})
        pq.write_table(table, tmp_path / split / "0.parquet")
    with pytest.raises(DataError, match="label 'z' of the test files"):
        parquet.load(Parquet(path=str(tmp_path)), tmp_path)
