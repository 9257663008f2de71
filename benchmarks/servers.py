"""Starts the servers that are measured, each on a free port and on the server's core, and stops them by their pid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.machine import pinned
from benchmarks.payloads import API_KEY

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0
CONTENDERS = ("carousel", "naive", "echo")
DURABLE = ("sqlite", "redis")
"""Carousel with the store of states of that name; `carousel` has the one in memory."""


@dataclass(frozen=True)
class Server:
    name: str
    pid: int
    port: int

    @property
    def worker_pids(self) -> list[int]:
        """Of the processes that it started."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


def durable() -> tuple[str, ...]:
    """Those of DURABLE that can be had here."""
    return DURABLE if shutil.which("redis-server") else ("sqlite",)


@contextmanager
def running_servers(repository: Path, core: int, names: Sequence[str] = CONTENDERS) -> Iterator[dict[str, Server]]:
    """All of them on one core, Redis too: those that are not measured just now are idle."""
    folder = repository.parent
    stores = {"carousel": "memory", "sqlite": f"sqlite:///{folder / 'states.db'}"}
    with ExitStack() as stack:
        if "redis" in names:
            port = free_port()
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
            stack.enter_context(_running("redis-server", port, ["redis-server", *options], {}, folder, core))
            stores["redis"] = f"redis://127.0.0.1:{port}/0"
        servers = {}
        for name in names:
            port = free_port()
            if name in stores:
                command, settings = [sys.executable, "-m", "service"], _settings(port, repository, stores[name])
            else:
                arguments = ["--repository", str(repository)] if name == "naive" else []
                command = [sys.executable, "-m", f"benchmarks.{name}_server", "--port", str(port), *arguments]
                settings = {}
            servers[name] = stack.enter_context(_running(name, port, command, settings, folder, core))
        yield servers


@contextmanager
def running_workers(repository: Path, cores: Sequence[int], num_workers: int) -> Iterator[Server]:
    """Carousel with so many workers, all its processes on these cores."""
    port = free_port()
    settings = {**_settings(port, repository, "memory"), "CAROUSEL_WORKERS": str(num_workers)}
    with _running("carousel", port, [sys.executable, "-m", "service"], settings, repository.parent, *cores) as server:
        httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=START_SECONDS)  # once the workers are up
        yield server


@contextmanager
def _running(
    name: str, port: int, command: list[str], settings: Mapping[str, str], folder: Path, *cores: int
) -> Iterator[Server]:
    log_path = folder / f"{name}.log"
    with pinned(*cores), log_path.open("wb") as log_file:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **settings}, stdout=log_file, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(name, process, port, log_path)
        yield Server(name, process.pid, port)
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _settings(port: int, repository: Path, store: str) -> Mapping[str, str]:
    """Carousel as it is by default, but for its store of states, and with keys; nothing is switched off."""
    return {
        "CAROUSEL_PORT": str(port),
        "CAROUSEL_MODEL_REPOSITORY": str(repository),
        "CAROUSEL_STATE_STORE": store,
        "CAROUSEL_API_KEYS": f"benchmark:{API_KEY}",
    }


def _wait_for(name: str, process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"The {name} server did not start:\n{log_path.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
