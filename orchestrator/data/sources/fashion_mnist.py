"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), wherever its four files can be had."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orchestrator.config.data import FashionMnist
from orchestrator.data.sources import debian, download, idx
from orchestrator.data.types import Samples, SourceData
from orchestrator.errors import DataError

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""sha256 of each unpacked file: packers write different headers around the same bytes."""


def load(config: FashionMnist, cache: Path) -> SourceData:
    """Reads `config.root`, or else the first place whose four files are whole.

    Places are the cache, Debian's installed package, its package unpacked without root, and a
    download from the data set's own address.

    Raises:
        DataError: if `config.root` has a missing or damaged file; or, without it, naming every
            way that was tried and why it failed.
    """
    if config.root is not None:
        return parse(Path(config.root).expanduser(), checked=False)
    failures = []
    for way, attempt in _ways(cache / "files" / "fashion_mnist"):
        try:
            return parse(attempt(), checked=True)
        except (DataError, OSError) as error:
            failures.append(f"  - {way}: {error}")
    raise DataError(
        "Fashion-MNIST was not found and could not be fetched:\n"
        + "\n".join(failures)
        + f"\nInstall {PACKAGE}, or put the four files into a folder and set "
        "data.source.root to it; data.source.type=digits works offline"
    )


def _ways(folder: Path) -> list[tuple[str, Callable[[], Path]]]:
    return [
        (f"the cache {folder}", lambda: folder),
        (f"Debian's package in {INSTALLED}", lambda: INSTALLED),
        (f"unpacking Debian's package {PACKAGE}", lambda: _from_debian(folder)),
        (f"download from {ADDRESS}", lambda: _from_address(folder)),
    ]


def parse(folder: Path, *, checked: bool) -> SourceData:
    """Reads the four files of a folder.

    Args:
        checked: hold the content against Fashion-MNIST's checksums; a folder of one's own may
            hold another data set of the same layout.

    Raises:
        DataError: naming the file that is missing or damaged.
    """
    return SourceData(_samples(folder, "train", checked), _samples(folder, "t10k", checked), LABELS)


def _samples(folder: Path, split: str, checked: bool) -> Samples:
    images = _array(folder, f"{split}-images-idx3-ubyte", 3, checked)
    labels = _array(folder, f"{split}-labels-idx1-ubyte", 1, checked)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {split} has {len(images)} images but {len(labels)} labels; "
            "the files belong to different data sets"
        )
    if labels.max() >= len(LABELS):
        raise DataError(
            f"{folder}/{split}-labels-idx1-ubyte: labels must lie in 0..9, but reach {labels.max()}"
        )
    return Samples({"image": images[..., None]}, {"label": labels.astype(np.int64)})


def _array(folder: Path, name: str, dimensions: int, checked: bool) -> np.ndarray:
    path = _file(folder, name)
    data = idx.read(path)
    if checked and hashlib.sha256(data).hexdigest() != CHECKSUMS[name]:
        raise DataError(f"{path} does not match its checksum; remove it to fetch it again")
    return idx.parse(data, dimensions, path)


def _file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder} has neither {name}.gz nor {name}")


def _from_debian(folder: Path) -> Path:
    debian.unpack(PACKAGE, INSTALLED, folder)
    return folder


def _from_address(folder: Path) -> Path:
    for name, checksum in CHECKSUMS.items():
        download.fetch(f"{ADDRESS}/{name}.gz", folder / f"{name}.gz", checksum)
    return folder
