"""Where the key of state tokens comes from when the operator sets none."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_bytes
from threading import Barrier

import pytest

from service.errors import SettingsInvalid
from service.settings import Settings
from service.stores.memory import MemoryStore
from service.stores.redis.redis_store import RedisStore
from service.stores.secret_file import keep_in_file
from service.stores.sqlite.sqlite_store import SqliteStore
from service.token_keys import find_keys
from tests.service.stores.redis_server import RedisServer

pytestmark = pytest.mark.anyio


def modes(folder: Path) -> dict[str, int]:
    """What lies there, and who may read it."""
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def test_the_operators_keys_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    keys = ("the newest of all keys", "the one before it")
    assert await find_keys(Settings(token_keys=keys), MemoryStore()) == [key.encode() for key in keys]
    assert modes(tmp_path) == {}


async def test_beside_memory_the_key_is_kept_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    first, again = [await find_keys(Settings(), MemoryStore()) for _ in range(2)]
    assert first == again
    assert [len(key) for key in first] == [32]
    assert modes(tmp_path / "state") == {"token.key": 0o600}


async def test_where_nothing_can_be_kept_the_key_lives_as_long_as_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").write_bytes(b"a file, where a folder is needed")
    first, other = [await find_keys(Settings(), MemoryStore()) for _ in range(2)]
    assert first != other
    assert "token_key_not_kept" in capsys.readouterr().out


def test_of_many_who_begin_at_once_all_take_the_key_of_one(tmp_path: Path):
    together = Barrier(8)

    def keep(path: Path) -> bytes:
        together.wait()
        return keep_in_file(path, token_bytes(32))

    with ThreadPoolExecutor(8) as threads:
        for turn in range(40):
            folder = tmp_path / f"{turn}"
            assert len(set(threads.map(keep, [folder / "token.key"] * 8))) == 1
            assert modes(folder) == {"token.key": 0o600}


async def test_beside_a_file_the_key_is_kept_in_its_folder(tmp_path: Path):
    first, again = [await find_keys(Settings(), SqliteStore(tmp_path / "state.db")) for _ in range(2)]
    assert first == again
    assert modes(tmp_path) == {"token.key": 0o600}


async def test_a_key_that_is_too_short_is_not_used(tmp_path: Path):
    (tmp_path / "token.key").write_bytes(b"short")
    with pytest.raises(SettingsInvalid, match=r"token\.key holds 5 bytes"):
        await find_keys(Settings(), SqliteStore(tmp_path / "state.db"))


async def test_replicas_on_one_redis_have_one_key(tmp_path: Path):
    server = RedisServer(tmp_path)
    server.start()
    try:
        stores = [RedisStore(server.url) for _ in range(3)]
        for store in stores:
            await store.open()
        found = await asyncio.gather(*(find_keys(Settings(), store) for store in stores))
        for store in stores:
            await store.close()
        assert len({key for (key,) in found}) == 1
    finally:
        server.kill()
