"""Bits flip and files are cut short: it is found out each time, and costs one sequence at most.

Shorter than it could be; TORTURE=1 takes the full numbers, SEED another seed.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.errors import StateDamaged
from service.stores.record import Damaged
from service.stores.redis.redis_store import RedisStore
from service.stores.sqlite.frames import HEAD, MAGIC, place_of, read_frame
from service.stores.sqlite.sqlite_store import SqliteStore
from service.stores.store import Begin, End, Key, Record, Replace, Store, Tombstone, new_revision
from tests.service.stores.records import NOW, advance, advanced, record

pytestmark = pytest.mark.anyio

FULL = os.environ.get("TORTURE") == "1"
SEED = int(os.environ.get("SEED", "1"))
FLIPS, CUTS = (1000, 200) if FULL else (48, 20)
DAMAGED = "damaged"
Expected = dict[Key, Record | Tombstone]


@pytest.fixture
def chance() -> random.Random:
    print(f"SEED={SEED}")
    return random.Random(SEED)


async def fill(store: Store, chance: random.Random) -> Expected:
    """Sequences of all kinds, with a past: begun, stepped, replaced, ended."""
    standing: Expected = {}
    for n in range(40):
        state = chance.randbytes(chance.choice([16, 512, 512, 3900, 9000]))
        put = record(("acme", "pump", f"p-{n}"), new_revision(), state=state, ttl_seconds=1e6)
        standing[put.key] = put
        await store.commit([Begin(put)])
    for _ in range(24):
        for key in chance.sample(list(standing), 20):
            if not isinstance(before := standing[key], Record):
                continue
            step = advance(before, chance.choice([None, b"", chance.randbytes(120)]), state=before.state[::-1])
            await store.commit([step])
            standing[key] = advanced(before, step)
            if chance.random() < 0.05:
                new = record(key, new_revision(), state=chance.randbytes(64), ttl_seconds=1e6)
                await store.commit([Replace(new, standing[key].revision)])
                standing[key] = new
            if chance.random() < 0.02:
                standing[key] = Tombstone("deleted", NOW)
                await store.commit([End(key, "deleted", NOW)])
    return standing


async def differing(store: Store, expected: Expected) -> dict[Key, Record | Tombstone | str | None]:
    """What is not as it was written; a sequence that is known to be damaged is told as that."""
    found: dict[Key, Record | Tombstone | str | None] = {}
    for key, written in expected.items():
        try:
            stands = await store.read(key, NOW + 1)
        except StateDamaged:
            stands = await store.read(key, NOW + 1)
            assert stands == Tombstone(DAMAGED, NOW + 1)
        if stands != written:
            found[key] = DAMAGED if isinstance(stands, Tombstone) and stands.reason == DAMAGED else stands
    return found


def lacks_answers(found: Record | Tombstone | str | None, written: Record | Tombstone, most: int = 1) -> bool:
    """Is nothing lost but some stored answers?"""
    if not isinstance(found, Record) or not isinstance(written, Record):
        return False
    rest = iter(written.answers)
    missing = len(written.answers) - len(found.answers)
    return missing <= most and all(kept in rest for kept in found.answers) and whole(found, written) == written


def whole(found: Record, written: Record) -> Record:
    return replace(found, answers=written.answers)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, clock=lambda: NOW + 1)
    await store.open()
    yield store
    await store.close()


@pytest.fixture(params=["closed", "killed"])
async def files(request: pytest.FixtureRequest, tmp_path: Path, chance: random.Random) -> tuple[Path, Expected]:
    """A folder with the file, and its log where the process was killed; and what was written there."""
    folder = tmp_path / "written"
    store = SqliteStore(tmp_path / "live" / "state.db")
    await store.open()
    expected = await fill(store, chance)
    if request.param == "killed":
        shutil.copytree(tmp_path / "live", folder)
    await store.close()
    if request.param == "closed":
        shutil.copytree(tmp_path / "live", folder)
    return folder, expected


def fresh(folder: Path, copy: Path) -> list[Path]:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return sorted(file for file in copy.iterdir() if file.stat().st_size)


async def test_a_flipped_bit_of_a_file_costs_one_sequence_at_most(
    files: tuple[Path, Expected], tmp_path: Path, chance: random.Random
):
    folder, expected = files
    only_copies = heads_without_a_copy(folder)
    for turn in range(FLIPS):
        paths = fresh(folder, tmp_path / "copy")
        path = chance.choices(paths, [file.stat().st_size for file in paths])[0]
        data = bytearray(path.read_bytes())
        at, bit = chance.randrange(len(data)), chance.randrange(8)
        if turn % 8 == 1:
            path, at = tmp_path / "copy" / "state.db", chance.randrange(5 * 4096)  # roots of all tables
        elif turn % 4 == 0:
            name, begin, length = chance.choice(only_copies)
            path, at = tmp_path / "copy" / name, begin + chance.randrange(length)
        data = bytearray(path.read_bytes())
        data[at] ^= 1 << bit
        path.write_bytes(data)
        async with opened(tmp_path / "copy" / "state.db") as store:
            lost = await differing(store, expected)
            where = (path.name, at, bit, lost.keys())
            assert len(lost) <= 1, where
            for key, found in lost.items():
                assert found == DAMAGED or lacks_answers(found, expected[key]), where
            assert await store.commit([Begin(record(("acme", "pump", "new")))]) == [True]


def heads_without_a_copy(folder: Path) -> list[tuple[str, int, int]]:
    """File, place and length: their damage leaves older heads, which must not be taken for the last."""
    newest: dict[int, tuple[int, bytes, str, int]] = {}
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, data in contents.items():
        for at, row_id, order, frame in frames_in(data):
            if place_of(row_id)[1] == HEAD and order >= newest.get(row_id, (0,))[0]:
                newest[row_id] = order, frame, name, at
    return [
        (name, at, len(frame))
        for _, frame, name, at in newest.values()
        if sum(data.count(frame) for data in contents.values()) == 1
    ]


def frames_in(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Place, row, order and the whole frame, of those that are whole."""
    at = data.find(MAGIC)
    while at >= 0:
        frame = data[at : at + int.from_bytes(data[at + 4 : at + 8], "little")]
        with suppress(Damaged):
            row_id, order, _ = read_frame(frame)
            yield at, row_id, order, frame
        at = data.find(MAGIC, at + 1)


