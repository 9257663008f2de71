"""Opens a file; one that is damaged is moved aside, and a new one filled with all that is sound in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import structlog

from service.errors import SettingsInvalid
from service.stores.sqlite.file import APPLICATION_ID, File, FileDamaged, Synchronous, readable_names
from service.stores.sqlite.frames import TOMBSTONE, frame, id_of, pack_tombstone
from service.stores.sqlite.salvage import Salvaged, salvage
from service.stores.store import DAMAGED, TOMBSTONE_SECONDS

log = structlog.get_logger(__name__)

_HEADER, _APPLICATION_ID = b"SQLite format 3\x00", slice(68, 72)


def open_file(path: Path, synchronous: Synchronous, clock: Callable[[], float]) -> File:
    """Raises SettingsInvalid for a file that is none of ours."""
    try:
        return File(path, synchronous)
    except FileDamaged as error:
        rebuild(path, error, clock())
    return File(path, synchronous)


def rebuild(path: Path, error: FileDamaged, now: float) -> None:
    """Put a sound file in the place of a damaged one that is closed. What is lost is a tombstone there."""
    names = readable_names(path)
    salvaged = salvage(path, error.log, names)
    if not salvaged.names and not salvaged.damaged and not _looks_like_ours(path):
        raise SettingsInvalid(
            f"CAROUSEL_STATE_STORE: {path} is no file of this server, and is left as it is: {error}. Name another file."
        ) from error
    new = Path(f"{path}.new")
    for leftover in (new, Path(f"{new}-wal")):
        leftover.unlink(missing_ok=True)
    file = File(new, "full")
    try:
        _fill(file, salvaged, now)
    finally:
        file.close()
    aside = _free_name(path)
    os.link(path, aside)
    for log_file in (Path(f"{path}-wal"), Path(f"{path}-shm")):
        log_file.unlink(missing_ok=True)
    new.replace(path)
    log.error(
        "state_file_damaged",
        path=str(path),
        reason=str(error),
        kept_as=str(aside),
        sound=len(salvaged.names),
        lost=len(salvaged.damaged),
        nameless=salvaged.nameless,
    )


def _fill(file: File, salvaged: Salvaged, now: float) -> None:
    rows, names = list(salvaged.rows), [(name, number, 0, int(dead)) for name, number, dead in salvaged.names]
    number = max((number for _, number, _ in salvaged.names), default=0)
    for lost in salvaged.damaged:
        number += 1
        row_id = id_of(number, TOMBSTONE)
        rows.append((row_id, frame(row_id, 0, pack_tombstone(lost, now, DAMAGED))))
        names.append((lost, number, int(now + TOMBSTONE_SECONDS), 1))
    file.restore(rows, names, salvaged.opening + 1)


def _looks_like_ours(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(100)
    ours = header[_APPLICATION_ID] == APPLICATION_ID.to_bytes(4, "big")
    return ours or (len(header) < 100 and _HEADER.startswith(header[: len(_HEADER)]))


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := Path(f"{path}.damaged-{number}")).exists():
        number += 1
    return aside
