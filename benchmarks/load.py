"""The load generator: a process of its own that reads plans from stdin and writes outcomes to stdout, a line each.

It must never be what is measured, so it is one loop over epoll with requests rendered beforehand, and it counts its own
CPU time and how late it sends. Open loop: a request has an intended moment; if its stream still waits for the answer
before, it goes out late, and its latency counts from the intended moment all the same (no coordinated omission).
"""

from __future__ import annotations

import gc
import json
import random
import select
import sys
from collections import deque
from dataclasses import asdict
from heapq import heapify, heapreplace
from time import perf_counter, process_time

from benchmarks.connection import Connection
from benchmarks.figures import latency_summary, percentile
from benchmarks.machine import cpu_seconds
from benchmarks.payloads import DOORS, NUM_INPUTS, input_index, inputs_of, job_request
from benchmarks.plan import KEPT_STEPS, KEPT_STREAMS, Outcome, Plan
from benchmarks.stream_load import StreamLoad

DRAIN_SECONDS = 5.0
_OK = b"HTTP/1.1 200"


class Stream(Connection):
    """One sequence on one connection."""

    __slots__ = ("due", "intended", "kept", "later", "number", "ready_at", "step", "template", "waiting")

    def __init__(self, number: int, template: bytes, later: bytes, port: int, epoll: select.epoll) -> None:
        super().__init__(port, epoll)
        self.number = number
        self.template = template
        """Of the next request; `later` of those after the first."""
        self.later = later
        self.step = 0
        self.waiting = False
        self.ready_at = 0.0
        """When it had its last answer."""
        self.intended = 0.0
        """When the request under way should have gone out."""
        self.due: deque[float] = deque()
        """Intended moments that passed while the stream waited."""
        self.kept: list[bytes] | None = [] if number in KEPT_STREAMS else None


