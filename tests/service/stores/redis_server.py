"""A real redis-server on a free port, that can be stopped and started again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic, sleep

import pytest

START_SECONDS = 20.0


class RedisServer:
    """Keeps its data over `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            ["redis-server", *options, "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        until = monotonic() + START_SECONDS
        while monotonic() < until:
            with suppress(OSError):
                if self._say(b"PING").startswith(b"+PONG"):
                    return
            sleep(0.01)
        raise AssertionError("redis-server did not start")

    def empty(self) -> None:
        assert self._say(b"FLUSHALL") == b"+OK\r\n"

    def _say(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(1024)

    def stop(self, *, keep: bool = True) -> None:
        """`keep` its data for the next start."""
        assert self._process is not None
        with suppress(OSError):
            self._say(b"SHUTDOWN SAVE" if keep else b"SHUTDOWN NOSAVE")
        self._process.wait(START_SECONDS)

    def freeze(self) -> None:
        """Answer nothing, and keep connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
