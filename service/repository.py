"""What is on disk: `<repository>/<name>/<version>/model.onnx`. Knows nothing of what is inside the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingsInvalid

MODEL_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, order=True)
class ModelFile:
    """One version of one model; the file itself may be missing or broken."""

    name: str
    version: int
    path: Path


def scan(root: Path) -> list[ModelFile]:
    """Every version below `root`, by name and version. Folders that do not fit the pattern are none of ours.

    Raises SettingsInvalid when `root` is no readable folder.
    """
    try:
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and _NAME.fullmatch(folder.name))
    except OSError as error:
        raise SettingsInvalid(
            f"CAROUSEL_MODEL_REPOSITORY={root} cannot be read: {error.strerror}. "
            "Expected a folder of <name>/<version>/model.onnx."
        ) from error
    return sorted(
        ModelFile(folder.name, int(version.name), version / MODEL_FILE)
        for folder in folders
        for version in folder.iterdir()
        if version.is_dir() and _VERSION.fullmatch(version.name)
    )
