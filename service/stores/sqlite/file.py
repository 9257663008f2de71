"""One SQLite file: its lock, its schema, and the statements on it. Knows what rows are called, not what they hold.

For one thread. WAL files of SQLite 3.7.0 to 3.51.2 can be corrupted by two connections that write or checkpoint at
once: there is one connection, and nobody else gets at the file.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from service.errors import SettingsInvalid
from service.stores.sqlite.frames import (
    BLOCK,
    BLOCK_BITS,
    HEAD,
    MAX_OPENINGS,
    NAME_AT,
    ORIGIN,
    SLOT_BITS,
    SLOTS,
    TOMBSTONE,
    WITNESS,
    id_of,
    place_of,
)
from service.stores.sqlite.wal import PAGE_BYTES, last_commit

Synchronous = Literal["normal", "full"]

APPLICATION_ID = 0xC0505E1
MAX_ROWS = 512
"""In one statement. One statement gives up the interpreter's lock once, and gets it back once."""

ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What the statements raise; the latter in place of the former where a message quotes what is damaged."""

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = (
    """
    -- who is known: at = second in which to look whether it is over; dead = 1: it is a tombstone
    CREATE TABLE names (name BLOB PRIMARY KEY, number INTEGER NOT NULL, at INTEGER NOT NULL, dead INTEGER NOT NULL)
        WITHOUT ROWID;
    CREATE INDEX names_by_time ON names (at);
    -- frames
    CREATE TABLE rows (id INTEGER PRIMARY KEY, frame BLOB NOT NULL);
    -- how often the file was opened: the upper half of the order of what is written
    CREATE TABLE openings (num INTEGER NOT NULL);
    INSERT INTO openings VALUES (0);
    """,
)
"""Entry n brings a file of schema version n to n + 1. What is here is never changed, only added to."""

_TABLES = "SELECT sql FROM sqlite_schema ORDER BY rowid"

_RECORD = "SELECT " + ", ".join(f"(SELECT frame FROM rows WHERE id = ?1 + {id_of(0, slot)})" for slot in range(WITNESS))
_WIPE = f"DELETE FROM rows WHERE id IN ({', '.join(f'?1 + {id_of(0, slot)}' for slot in SLOTS)})"
# every name has its origin or its tombstone, which says the same name, and there are no others
_SLOT_OF_NAME = f"CASE dead WHEN 0 THEN {ORIGIN} ELSE {TOMBSTONE} END"
_ROW_OF_NAME = (
    f"((((number >> {BLOCK_BITS}) << {SLOT_BITS} | ({_SLOT_OF_NAME})) << {BLOCK_BITS}) | (number & {BLOCK - 1}))"
)
_STRAY_NAMES = f"""
    SELECT count(*) FROM names LEFT JOIN rows ON id = {_ROW_OF_NAME}
    WHERE frame IS NULL OR substr(frame, {NAME_AT}, length(name)) IS NOT name
"""
_NAMELESS = f"""
    SELECT (SELECT count(*) FROM rows WHERE ((id >> {BLOCK_BITS}) & {2**SLOT_BITS - 1}) IN ({TOMBSTONE}, {ORIGIN}))
         - (SELECT count(*) FROM names)
