"""What the file promises besides."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.stores.sqlite import file
from service.stores.sqlite.file import Synchronous
from service.stores.sqlite.sqlite_store import SqliteStore
from service.stores.store import Begin, End, Record, Tombstone, new_revision
from tests.service.stores.records import KEY, NOW, advance, advanced, record

pytestmark = pytest.mark.anyio

KILLS = 100 if os.environ.get("TORTURE") == "1" else 4

OPEN_AND_SAY = """
import asyncio, sys
from pathlib import Path
from service.stores.sqlite.sqlite_store import SqliteStore
asyncio.run(SqliteStore(Path(sys.argv[1])).open())
"""


async def test_what_was_committed_is_there_in_the_next_process(tmp_path: Path):
    path = tmp_path / "deep" / "state.db"
    put, dead = record(), record(("acme", "pump", "dead"))
    step = advance(put)
    store = SqliteStore(path)
    await store.open()
    await store.commit([Begin(put), step, Begin(dead), End(dead.key, "deleted", NOW)])
    await store.close()
    store = SqliteStore(path)
    await store.open()
    assert await store.read(KEY, NOW) == advanced(put, step)
    assert await store.read(dead.key, NOW) == Tombstone("deleted", NOW)
    assert await store.count("pump") == 1
    assert await store.commit([advance(advanced(put, step))]) == [True]
    await store.close()


async def test_a_second_process_is_refused_and_told_why(tmp_path: Path):
    store = SqliteStore(tmp_path / "state.db")
    await store.open()
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OPEN_AND_SAY, tmp_path / "state.db", stderr=asyncio.subprocess.PIPE
    )
    _, said = await other.communicate()
    assert b"another process has" in said
    with pytest.raises(SettingsInvalid, match="another process has"):
        await SqliteStore(tmp_path / "state.db").open()
    assert await store.commit([Begin(record())]) == [True]
    await store.close()


async def test_a_successor_waits_until_the_file_is_free(tmp_path: Path):
    store, successor = (SqliteStore(tmp_path / "state.db", patience_seconds=60) for _ in range(2))
    await store.open()
    opening = asyncio.create_task(successor.open())
    await store.commit([Begin(record())])
    assert not opening.done()
    await store.close()
    await opening
    assert await successor.read(KEY, NOW) == record()
    await successor.close()


@pytest.mark.parametrize(
    "content", [b"a letter to somebody, not a database" * 300, b"SQLite format 3\x00" + bytes(5000)]
)
async def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path: Path, content: bytes):
    path = tmp_path / "letter"
    path.write_bytes(content)
    with pytest.raises(SettingsInvalid, match="no file of this server"):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsInvalid, match="cannot be written"):
        await SqliteStore(tmp_path / "file" / "state.db").open()


async def test_a_newer_schema_is_refused_and_an_older_one_brought_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state.db"
    async with opened(path) as store:
        await store.commit([Begin(record())])
    newer = (*file._SCHEMA, "CREATE TABLE later (number INTEGER); ALTER TABLE rows ADD COLUMN more BLOB")
    with monkeypatch.context() as patched:
        patched.setattr(file, "_SCHEMA", newer)
        patched.setattr(
            file, "_put", lambda n: "INSERT OR REPLACE INTO rows (id, frame) VALUES " + ",".join(["(?,?)"] * n)
        )
        async with opened(path) as store:
            assert await store.read(KEY, NOW) == record()
            assert await store.commit([advance(record())]) == [True]
    with pytest.raises(SettingsInvalid, match="schema version 2, and this server knows 1"):
        await SqliteStore(path).open()


@pytest.mark.parametrize(("synchronous", "level"), [("normal", 1), ("full", 2)])
async def test_the_disk_is_waited_for_as_the_setting_says(tmp_path: Path, synchronous: Synchronous, level: int):
    async with opened(tmp_path / "state.db", synchronous) as store:
        ask = await store._call(lambda ledger: ledger._file._connection.execute("PRAGMA synchronous").fetchone())
        assert ask == (level,)


STEP_UNTIL_KILLED = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from service.stores.sqlite.sqlite_store import SqliteStore
from tests.service.stores.records import NOW, advance, advanced

async def main():
    store = SqliteStore(Path(sys.argv[1]), sys.argv[2])
    await store.open()
    standing = [await store.read(("acme", "pump", f"p-{n}"), NOW) for n in range(20)]
    while True:
        steps = [advance(one, b"answer %d" % one.step) for one in standing]
        assert all(await store.commit(steps))
        standing = [advanced(one, step) for one, step in zip(standing, steps)]
        print(standing[0].step, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("synchronous", ["normal", "full"])
async def test_what_was_acknowledged_outlives_sigkill(tmp_path: Path, synchronous: Synchronous):
    path = tmp_path / "state.db"
    keys = [("acme", "pump", f"p-{n}") for n in range(20)]
    async with opened(path, synchronous) as store:
        await store.commit([Begin(record(key, new_revision(), ttl_seconds=1e9)) for key in keys])
    for kill in range(KILLS):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STEP_UNTIL_KILLED, path, synchronous, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(kill * 7 + 1):
            acknowledged = int(await child.stdout.readline())
        child.kill()
        said = await child.stdout.read()
        acknowledged = max([acknowledged, *(int(line) for line in said.split(b"\n")[:-1])])
        await child.wait()
        async with opened(path, synchronous) as store:
            for key in keys:
                stands = await store.read(key, NOW)
                assert isinstance(stands, Record)
                assert stands.step in (acknowledged, acknowledged + 1)
                assert stands.state == b"state at %d" % stands.step
                assert stands.answers[-16:] == [b"answer %d" % n for n in range(stands.step)][-16:]


@asynccontextmanager
async def opened(path: Path, synchronous: Synchronous = "normal") -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, synchronous)
    await store.open()
    yield store
    await store.close()


@pytest.mark.parametrize("of_what", ["names", "user_version"])
async def test_a_schema_that_is_damaged_costs_nothing(tmp_path: Path, of_what: str):
    path = tmp_path / "state.db"
    async with opened(path) as store:
        await store.commit([Begin(record())])
    data = bytearray(path.read_bytes())
    at = data.index(b"name BLOB") if of_what == "names" else 63  # the last byte of the version in the header
    data[at] ^= 2
    path.write_bytes(data)
    async with opened(path) as store:
        assert await store.read(KEY, NOW) == record()
