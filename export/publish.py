"""Puts a model file into a repository, `<repository>/<name>/<version>/model.onnx`, in one rename.

A reader sees a version whole or not at all, and two publishers never get the same number. Knows no ONNX.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

MODEL_FILE = "model.onnx"
# What the service looks for; it skips every other folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class PublishError(Exception):
    """The model could not be put there; the repository is as it was."""


def publish(repository: str | Path, name: str, data: bytes) -> Path:
    """Write `data` as the next version of `name` and return its folder.

    Raises PublishError for a name that is no folder name, and where the disk refuses.
    """
    folder = _folder(repository, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_and_rename(folder, data)
    except OSError as error:
        raise PublishError(f"cannot write to {folder}: {error.strerror or error}") from error


def check_writable(repository: str | Path, name: str) -> None:
    """Raises PublishError, before any work is done, where `publish` would raise it after."""
    folder = _folder(repository, name)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise PublishError(f"cannot write to {folder}: {nearest} is no folder that this user may write to")


def _folder(repository: str | Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise PublishError(f"{name!r} is no model name: letters, digits, '.', '_' and '-', first a letter or digit")
    return Path(repository) / name


def next_version(folder: Path) -> int:
    """One above the highest number in `folder`; gaps are not filled, so that a number never means two models."""
    return max((int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)), default=0) + 1


def _write_and_rename(folder: Path, data: bytes) -> Path:
    # Beside the target, since a rename is atomic only within one file system; readers skip names that are no number.
    unfinished = Path(tempfile.mkdtemp(prefix=".publishing-", dir=folder))
    try:
        with (unfinished / MODEL_FILE).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.chmod(0o755)  # mkdtemp's 0700 would hide the model from a server run by another user
        _sync_folder(unfinished)
        version = _rename_to_next(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync_folder(folder)
    return version


def _rename_to_next(unfinished: Path, folder: Path) -> Path:
    while True:
        version = folder / str(next_version(folder))
        try:
            unfinished.rename(version)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            continue  # another publisher took this number between our look and our rename
        return version


def _sync_folder(folder: Path) -> None:
    """Without this a power cut may forget the names, though the file's bytes are safe."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
