"""The machine: what it is, which core does what, and how much CPU time a process has had. Linux only."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("onnxruntime", "numpy", "fastapi", "uvicorn", "uvloop", "httptools", "msgspec", "orjson", "pydantic")


def cores() -> tuple[int, int]:
    """(the server's core, the load generator's core)."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("The benchmark needs two cores: one for the server and one for the load generator.")
    return usable[0], usable[1]


@contextmanager
def pinned(*only: int) -> Iterator[None]:
    """Processes started inside stay on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(only))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, to the nanosecond: see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes() -> int:
    """Memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def describe() -> dict[str, Any]:
    """Hardware, versions and conditions."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def load_average() -> float:
    """Processes that wanted a core in the last minute: far above what the benchmark runs, its figures are doubtful."""
    return round(os.getloadavg()[0], 2)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