async def test_a_file_cut_short_keeps_what_is_before_the_cut(
    files: tuple[Path, Expected], tmp_path: Path, chance: random.Random
):
    folder, expected = files
    for _ in range(CUTS):
        fresh(folder, tmp_path / "copy")
        path = tmp_path / "copy" / "state.db"
        data = path.read_bytes()
        cut = chance.randrange(len(data))
        path.write_bytes(data[:cut])
        before = expected if (tmp_path / "copy" / "state.db-wal").exists() else whole_before(data, cut)
        async with opened(path) as store:
            for key, found in (await differing(store, expected)).items():
                assert found in (None, DAMAGED) or lacks_answers(found, expected[key], most=16), cut
                assert key not in before or isinstance(expected[key], Tombstone), cut
            assert await store.commit([Begin(record(("acme", "pump", "new")))]) == [True]


def whole_before(data: bytes, cut: int) -> set[Key]:
    """Sequences of which every row lies before the cut; none whose rows go on to other pages."""
    ends: dict[int, int] = {}
    at = data.find(MAGIC)
    while at >= 0:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        number, _ = place_of(int.from_bytes(data[at + 8 : at + 16], "little"))
        ends[number] = max(ends.get(number, 0), at + length if at % 4096 + length <= 4096 else len(data))
        at = data.find(MAGIC, at + 1)
    return {("acme", "pump", f"p-{number}") for number, end in ends.items() if end <= cut}


async def test_a_row_cut_short_or_lost_costs_its_own_sequence(
    files: tuple[Path, Expected], tmp_path: Path, chance: random.Random
):
    folder, expected = files
    for turn in range(CUTS):
        fresh(folder, tmp_path / "copy")
        path = tmp_path / "copy" / "state.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            rows = connection.execute("SELECT id, frame FROM rows").fetchall()
            row_id, frame = chance.choice(rows)
            number, _ = place_of(read_frame(frame)[0])
            if turn % 4:
                cut = frame[: chance.randrange(len(frame))]
                connection.execute("UPDATE rows SET frame = ? WHERE id = ?", (cut, row_id))
            else:
                connection.execute("DELETE FROM rows WHERE id = ?", (row_id,))
        async with opened(path) as store:
            lost = await differing(store, expected)
            assert lost.keys() <= {("acme", "pump", f"p-{number}")}
            for key, found in lost.items():
                assert found == DAMAGED or lacks_answers(found, expected[key])


async def test_a_page_that_goes_bad_under_a_running_server_costs_one_sequence_at_most(
    tmp_path: Path, chance: random.Random
):
    for turn in range(CUTS // 4):
        path = tmp_path / f"{turn}.db"
        async with opened(path) as store:
            expected = await fill(store, chance)
        async with opened(path) as store:
            data = bytearray(path.read_bytes())
            at = chance.randrange(len(data))
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([data[at] ^ 1 << chance.randrange(8)]))
            lost = await differing(store, expected)
            assert len(lost) <= 1, at
            for key, found in lost.items():
                assert found == DAMAGED or lacks_answers(found, expected[key]), at
            standing = [put for key, put in expected.items() if key not in lost and isinstance(put, Record)]
            applied = await store.commit([advance(put) for put in standing])
            assert applied.count(False) <= 1


async def test_a_flipped_bit_or_cut_in_redis_costs_its_own_sequence(redis_url: str, chance: random.Random):
    store = RedisStore(redis_url)
    await store.open()
    expected = await fill(store, chance)
    async with Redis.from_url(redis_url) as client:
        keys = await client.keys("carousel:s:*")
        for turn in range(FLIPS + CUTS):
            key = chance.choice(keys)
            before = await client.dump(key)
            field, value = chance.choice(list((await client.hgetall(key)).items()))
            if turn < FLIPS:
                changed = bytearray(value)
                changed[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
            else:
                changed = value[: chance.randrange(len(value))]
            await client.hset(key, field, bytes(changed))
            lost = await differing(store, expected) if turn % 20 == 0 else await differing_one(store, expected, key)
            assert len(lost) == 1, (key, field)
            for name, found in lost.items():
                assert key.endswith(b"\x00\x01" + name[2].encode())
                assert found == DAMAGED or lacks_answers(found, expected[name]), (key, field)
            await client.restore(key, 0, before, replace=True)
    await store.close()


async def differing_one(store: Store, expected: Expected, key: bytes) -> dict[Key, Record | Tombstone | str | None]:
    name = ("acme", "pump", key.rsplit(b"\x01", 1)[1].decode())
    return await differing(store, {name: expected[name]})
