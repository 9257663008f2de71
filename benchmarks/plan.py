"""What the load generator is told, and what it says afterwards; both travel as one JSON line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MAX_SHARE = 0.7
"""Of its core; a generator busier than this may itself be what was measured."""

MAX_LAG_SECONDS = 0.001
"""p99 of how much later than possible a request went out."""

KEPT_STREAMS = (0, 1)
KEPT_STEPS = 100


@dataclass
class Plan:
    """One run against one server. Closed loop without `rate`: each stream sends when it has its answer."""

    port: int
    server_pid: int
    model: str
    num_features: int
    num_streams: int
    seconds: float
    warm_seconds: float = 0.3
    rate: float | None = None
    """Steps a second over all streams, sent by the clock: each stream at a fixed period and a random phase."""
    num_jobs: int = 0
    """Offline jobs kept in flight beside the streams."""
    job_steps: int = 2000
    door: Literal["http", "infer", "text", "binary"] = "http"
    """Where the steps go in: POST under /v1 or /v2, or a WebSocket's frames, in a closed loop."""
    steps_a_call: int = 1
    """Through POST."""
    seed: int = 0
    """Of inputs and phases."""
    name: str = "s"
    """Begins the sequence ids of this run."""
    worker_pids: tuple[int, ...] = ()
    """Processes of the server whose CPU time is told apart; POST only."""


@dataclass
class Outcome:
    """What was seen between the end of the warm-up and the end of the run."""

    steps: int
    seconds: float
    server_cpu_seconds: float
    load_cpu_seconds: float
    latency: dict[str, float]
    """From the intended moment of sending, in milliseconds."""
    lag_p99_seconds: float
    jobs: int
    errors: int
    first_error: str = ""
    kept: dict[str, list[Any]] = field(default_factory=dict)
    """Stream -> outputs of its first steps."""
    worker_cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.steps / self.seconds

    @property
    def server_cpu_us(self) -> float:
        """Server CPU time a step, in microseconds."""
        return 1e6 * self.server_cpu_seconds / max(1, self.steps)

    @property
    def worker_cpu_us(self) -> float:
        """CPU time a step of all workers together, in microseconds."""
        return 1e6 * self.worker_cpu_seconds / max(1, self.steps)

    @property
    def load_share(self) -> float:
        return self.load_cpu_seconds / self.seconds

    @property
    def void(self) -> str:
        """Why this run does not count; empty when it does."""
        if self.errors:
            return f"{self.errors} errors, the first: {self.first_error}"
        if self.load_share > MAX_SHARE:
            return f"the load generator took {self.load_share:.0%} of its core"
        if self.lag_p99_seconds > MAX_LAG_SECONDS:
            return f"the load generator was {1000 * self.lag_p99_seconds:.1f} ms late"
        return ""
