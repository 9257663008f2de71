"""SIGTERM under load: every call that was taken is answered, and callers who keep connections are told to move on."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import httpx
import pytest

from tests.service.api.clients import SUM, open_server
from tests.service.api.processes import serve

CLIENTS = 8
BODY = b'{"inputs": [[1, 0]], "start": true}'


@dataclass
class Caller:
    """Steps a sequence until the server does not take a call any more."""

    host: str
    name: str
    keeps_connection: bool
    steps: int = 0
    ended_by: str = ""
    told_to_close: list[bool] = field(default_factory=list)

    def run(self, warm: Event) -> None:
        path = f"/v1/models/{SUM}/sequences/{self.name}/steps"
        headers = {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self.host, timeout=30)
        while not self.ended_by:
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                self.ended_by = "refused"
                return
            connection.request("POST", path, BODY, headers)
            answer = connection.getresponse()
            document = json.loads(answer.read())
            self.told_to_close.append(answer.getheader("connection") == "close")
            if answer.status == 200:
                self.steps += 1
                assert document["step"] == self.steps, "none was done twice"
            else:
                assert (answer.status, document["code"]) == (503, "draining")
                self.ended_by = "draining"
            if not self.keeps_connection:
                connection.close()
            if self.steps == 50:
                warm.set()


def test_no_call_that_was_taken_is_lost_and_callers_are_told_to_move_on(repository: Path) -> None:
    with serve(repository) as served, ThreadPoolExecutor(CLIENTS) as pool:
        host, warm = served.address.removeprefix("http://"), Event()
        callers = [Caller(host, f"s{n}", keeps_connection=n % 2 == 0) for n in range(CLIENTS)]
        running = [pool.submit(caller.run, warm) for caller in callers]
        assert warm.wait(30)
        served.process.send_signal(signal.SIGTERM)
        for caller in running:
            caller.result(30)
        assert served.process.wait(30) == 0
    kept = [caller for caller in callers if caller.keeps_connection]
    assert [caller.ended_by for caller in kept] == ["draining"] * len(kept), "nobody's connection just closed"
    assert all(caller.told_to_close[-1] and not caller.told_to_close[0] for caller in kept)


@pytest.mark.anyio
async def test_a_quiet_connection_stays_open_until_its_next_call_is_told_to_move_on(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.server.LINGER_SECONDS", 60)
    async with open_server(repository) as running, httpx.AsyncClient(base_url=running.address) as client:
        assert (await client.get("/v1/models")).status_code == 200
        running.server.should_exit = True
        for _ in range(100):  # often enough for the server to close what it wants to close
            await until_refused(running.address)
        answer = await client.get("/v1/models")
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")


async def until_refused(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with suppress(ConnectionRefusedError):
        while True:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            with suppress(ConnectionResetError):
                await writer.wait_closed()


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"x-request-timeout-ms": "60000"}], ids=["the short way", "through ASGI"])
async def test_a_call_under_way_is_answered_and_told_to_move_on(repository: Path, headers: dict[str, str]) -> None:
    async with (
        open_server(repository, max_chunk=1) as running,
        httpx.AsyncClient(base_url=running.address) as client,
    ):
        path, body = (
            f"/v1/models/{SUM}/sequences",
            {"inputs": [[1, 0]] * 100},
        )  # more would be a large answer, which never takes the short way
        await client.post(path, json={"sequence_id": "s"})
        call = asyncio.create_task(client.post(f"{path}/s/steps", json=body, headers=headers))
        while not running.service.num_running:  # noqa: ASYNC110
            await asyncio.sleep(0)
        running.service.draining = True
        answer = await call
    assert (answer.status_code, answer.json()["step"], answer.headers["connection"]) == (200, 100, "close")
