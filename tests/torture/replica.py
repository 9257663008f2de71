"""`python -m service` on a port of its own, killed and started again as often as one likes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.service.api.processes import ROOT

BANNER_LINES, LEAVE_SECONDS = 3, 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Replica:
    """`is_up` while it answers. `log` is what it ever wrote, from warnings upward."""

    def __init__(self, repository: Path, store: str, log: Path, **settings: str) -> None:
        self.port = free_port()
        self.is_up = asyncio.Event()
        self._log = log
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
        self._environment = {
            **kept,
            "CAROUSEL_MODEL_REPOSITORY": str(repository),
            "CAROUSEL_PORT": str(self.port),
            "CAROUSEL_STATE_STORE": store,
            "CAROUSEL_LOG_LEVEL": "warning",
            "CAROUSEL_MAX_ROWS": "16",  # fewer runs to measure at the start
            "CAROUSEL_MAX_CHUNK": "16",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def __aenter__(self) -> Replica:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @asynccontextmanager
    async def is_stopped_at_the_end(self) -> AsyncIterator[None]:
        """For one that starts later."""
        try:
            yield
        finally:
            await self.kill()

    async def start(self) -> None:
        process = self._process = self._open()
        assert process.stdout is not None
        banner = [await asyncio.to_thread(process.stdout.readline) for _ in range(BANNER_LINES)]
        assert all(banner), self.log
        self.is_up.set()

    def _open(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "service"]
            return subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=log)

    async def kill(self) -> None:
        """At once, as the system does when memory is short."""
        await self._signal(signal.SIGKILL)

    async def stop(self) -> int:
        """As an operator does; its exit status."""
        return await self._signal(signal.SIGTERM)

    async def _signal(self, number: int) -> int:
        self.is_up.clear()
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        status = await asyncio.to_thread(process.wait, LEAVE_SECONDS)
        assert process.stdout is not None
        process.stdout.close()
        return status
