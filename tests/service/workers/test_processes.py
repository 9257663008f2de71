"""`python -m service` with workers, as people run it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.errors import WorkerFailed
from service.settings import Settings
from service.workers.pool import Workers
from tests.service.api.clients import SUM
from tests.service.api.processes import Served, serve, start
from tests.service.api.socket_server import steps_path
from tests.service.workers.wires import worker_processes

WORKERS = {"CAROUSEL_WORKERS": "2"}
STEP = {"inputs": [[1, 2]], "start": True}


def workers_of(served: Served) -> list[int]:
    """Children of a server, by Linux' list of processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == served.process.pid:
                found.append(int(folder.name))
    return found


def wait_until_gone(pids: list[int]) -> None:
    """Whoever takes in orphans may not have waited for them yet."""
    for pid in pids:
        with suppress(OSError):
            while (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                pass


@contextmanager
def at_a_worker(served: Served) -> Iterator[httpx.Client]:
    """A client that has made so many plain calls that a worker answers them."""
    with httpx.Client(base_url=served.address) as client:
        for n in range(1, 20):
            assert client.post(steps_path(SUM, "s"), json=STEP).json()["step"] == n
        yield client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_only_the_engines_process_hears_a_signal_and_all_end_without_a_word(sums: Path, number: int) -> None:
    with serve(sums, **WORKERS) as served, at_a_worker(served) as client:
        pids = workers_of(served)
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, number)
            assert os.getpgid(pid) != os.getpgid(served.process.pid), "a terminal's Ctrl-C goes to the group"
        assert client.post(steps_path(SUM, "s"), json=STEP).json()["step"] == 20
        assert workers_of(served) == pids
        served.process.send_signal(number)
        _, logs = served.process.communicate(timeout=60)
        assert (served.process.returncode, logs) == (0, "")
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_workers_do_not_outlive_a_server_that_is_killed(sums: Path) -> None:
    with serve(sums, **WORKERS) as served, at_a_worker(served) as client:
        pids = workers_of(served)
        served.process.kill()
        served.process.wait(30)
        wait_until_gone(pids)
        with pytest.raises(httpx.TransportError):
            client.post(steps_path(SUM, "s"), json=STEP)


def test_a_worker_that_cannot_start_is_one_clear_line(sums: Path, tmp_path: Path) -> None:
    stumble = "import os, sys\nif 'service.workers' in sys.orig_argv: os.write(2, b'no room\\n'), os._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(stumble)
    with start(sums, PYTHONPATH=str(tmp_path), **WORKERS) as process:
        told, complaint = process.communicate(timeout=60)
    assert process.returncode == 2, complaint
    assert "Carousel" not in told, "there is no server to call"
    lines = complaint.splitlines()
    assert lines[-1].startswith("carousel: A worker ended while it came up")
    assert "no room" in lines
    assert [line for line in lines if line.startswith("carousel: ")] == lines[-1:]
    assert "Traceback" not in complaint


@pytest.mark.anyio
async def test_workers_that_take_too_long_to_start_are_not_left_behind(
    sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.workers.pool.START_SECONDS", 0.0)
    app = create_app(Settings(model_repository=sums, workers=2))
    async with app.router.lifespan_context(app):
        pool = Workers(app.state.service, lambda: pytest.fail("no connection comes back"), 5.0)
        for start_one in (pool.start(), pool._start_one()):
            with pytest.raises(WorkerFailed, match="did not come up in 0 s"):
                await start_one
        await pool.stop()
    assert not worker_processes()
