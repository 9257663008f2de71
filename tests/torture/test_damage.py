"""Bits flip, records and files are cut short: it is found out each time, costs one sequence, and the server stays up.

An answer that is damaged costs only its replay.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pytest
from redis.asyncio import Redis

from service.stores.sqlite.frames import place_of, read_frame
from tests.service.api.clients import open_client
from tests.service.stores.redis_server import RedisServer
from tests.torture.conftest import SUM
from tests.torture.plain import Plain

pytestmark = pytest.mark.anyio

ALL = f"/v1/models/{SUM}/sequences"
SEQUENCES = 30
QUIET: dict[str, Any] = {"log_level": "error", "max_rows": 4, "max_chunk": 4, "sequence_ttl_seconds": 1e6}
DAMAGED, NO_REPLAY, SOUND, UNKNOWN = "lost one sequence", "lost one replay", "cost nothing", "unknown"


@dataclass
class Server:
    """Sequences behind the real app, and what they must be."""

    client: httpx.AsyncClient
    plains: dict[str, Plain]
    chance: random.Random

    async def fill(self) -> None:
        for n in range(SEQUENCES):
            await self.begin(f"s{n}")
        for _ in range(6):
            for name in self.chance.sample(list(self.plains), SEQUENCES // 2):
                await self.step(name)

    async def begin(self, name: str) -> None:
        assert (await self.client.post(ALL, json={"sequence_id": name})).status_code == 201
        self.plains[name] = Plain(1e6, 0.0, np.zeros(1, np.float32))
        for _ in range(self.chance.randint(1, 3)):
            await self.step(name)

    async def step(self, name: str) -> None:
        plain = self.plains[name]
        inputs = np.array(self.chance.choices(range(-9, 10), k=3), np.float32).reshape(-1, 1)
        body = {"inputs": inputs.tolist(), "step": plain.step}
        answer = await self.client.post(f"{ALL}/{name}/steps", json=body)
        assert answer.status_code == 200, (name, answer.text)
        assert answer.json()["outputs"] == plain.run(inputs).tolist()

    async def look(self, name: str) -> str:
        """What became of it. A wrong state, or a wrong answer, is none of the things that may."""
        plain = self.plains[name]
        answer = await self.client.get(f"{ALL}/{name}/state")
        if answer.status_code == 410:
            assert answer.json()["reason"] == "damaged", answer.text
            return DAMAGED
        if answer.status_code == 404:
            return UNKNOWN
        document = answer.json()
        assert (answer.status_code, document["step"]) == (200, plain.step), (name, answer.text)
        assert document["state"]["h"] == [plain.total.tolist()], (name, answer.text)
        found = SOUND
        for step, inputs, outputs in plain.answers:
            answer = await self.client.post(f"{ALL}/{name}/steps", json={"inputs": inputs.tolist(), "step": step})
            if answer.status_code == 409:
                assert found == SOUND, "two answers are lost"
                found = NO_REPLAY
            else:
                assert (answer.json()["replayed"], answer.json()["outputs"]) == (True, outputs.tolist())
        return found

    async def look_at_all(self) -> dict[str, str]:
        """What is not sound; the sequences that are go on."""
        found = {name: await self.look(name) for name in self.plains}
        for name in self.chance.sample(sorted(self.plains), 3):
            if found[name] in (SOUND, NO_REPLAY):
                before = self.plains[name]
                self.plains[name] = Plain(1e6, 0.0, before.total, before.step, [*before.answers])
                await self.step(name)
                self.plains[name] = before
        return {name: became for name, became in found.items() if became != SOUND}


@dataclass
class Written:
    """A folder with the file as a server left it, with its log where that was killed; and what was answered."""

    folder: Path
    plains: dict[str, Plain]
    sums: Path
    chance: random.Random

    async def look_after(self, damage: Callable[[Path], str]) -> tuple[dict[str, str], str]:
        """Start a server on a copy that is damaged: what is not sound, and what `damage` says that it did."""
        with TemporaryDirectory() as copy:
            shutil.copytree(self.folder, copy, dirs_exist_ok=True)
            told = damage(Path(copy) / "state.db")
            async with open_client(self.sums, state_store=f"sqlite:///{copy}/state.db", **QUIET) as client:
                lost = await Server(client, self.plains, self.chance).look_at_all()
                assert (await client.post(ALL, json={"sequence_id": "new"})).status_code == 201
        return lost, told


@pytest.fixture(params=["closed", "killed"])
async def written(request: pytest.FixtureRequest, sums: Path, tmp_path: Path, chance: random.Random) -> Written:
    live, folder = tmp_path / "live", tmp_path / "written"
    async with open_client(sums, state_store=f"sqlite:///{live / 'state.db'}", **QUIET) as client:
        server = Server(client, {}, chance)
        await server.fill()
        if request.param == "killed":
            shutil.copytree(live, folder)
    if request.param == "closed":
        shutil.copytree(live, folder)
    return Written(folder, server.plains, sums, chance)


def flipped(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    at, bit = chance.randrange(len(data)), chance.randrange(8)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"byte {at}, bit {bit}"


async def test_a_flipped_bit_of_a_file(
    written: Written, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    def flip(file: Path) -> str:
        paths = [path for path in (file, file.with_name("state.db-wal")) if path.exists()]
        path = chance.choices(paths, [path.stat().st_size for path in paths])[0]
        data, told = flipped(path.read_bytes(), chance)
        path.write_bytes(data)
        return f"{path.name}, {told}"

    for _ in range(500 if full else 15):
        lost, told = await written.look_after(flip)
        assert len(lost) <= 1, (told, lost)
        assert UNKNOWN not in lost.values(), (told, lost)
        tally.update(["bits flipped", *(lost.values() or [SOUND])])


async def test_a_record_of_a_file_cut_short(
    written: Written, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    def cut(file: Path) -> str:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            row_id, frame = chance.choice(connection.execute("SELECT id, frame FROM rows").fetchall())
            number, _ = place_of(read_frame(frame)[0])
            short = frame[: chance.randrange(len(frame))]
            connection.execute("UPDATE rows SET frame = ? WHERE id = ?", (short, row_id))
        return f"s{number}"

    for _ in range(50 if full else 5):
        lost, name = await written.look_after(cut)
        assert lost.keys() <= {name}, (name, lost)
        assert UNKNOWN not in lost.values()
        tally.update(["records cut", *(lost.values() or [SOUND])])


async def test_a_file_cut_short(written: Written, full: bool, chance: random.Random, tally: Counter[str]) -> None:
    """What was beyond the cut is lost, and known to be or unknown; nothing that is left is wrong."""

    def cut(file: Path) -> str:
        with file.open("r+b") as opened:
            opened.truncate(chance.randrange(file.stat().st_size))
        return file.name

    for _ in range(50 if full else 4):
        lost, _ = await written.look_after(cut)
        tally["files cut"] += 1
        tally["sequences lost beyond the cut"] += len(lost)
        tally["sequences that go on"] += len(written.plains) - len(lost)


async def test_a_flipped_bit_or_a_cut_in_redis_under_a_running_server(
    redis: RedisServer, sums: Path, full: bool, chance: random.Random, tally: Counter[str]
) -> None:
    """Two rows: most of what is asked for is read from Redis."""
    flips, cuts = (1000, 200) if full else (60, 12)
    fields: dict[str, Any] = {"state_store": redis.url, "max_resident_sequences": 2, **QUIET}
    async with open_client(sums, **fields) as client, Redis.from_url(redis.url) as raw:
        server = Server(client, {}, chance)
        await server.fill()
        for turn in range(flips + cuts):
            name = chance.choice(sorted(server.plains))
            (key,) = await raw.keys(f"carousel:s:*\x01{name}")
            field, value = chance.choice(list((await raw.hgetall(key)).items()))
            changed = flipped(value, chance)[0] if turn < flips else value[: chance.randrange(len(value))]
            await raw.hset(key, field, changed)
            tally["bits flipped" if turn < flips else "fields cut"] += 1
            became = await server.look(name)
            # answers are numbered, and of a sequence that has a row here they are at hand
            assert became in ((DAMAGED, NO_REPLAY, SOUND) if field.isdigit() else (DAMAGED,)), (name, field, became)
            tally[became] += 1
            if became != DAMAGED:
                assert (await client.delete(f"{ALL}/{name}")).status_code == 204
            await server.begin(name)
            other = chance.choice(sorted(server.plains))
            assert await server.look(other) == SOUND
            await server.step(other)
        assert not await server.look_at_all()
