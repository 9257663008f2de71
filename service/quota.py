"""How many CPUs this process may use: those that it is bound to, or what its control groups leave it, if that is less.

In a container with a namespace of its own the group is the root of what is mounted. In one that sees its host's tree,
and for a service of systemd, `/proc/self/cgroup` says where it stands; it and each group above it may set a quota.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_NONE = ("max", "-1")


def cpu_quota(root: Path = Path("/")) -> int:
    """Whole CPUs, one at least. `root` holds `proc` and `sys`."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _groups(root) if (quota := _quota(group)) is not None]
    return max(1, int(min([cpus, *quotas])))


def _groups(root: Path) -> Iterator[Path]:
    """Folders of all groups that this process is in, of version 2 and of version 1's `cpu`."""
    mounted = root / "sys/fs/cgroup"
    yield from (mounted, mounted / "cpu")
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            parts = PurePosixPath(path).parts[1:]
            if ".." in parts:  # it is above what is mounted
                continue
            if not controllers or "cpu" in controllers.split(","):
                top = mounted / "cpu" if controllers else mounted
                yield from (top.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1))


def _quota(group: Path) -> float | None:
    """CPUs; None where the group sets no bound."""
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):
            quota, period = " ".join((group / name).read_text() for name in files).split()
            return None if quota in _NONE else int(quota) / int(period)
    return None
