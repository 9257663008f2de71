"""What the measurements share: the servers, the generator, the rows they fill, and a note of every run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.bench_models import FEATURES
from benchmarks.figures import Row
from benchmarks.load_process import LoadProcess
from benchmarks.plan import Outcome, Plan
from benchmarks.raw import Reference
from benchmarks.rows import empty_rows
from benchmarks.servers import Server
from benchmarks.sizes import Sizes


@dataclass
class Bench:
    sizes: Sizes
    servers: dict[str, Server]
    load: LoadProcess
    references: dict[str, Reference]
    tell: Callable[[str], None]
    """Shows progress."""
    rows: dict[str, Row] = field(default_factory=empty_rows)
    runs: list[dict[str, Any]] = field(default_factory=list)
    voids: list[str] = field(default_factory=list)
    steps_compared: int = 0
    steps_wrong: int = 0
    order: random.Random = field(default_factory=random.Random)

    def note(self, key: str, value: float | None) -> None:
        """One more value of a row; None for a void run."""
        if value is not None:
            self.rows[key].values.append(value)

    def measure(self, server: str, model: str, num_streams: int, seconds: float, **plan: Any) -> Outcome | None:
        """One run of the load generator, checked against the unbatched reference; None when it is void."""
        target = self.servers[server]
        name = f"run{len(self.runs)}"
        what = f"{server} {model} {num_streams} streams" + "".join(f" {key}={value}" for key, value in plan.items())
        self.tell(what)
        outcome = self.load.run(
            Plan(target.port, target.pid, model, FEATURES[model], num_streams, seconds, name=name, **plan)
        )
        void = outcome.void or self._differs(server, model, outcome)
        if void:
            self.voids.append(f"{what}: {void}")
        self.runs.append(_summary(server, model, num_streams, outcome, plan, void))
        return None if void else replace(outcome, kept={})

    def _differs(self, server: str, model: str, outcome: Outcome) -> str:
        if server == "echo":
            return ""
        compared, wrong = self.references[model].check(outcome.kept)
        self.steps_compared += compared
        self.steps_wrong += wrong
        if not compared:
            return "no answer was compared"
        return f"{wrong} of {compared} steps differ from the unbatched reference" if wrong else ""


def _summary(
    server: str, model: str, num_streams: int, outcome: Outcome, plan: dict[str, Any], void: str
) -> dict[str, Any]:
    return {
        "server": server,
        "model": model,
        "streams": num_streams,
        **plan,
        "steps_per_second": round(outcome.rate, 1),
        "server_cpu_us": round(outcome.server_cpu_us, 2),
        "load_share": round(outcome.load_share, 3),
        "lag_p99_ms": round(1000 * outcome.lag_p99_seconds, 3),
        "jobs": outcome.jobs,
        "latency": {key: round(value, 3) for key, value in outcome.latency.items()},
        "void": void,
    }
