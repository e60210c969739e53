"""Files of a Debian package, without root: ``apt-get download``, then ``dpkg -x``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from orchestrator.errors import DataError

_MINUTES = 10


def unpack(package: str, inside: Path, folder: Path) -> None:
    """Downloads a package and moves the files below `inside` into `folder`, all or none.

    Where the package is not known, the lists are fetched into a private folder first, so the
    system's own stay as they are.

    Raises:
        DataError: if there is no apt, or it fails; with what it said.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise DataError("there is no apt-get and dpkg here")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".debian-") as name:
        work = Path(name)
        try:
            _run(["apt-get", "download", package], work)
        except DataError:
            _download_with_own_lists(package, work)
        _run(["dpkg", "-x", str(next(work.glob("*.deb"))), "tree"], work)
        found = work / "tree" / inside.relative_to("/")
        if not found.is_dir():
            raise DataError(f"{package} has no folder {inside}")
        if folder.exists():
            shutil.rmtree(folder)
        found.rename(folder)


def _download_with_own_lists(package: str, work: Path) -> None:
    for part in ("lists/partial", "archives/partial"):
        (work / part).mkdir(parents=True)
    options = [
        *("-o", f"Dir::State::lists={work}/lists"),
        *("-o", f"Dir::Cache={work}"),
        # Without root apt can't become its own user, which it would only warn about.
        *("-o", "APT::Sandbox::User=root"),
    ]
    _run(["apt-get", *options, "update"], work)
    _run(["apt-get", *options, "download", package], work)


def _run(command: list[str], work: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, timeout=60 * _MINUTES
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{command[0]} took longer than {_MINUTES} minutes") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise DataError(f"`{' '.join(command[:1] + command[-2:])}` failed: {' '.join(said)}")