"""


class FileDamaged(Exception):
    """SQLite, or our own check, found that the file is not what was written."""

    def __init__(self, reason: str, log: bytes) -> None:
        super().__init__(reason)
        self.log = log
        """The write-ahead log as it was before SQLite opened it; closing the file drops what it cannot read of it."""


def is_corrupt(error: Exception) -> bool:
    """Does one of ERRORS tell of damage, and not of a disk that is full or away?"""
    return isinstance(error, UnicodeDecodeError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT


class FileInUse(SettingsInvalid):
    """Another process has it open."""


class Lock:
    """Keeps other processes from the file, for as long as this one lives."""

    def __init__(self, path: Path) -> None:
        """Raises FileInUse if another process has it, SettingsInvalid if the folder cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsInvalid(
                f"CAROUSEL_STATE_STORE: {path} cannot be written: {error.strerror}. Name a file in a folder that can."
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise FileInUse(
                f"CAROUSEL_STATE_STORE: another process has {path} open. One server at a time can use a file; "
                "several share a redis:// store."
            ) from error

    def release(self) -> None:
        os.close(self._descriptor)


class File:
    """The open file. Methods raise one of ERRORS; `is_corrupt` tells damage from the rest."""

    def __init__(self, path: Path, synchronous: Synchronous) -> None:
        """Open, make or migrate. Raises FileDamaged, SettingsInvalid."""
        self._path = path
        log = read_log(path)
        try:
            self._connection = _connect(path)
            try:
                self._set_up(synchronous)
                self._check(log)
                self._migrate()
                self.opening = self._count_opening(log)
            except BaseException:
                self._connection.close()
                raise
        except ERRORS as error:
            if is_corrupt(error):
                raise FileDamaged(str(error), log) from error
            raise SettingsInvalid(f"CAROUSEL_STATE_STORE: {path} cannot be used: {error}.") from error

    def close(self) -> None:
        self._connection.close()

    def _migrate(self) -> None:
        """Bring the schema to this version, in one transaction. Raises SettingsInvalid for a newer one."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(_SCHEMA):
            raise SettingsInvalid(
                f"CAROUSEL_STATE_STORE: the file has schema version {version}, and this server knows "
                f"{len(_SCHEMA)} at most. It was written by a newer Carousel."
            )
        for number in range(version, len(_SCHEMA)):
            self._connection.executescript(
                f"BEGIN; {_SCHEMA[number]}; PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {number + 1}; COMMIT"
            )

    # -- write -------------------------------------------------------------------------------------------------------

    def write(
        self,
        rows: list[tuple[int, bytes]],
        names: Collection[tuple[bytes, int, int, int]] = (),
        wiped: Collection[int] = (),
        gone: Collection[bytes] = (),
    ) -> None:
        """One transaction: wipe all rows of numbers, drop names, then put rows and names."""
        rows.sort()
        if len(rows) <= MAX_ROWS and not (names or wiped or gone):
            self._put_rows(rows)  # a statement by itself is a transaction
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(_WIPE, [(id_of(number, HEAD),) for number in wiped])
            self._connection.executemany("DELETE FROM names WHERE name = ?", [(name,) for name in gone])
            self._connection.executemany("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", names)
            for begin in range(0, len(rows), MAX_ROWS):
                self._put_rows(rows[begin : begin + MAX_ROWS])
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def restore(self, rows: list[tuple[int, bytes]], names: list[tuple[bytes, int, int, int]], opening: int) -> None:
        """Fill a new file."""
        self._connection.execute("UPDATE openings SET num = ?", (opening,))
        self.write(rows, names)

    # -- read --------------------------------------------------------------------------------------------------------

    def find(self, name: bytes) -> tuple[int, bool] | None:
        """Its number, and whether it is a tombstone."""
        rows = self._names("SELECT name, number, dead FROM names WHERE name = ?", (name,))
        return next(((number, bool(dead)) for _, number, dead in rows), None)

    def frame(self, row_id: int) -> bytes | None:
        row = self._connection.execute("SELECT frame FROM rows WHERE id = ?", (row_id,)).fetchone()
        return None if row is None else row[0]

    def frames(self, number: int) -> tuple[bytes | None, ...]:
        """The head and the answers of a sequence, as they stand in the ring."""
        row: tuple[bytes | None, ...] = self._connection.execute(_RECORD, (id_of(number, HEAD),)).fetchone()
        return row

    def names_after(self, name: bytes, end: bytes, most: int) -> list[tuple[bytes, int]]:
        """Live ones between the two, with their numbers."""
        rows = self._names(
            "SELECT name, number, dead FROM names WHERE name > ? AND name < ? AND NOT dead ORDER BY name LIMIT ?",
            (name, end, most),
        )
        return [(name, number) for name, number, _ in rows]

    def due(self, now: float, most: int) -> list[tuple[bytes, int, int]]:
        """Names to look at, with number and whether they are tombstones."""
        return self._names("SELECT name, number, dead FROM names WHERE at <= ? ORDER BY at LIMIT ?", (now, most))

    def live_names(self) -> Iterable[bytes]:
        for (name,) in self._connection.execute("SELECT name FROM names WHERE NOT dead"):
            yield name

    def last_number(self) -> int:
        """No number above it is in use."""
        (last,) = self._connection.execute("SELECT max(id) FROM rows").fetchone()
        return -1 if last is None else place_of(last)[0] | BLOCK - 1

    def _names(self, question: str, values: tuple[Any, ...]) -> list[tuple[bytes, int, int]]:
        """Names with number and whether they are dead. Raises FileDamaged: damage can change what a column holds."""
        found = self._connection.execute(question, values).fetchall()
        if not all(_is_name(name, number) and dead in (0, 1) for name, number, dead in found):
            raise FileDamaged("a name stands for no number", read_log(self._path))
        return found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _put_rows(self, rows: list[tuple[int, bytes]]) -> None:
        if rows:
            self._connection.execute(_put(len(rows)), [value for row in rows for value in row])

    def _set_up(self, synchronous: Synchronous) -> None:
        for pragma in (
            f"page_size = {PAGE_BYTES}",
            "locking_mode = EXCLUSIVE",  # and so no shared memory beside the file
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "cache_size = -65536",  # KiB
            "trusted_schema = OFF",
        ):
            self._connection.execute(f"PRAGMA {pragma}")

    def _check(self, log: bytes) -> None:
        ask = self._connection.execute
        _, num_frames, _ = ask("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if (commit := last_commit(log)) > max(num_frames, 0):
            raise FileDamaged(f"the log has commits up to frame {commit}, and can be read up to {num_frames}", log)
        (found,) = ask("PRAGMA quick_check(1)").fetchone()
        if found != b"ok":
            raise FileDamaged(found.decode(errors="replace"), log)
        (tables,) = ask("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and ask("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise FileDamaged("the file does not say that it is ours", log)
        (version,) = ask("PRAGMA user_version").fetchone()
        is_current = version == len(_SCHEMA)
        if tables and is_current != (ask(_TABLES).fetchall() == _our_tables()):
            raise FileDamaged(f"the tables are not those of schema version {version}", log)
        if not is_current:
            return
        for question in (_STRAY_NAMES, _NAMELESS):
            (differ,) = ask(question).fetchone()
            if differ:
                raise FileDamaged(f"names and records differ by {differ}", log)

    def _count_opening(self, log: bytes) -> int:
        counted = self._connection.execute("UPDATE openings SET num = num + 1 RETURNING num").fetchall()
        if len(counted) != 1 or not isinstance(counted[0][0], int) or not 0 < counted[0][0] < MAX_OPENINGS:
            raise FileDamaged("it does not say how often it was opened", log)
        return counted[0][0]


def readable_names(path: Path) -> dict[int, bytes]:
    """Number -> name, of a damaged file, as far as SQLite reads it."""
    names: list[tuple[bytes, int]] = []
    with suppress(*ERRORS), closing(_connect(path)) as connection:
        names.extend(connection.execute("SELECT name, number FROM names"))
    return {number: name for name, number in names if _is_name(name, number)}


def _is_name(name: Any, number: Any) -> bool:
    return isinstance(name, bytes) and isinstance(number, int)


def read_log(path: Path) -> bytes:
    log = Path(f"{path}-wal")
    return log.read_bytes() if log.exists() else b""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=MAX_ROWS)
    connection.text_factory = bytes  # damage can turn one into the other
    return connection


def _our_tables() -> list[tuple[bytes]]:
    """What a file says of its tables when its schema is of this version."""
    with closing(_connect(Path(":memory:"))) as connection:
        for script in _SCHEMA:
            connection.executescript(script)
        return connection.execute(_TABLES).fetchall()


@cache
def _put(count: int) -> str:
    return "INSERT OR REPLACE INTO rows VALUES " + ",".join(["(?,?)"] * count)
