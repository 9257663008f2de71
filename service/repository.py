"""What is on disk: `<repository>/<name>/<version>/model.onnx`. Knows nothing of what is inside the file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import SettingsInvalid

MODEL_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

Stamp = tuple[int, int, int]
"""Inode, size and time of the last change in ns: another file, or the same one written again, has another."""


@dataclass(frozen=True, order=True)
class ModelFile:
    """One version of one model; the file itself may be missing or broken."""

    name: str
    version: int
    path: Path
    stamp: Stamp | None = field(default=None, compare=False)
    """None: there is no such file."""


def scan(root: Path) -> list[ModelFile]:
    """Every version below `root`, by name and version. Folders that do not fit the pattern are none of ours.

    Raises SettingsInvalid when `root`, or the folder of a model, is no readable folder.
    """
    return sorted(
        ModelFile(folder.name, int(version.name), version / MODEL_FILE, _stamp(version / MODEL_FILE))
        for folder in _folders(root, root, _NAME)
        for version in _folders(root, folder, _VERSION)
    )


def _folders(root: Path, parent: Path, pattern: re.Pattern[str]) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if pattern.fullmatch(path.name) and path.is_dir()]
    except OSError as error:
        if parent != root and isinstance(error, FileNotFoundError | NotADirectoryError):
            return []  # removed since the root was read
        inside = "" if parent == root else f": its folder {parent.name}"
        raise SettingsInvalid(
            f"CAROUSEL_MODEL_REPOSITORY={root}{inside} cannot be read: {error.strerror}. "
            "Expected a folder of <name>/<version>/model.onnx."
        ) from error


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
