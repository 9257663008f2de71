"""A stream that is lost is gone on with by step number: nothing is doubled and nothing is skipped."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.service import wire
from tests.service.api.clients import SUM
from tests.service.api.processes import Served, serve
from tests.service.api.streams import BINARY, UNREAD_ROWS, hear_records, open_stream, unread_stream

pytestmark = pytest.mark.anyio

SEQUENCES, STEPS, AHEAD = 12, 100, 8
"""`AHEAD` steps of each sequence are under way at once."""


@pytest.fixture
def served(repository: Path) -> Iterator[Served]:
    with serve(repository) as running:
        yield running


class Proxy:
    """Hands bytes on, and cuts each connection once the server has answered some random number of them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._random = random.Random(0)
        self.cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", self._port)
        upward = asyncio.create_task(self._hand_on(reader, to_server[1], 2**40))
        downward = asyncio.create_task(self._hand_on(to_server[0], writer, self._random.randint(500, 6000)))
        await asyncio.wait((upward, downward), return_when=asyncio.FIRST_COMPLETED)
        for task in (upward, downward):
            task.cancel()
        await asyncio.gather(upward, downward, return_exceptions=True)
        for end in (writer, to_server[1]):
            end.transport.abort()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> None:
        with suppress(OSError):
            while data := await reader.read(256):
                writer.write(data[:most])
                await writer.drain()
                most -= len(data)
                if most < 0:
                    self.cuts += 1
                    return


@asynccontextmanager
async def cutting_proxy(served: Served) -> AsyncIterator[tuple[str, Proxy]]:
    proxy = Proxy(int(served.address.rsplit(":", 1)[1]))
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", proxy


class Caller:
    """Sends step n of a sequence as the number n + 1, so that the sums tell which steps were run."""

    def __init__(self) -> None:
        self.done = [0] * SEQUENCES
        self.replayed = 0

    async def run(self, address: str) -> None:
        """Until it is through, or the connection is lost."""
        async with open_stream(address, subprotocols=(BINARY,), open_timeout=5) as stream:
            await stream.send(wire.message(wire.open_block([(n, f"cut-{n}") for n in range(SEQUENCES)])))
            for opened in await hear_records(stream, SEQUENCES):
                assert (opened.step or 0) >= self.done[opened.handle]
            sent = list(self.done)
            while any(done < STEPS for done in self.done):
                records = []
                for n in range(SEQUENCES):
                    upto = min(STEPS, self.done[n] + AHEAD)
                    records += [(n, at, at, (at + 1.0, 0.0)) for at in range(sent[n], upto)]
                    sent[n] = max(sent[n], upto)
                if records:
                    await stream.send(wire.message(wire.step_block(records, flags=wire.START)))
                data = await stream.recv()
                assert isinstance(data, bytes)
                for answer in wire.answers(data, 2):
                    self.take(answer)

    def take(self, answer: wire.Answer) -> None:
        assert answer.kind == "stepped", answer
        step = self.done[answer.handle] = self.done[answer.handle] + 1
        assert (answer.tag, answer.step) == (step - 1, step)
        assert answer.values[0] == step * (step + 1) / 2
        self.replayed += answer.replayed


async def test_connections_cut_at_random_double_nothing(served: Served) -> None:
    caller = Caller()
    async with cutting_proxy(served) as (address, proxy):
        while any(done < STEPS for done in caller.done):
            with suppress(OSError, EOFError, ConnectionClosed, InvalidHandshake):
                await caller.run(address)
    assert proxy.cuts > 5
    assert caller.replayed > 5, "no answer was lost, so nothing was shown"
    async with httpx.AsyncClient(base_url=served.address) as http:
        for n in range(SEQUENCES):
            state = (await http.get(f"/v1/models/{SUM}/sequences/cut-{n}/state")).json()
            assert (state["step"], state["state"]["h"]) == (STEPS, [[STEPS * (STEPS + 1) / 2, 0.0]])


async def stream_until_closed(stream: ClientConnection) -> AsyncIterator[bytes]:
    with suppress(ConnectionClosed):
        while True:
            data = await stream.recv()
            assert isinstance(data, bytes)
            yield data


async def test_a_server_that_stops_answers_what_it_read_and_says_why_it_closes(served: Served) -> None:
    """Much is owed at that moment, because nobody reads the answers."""
    async with open_stream(served.address) as idle, unread_stream(served.address, num_frames=120) as (stream, *_, read):
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed, match=r"1012.*shutting down"):
            await idle.recv()
        answers = [answer async for data in stream_until_closed(stream) for answer in wire.answers(data, 2)]
        assert (stream.close_code, "shutting down" in (stream.close_reason or "")) == (1012, True)
        # one frame more was read, perhaps, and waited until less was owed: none of it was run
        assert len(answers) in (UNREAD_ROWS * read, UNREAD_ROWS * (read - 1))
        assert {answer.kind for answer in answers} == {"stepped"}
    assert served.process.wait(30) == 0
