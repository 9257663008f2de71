"""The CPUs that a container or a service may use, from trees of files as kernels show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.quota import cpu_quota

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"
CGROUP = "proc/self/cgroup"
SCOPE = "system.slice/docker-1.scope"


def v1(quota: str, under: str = "") -> dict[str, str]:
    return {f"{V1}/{under}cpu.cfs_quota_us": f"{quota}\n", f"{V1}/{under}cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({f"{V2}/cpu.max": "150000 100000"}, 1),
        ({f"{V2}/cpu.max": "50000 100000"}, 1),
        ({f"{V2}/cpu.max": "max 100000"}, 64),
        ({f"{V2}/cpu.max": "1600000 100000"}, 16),
        (v1("300000"), 3),
        (v1("-1"), 64),
        ({}, 64),
        # the host's tree: the group's own quota, or the smallest of those above it
        ({CGROUP: f"0::/{SCOPE}\n", f"{V2}/{SCOPE}/cpu.max": "200000 100000\n"}, 2),
        ({CGROUP: f"0::/{SCOPE}\n", f"{V2}/{SCOPE}/cpu.max": "max 100000", f"{V2}/system.slice/cpu.max": "5 1"}, 5),
        ({CGROUP: f"0::/{SCOPE}\n", f"{V2}/{SCOPE}/cpu.max": "8 1", f"{V2}/system.slice/cpu.max": "5 1"}, 5),
        ({CGROUP: "0::/\n", f"{V2}/{SCOPE}/cpu.max": "2 1", f"{V2}/cpu.max": "7 1"}, 7),
        # the group is mounted as the root, or is above it: what can be seen counts
        ({CGROUP: f"0::/{SCOPE}\n", f"{V2}/cpu.max": "300000 100000\n"}, 3),
        ({CGROUP: "0::/../../a\n", f"{V2}/cpu.max": "300000 100000\n", "sys/a/cpu.max": "1 1"}, 3),
        # version 1, alone or beside an empty version 2
        ({CGROUP: f"4:cpu,cpuacct:/docker/1\n3:cpuset:/\n0::/{SCOPE}\n", **v1("-1"), **v1("600000", "docker/1/")}, 6),
        ({CGROUP: "3:cpuset:/docker/1\n", **v1("600000", "docker/1/")}, 64),
    ],
)
def test_the_smallest_quota_on_the_way_up_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == expected