class Load:
    """One plan carried out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoll = select.epoll()
        self.door = DOORS[plan.door]
        pool = inputs_of(plan.seed, plan.num_features)
        chunks = [[pool[(n + step) % NUM_INPUTS] for step in range(plan.steps_a_call)] for n in range(NUM_INPUTS)]
        self.inputs = [self.door.render(chunk) for chunk in chunks]
        self.streams = [self._open(n) for n in range(plan.num_streams)]
        self.jobs = [Connection(plan.port, self.epoll) for _ in range(plan.num_jobs)]
        self.by_fd: dict[int, Stream] = {stream.fd: stream for stream in self.streams}
        self.jobs_by_fd = {job.fd: job for job in self.jobs}
        self.job = job_request(plan.model, plan.num_features, plan.job_steps) if self.jobs else b""
        self.schedule: list[tuple[float, int]] = []
        self.num_waiting = 0
        self.latencies: list[float] = []
        self.lags: list[float] = []
        self.num_jobs_done = 0
        self.errors = 0
        self.first_error = ""
        self.begin = self.end = float("inf")
        self.sending = True

    def run(self) -> Outcome:
        self._prime()
        period = len(self.streams) / self.plan.rate if self.plan.rate else 0.0
        start = perf_counter()
        self.begin = start + self.plan.warm_seconds
        self.end = self.begin + self.plan.seconds
        if period:
            phases = random.Random(f"{self.plan.seed} {self.plan.name}")
            self.schedule = [(start + phases.uniform(0, period), n) for n in range(len(self.streams))]
            heapify(self.schedule)
        else:
            for stream in self.streams:
                self._send(stream, start)
        for job in self.jobs:
            job.write(self.job)
        first = self._until(self.begin, period)
        last = self._until(self.end, period)
        if period:
            self._send_due(self.end, period)  # none that was intended is left out, even if this process was held up
        self.sending = False
        self._drain()
        return self._outcome(first, last)

    def close(self) -> None:
        for connection in (*self.streams, *self.jobs):
            connection.close()
        self.epoll.close()

    def _open(self, number: int) -> Stream:
        plan, inputs = self.plan, self.inputs[0]
        first, later = (
            self.door.template(plan.model, f"{plan.name}-{number}", inputs, plan.steps_a_call, first=is_first)
            for is_first in (True, False)
        )
        return Stream(number, first, later, plan.port, self.epoll)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _prime(self) -> None:
        """Begin every sequence: a first step each, not measured."""
        for stream in self.streams:
            self._send(stream, perf_counter())
        self.sending = False
        self._drain()
        self.sending = True

    def _until(self, end: float, period: float) -> tuple[float, ...]:
        """Run the loop up to `end`; then the clock, and CPU time: the server's, its workers', our own."""
        while (now := perf_counter()) < end:
            if period:
                now = self._send_due(now, period)
                self._sleep_until(min(self.schedule[0][0], end))
                self._receive(0.0)
            else:
                self._receive(end - now)
        workers = sum(map(cpu_seconds, self.plan.worker_pids))
        return perf_counter(), cpu_seconds(self.plan.server_pid), workers, process_time()

    def _drain(self) -> None:
        until = perf_counter() + DRAIN_SECONDS
        while self.num_waiting:
            self._receive(0.1)
            if perf_counter() > until:
                self._note_error(f"{self.num_waiting} streams without an answer")
                return

    def _send_due(self, now: float, period: float) -> float:
        while self.schedule[0][0] <= now:
            intended, number = self.schedule[0]
            heapreplace(self.schedule, (intended + period, number))
            stream = self.streams[number]
            if stream.waiting:
                stream.due.append(intended)
            else:
                self._send(stream, intended)
                now = perf_counter()
        return now

    def _sleep_until(self, due: float) -> None:
        """epoll waits in whole milliseconds; select on the epoll itself in microseconds."""
        seconds = due - perf_counter()
        if seconds > 0:
            select.select([self.epoll], [], [], seconds)

    def _receive(self, timeout: float) -> None:
        by_fd, jobs_by_fd = self.by_fd, self.jobs_by_fd
        for fd, event in self.epoll.poll(timeout):
            stream = by_fd.get(fd)
            if stream is None:
                self._serve_job(jobs_by_fd[fd], event)
            elif answer := stream.read():
                self._answered(stream, answer)

    def _send(self, stream: Stream, intended: float) -> None:
        stream.intended = intended
        stream.waiting = True
        self.num_waiting += 1
        inputs = self.inputs[input_index(stream.number, stream.step)]
        if self.plan.rate:
            self.lags.append(perf_counter() - max(intended, stream.ready_at))
        stream.write(self.door.fill(stream.template, inputs, stream.step))

    def _answered(self, stream: Stream, answer: bytes) -> None:
        now = perf_counter()
        stream.waiting = False
        stream.ready_at = now
        self.num_waiting -= 1
        if not answer.startswith(_OK):
            self._note_error(answer[:400].decode(errors="replace"))
        if stream.kept is not None and len(stream.kept) < KEPT_STEPS:
            stream.kept.append(answer)
        stream.step += self.plan.steps_a_call
        stream.template = stream.later
        counted_at = stream.intended if self.plan.rate else now
        if self.begin <= counted_at < self.end:
            self.latencies.append(now - stream.intended)
        if stream.due:
            self._send(stream, stream.due.popleft())
        elif self.sending and not self.plan.rate:
            self._send(stream, now)

    def _serve_job(self, job: Connection, event: int) -> None:
        if event & select.EPOLLOUT:
            job.write_rest()
        if event & ~select.EPOLLOUT and (answer := job.read()):
            if not answer.startswith(_OK):
                self._note_error(answer[:400].decode(errors="replace"))
            self.num_jobs_done += self.begin <= perf_counter() < self.end
            if self.sending:
                job.write(self.job)

    def _note_error(self, text: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or text

    def _outcome(self, first: tuple[float, ...], last: tuple[float, ...]) -> Outcome:
        seconds, server, workers, own = (after - before for before, after in zip(first, last, strict=True))
        kept = {
            str(stream.number): [[step] for answer in stream.kept for step in self.door.outputs(answer)][:KEPT_STEPS]
            for stream in self.streams
            if stream.kept and not self.errors
        }
        return Outcome(
            steps=len(self.latencies) * self.plan.steps_a_call,
            seconds=seconds,
            server_cpu_seconds=server,
            worker_cpu_seconds=workers,
            load_cpu_seconds=own,
            latency=latency_summary(self.latencies),
            lag_p99_seconds=percentile(sorted(self.lags), 99.0) if self.lags else 0.0,
            jobs=self.num_jobs_done,
            errors=self.errors,
            first_error=self.first_error,
            kept=kept,
        )


def main() -> None:
    gc.disable()
    for line in sys.stdin:
        plan = Plan(**json.loads(line))
        load = Load(plan) if plan.door in DOORS else StreamLoad(plan)
        try:
            outcome = asdict(load.run())
        except OSError as error:
            outcome = {"failed": str(error)}
        finally:
            load.close()
        print(json.dumps(outcome), flush=True)
        del load
        gc.collect()


if __name__ == "__main__":
    main()
