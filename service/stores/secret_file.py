"""A secret in a file of its own, that only its owner may read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

MIN_BYTES = 16


def keep_in_file(path: Path, made: bytes) -> bytes:
    """The secret that `path` holds: `made`, unless there was one. Raises OSError where it cannot be kept or read."""
    with suppress(FileNotFoundError):
        return _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # written whole before it has its name: of two processes that begin at once, both take the one that was first
    new = path.with_name(f"{path.name}.{token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(made)
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) < MIN_BYTES:
        raise OSError(f"{path} holds {len(secret)} bytes; a secret has {MIN_BYTES} at least. Remove it to have it made")
    return secret
