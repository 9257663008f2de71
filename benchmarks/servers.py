"""Starts the servers that are measured, each on a free port and on the server's core, and stops them by their pid."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import pinned
from benchmarks.payloads import API_KEY

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0
CONTENDERS = ("carousel", "naive", "echo")


@dataclass(frozen=True)
class Server:
    name: str
    pid: int
    port: int


@contextmanager
def running_servers(repository: Path, core: int, names: Sequence[str] = CONTENDERS) -> Iterator[dict[str, Server]]:
    """All of them on one core: those that are not measured just now are idle."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(_running(name, repository, core)) for name in names}


@contextmanager
def _running(name: str, repository: Path, core: int) -> Iterator[Server]:
    port = free_port()
    log_path = repository.parent / f"{name}.log"
    with pinned(core), log_path.open("wb") as log_file:
        process = subprocess.Popen(
            _command(name, port, repository),
            cwd=ROOT,
            env={**os.environ, **_environment(port, repository)},
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(name, process, port, log_path)
        yield Server(name, process.pid, port)
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _command(name: str, port: int, repository: Path) -> list[str]:
    if name == "carousel":
        return [sys.executable, "-m", "service"]
    arguments = ["--repository", str(repository)] if name == "naive" else []
    return [sys.executable, "-m", f"benchmarks.{name}_server", "--port", str(port), *arguments]


def _environment(port: int, repository: Path) -> Mapping[str, str]:
    """Carousel as it is by default, with keys; nothing is switched off."""
    return {
        "CAROUSEL_PORT": str(port),
        "CAROUSEL_MODEL_REPOSITORY": str(repository),
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
