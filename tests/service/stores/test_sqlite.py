"""What the file promises besides."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.stores.sqlite.sqlite_store import SqliteStore
from service.stores.store import Begin, End, Tombstone
from tests.service.stores.records import KEY, NOW, advance, advanced, record

pytestmark = pytest.mark.anyio

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
