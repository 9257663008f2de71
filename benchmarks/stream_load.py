"""The load generator on streams: one loop over a few connections, each of which carries its part of the sequences.

Closed loop. Binary: a connection sends one frame with the next step of each of its sequences, and the next frame when
all are answered. Text: each sequence sends its next step when it has its answer, a frame a step.
"""

from __future__ import annotations

import json
import select
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.figures import latency_summary
from benchmarks.machine import cpu_seconds
from benchmarks.payloads import StepsDoor, input_index, inputs_of
from benchmarks.plan import KEPT_STEPS, KEPT_STREAMS, Outcome, Plan
from benchmarks.stream_connection import BINARY, TEXT, StreamConnection, frame
from benchmarks.stream_payloads import StepMessage, open_message, read_answers, text_template

CONNECTIONS = 2
"""While the answers of one are read and its next frame is made, the server works for the other."""
DRAIN_SECONDS = 5.0


class StreamLoad:
    """One plan carried out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoll = select.epoll()
        kind = {"text": TextCarrier, "binary": BinaryCarrier}[plan.door]
        shares = np.array_split(np.arange(plan.num_streams), min(CONNECTIONS, plan.num_streams))
        self.carriers = [kind(plan, share.tolist(), self.epoll) for share in shares]
        self.by_fd = {carrier.link.fd: carrier for carrier in self.carriers}
        self.latencies: list[float] = []
        self.begin = self.end = float("inf")
        self.sending = True

    def run(self) -> Outcome:
        start = perf_counter()
        self.begin = start + self.plan.warm_seconds
        self.end = self.begin + self.plan.seconds
        for carrier in self.carriers:
            carrier.begin()
        first, last = self._until(self.begin), self._until(self.end)
        self.sending = False
        until = perf_counter() + DRAIN_SECONDS
        while any(carrier.num_waiting for carrier in self.carriers):
            self._receive(0.1)
            if perf_counter() > until:
                raise ConnectionError("some streams are without an answer")
        seconds, server, own = (after - before for before, after in zip(first, last, strict=True))
        kept = {
            str(stream): outputs for carrier in self.carriers for stream, outputs in carrier.kept.items() if outputs
        }
        return Outcome(
            steps=len(self.latencies),
            seconds=seconds,
            server_cpu_seconds=server,
            load_cpu_seconds=own,
            latency=latency_summary(self.latencies),
            lag_p99_seconds=0.0,
            jobs=0,
            errors=0,
            kept=kept,
        )

    def close(self) -> None:
        for carrier in self.carriers:
            carrier.link.close()
        self.epoll.close()

    def _until(self, end: float) -> tuple[float, float, float]:
        """Run the loop up to `end`; then the clock and both processes' CPU time."""
        while (now := perf_counter()) < end:
            self._receive(end - now)
        return perf_counter(), cpu_seconds(self.plan.server_pid), process_time()

    def _receive(self, timeout: float) -> None:
        for fd, event in self.epoll.poll(timeout):
            carrier = self.by_fd[fd]
            if event & select.EPOLLOUT:
                carrier.link.write_rest()
            if event & ~select.EPOLLOUT:
                for message in carrier.link.read():
                    latencies = carrier.take(message, go_on=self.sending)
                    if self.begin <= perf_counter() < self.end:
                        self.latencies += latencies
                carrier.flush()


class Carrier:
    """One connection, and the numbers of the streams that it carries."""

    def __init__(self, plan: Plan, streams: list[int], subprotocol: str, epoll: select.epoll) -> None:
        self.streams = streams
        self.link = StreamConnection(plan.port, plan.model, subprotocol, epoll)
        self.kept: dict[int, list[Any]] = {stream: [] for stream in streams if stream in KEPT_STREAMS}
        self.num_waiting = 0

    def begin(self) -> None:
        """Send the first frames."""
        raise NotImplementedError

    def take(self, message: bytes, *, go_on: bool) -> list[float]:
        """Seconds that each answer in the message took; the next steps follow, unless this is the end."""
        raise NotImplementedError

    def flush(self) -> None:
        """All that was read is taken."""

    def keep(self, stream: int, outputs: Any) -> None:
        if stream in self.kept and len(self.kept[stream]) < KEPT_STEPS:
            self.kept[stream].append(outputs)


class BinaryCarrier(Carrier):
    def __init__(self, plan: Plan, streams: list[int], epoll: select.epoll) -> None:
        super().__init__(plan, streams, "carousel.v1.binary", epoll)
        self._names = [f"{plan.name}-{stream}" for stream in streams]
        self._message = StepMessage(len(streams), plan.num_features)
        self._inputs = np.array(inputs_of(plan.seed, plan.num_features), np.float32)
        self._step, self._sent_at = 0, 0.0

    def begin(self) -> None:
        self.link.write(frame(BINARY, open_message(self._names)))
        self.num_waiting = len(self.streams)

    def take(self, message: bytes, *, go_on: bool) -> list[float]:
        handles, outputs = read_answers(message)
        self.num_waiting -= len(handles)
        took = [] if outputs is None else [perf_counter() - self._sent_at] * len(handles)
        if outputs is not None and self._step <= KEPT_STEPS:
            for handle, output in zip(handles, outputs.tolist(), strict=True):
                self.keep(self.streams[handle], [output])
        if not self.num_waiting and go_on:
            self._send()
        return took

    def _send(self) -> None:
        places = [input_index(stream, self._step) for stream in self.streams]
        rendered = self._message.render(self._step, self._inputs[places])
        self._step += 1
        self._sent_at, self.num_waiting = perf_counter(), len(self.streams)
        self.link.write(frame(BINARY, rendered))


class TextCarrier(Carrier):
    def __init__(self, plan: Plan, streams: list[int], epoll: select.epoll) -> None:
        super().__init__(plan, streams, "carousel.v1.json", epoll)
        self._templates = {stream: text_template(f"{plan.name}-{stream}", stream) for stream in streams}
        self._inputs = [StepsDoor.render([step]) for step in inputs_of(plan.seed, plan.num_features)]
        self._steps = dict.fromkeys(streams, 0)
        self._sent_at = dict.fromkeys(streams, 0.0)
        self._out: list[bytes] = []

    def begin(self) -> None:
        for stream in self.streams:
            self._send(stream)
        self.flush()

    def take(self, message: bytes, *, go_on: bool) -> list[float]:
        answer = json.loads(message)
        if "error" in answer:
            raise ConnectionError(f"the server answered {answer}")
        stream = answer["id"]
        took = perf_counter() - self._sent_at[stream]
        self.num_waiting -= 1
        self.keep(stream, answer["outputs"])
        if go_on:
            self._send(stream)
        return [took]

    def flush(self) -> None:
        if self._out:
            self.link.write(b"".join(self._out))
            self._out = []

    def _send(self, stream: int) -> None:
        step = self._steps[stream]
        self._steps[stream] = step + 1
        self._sent_at[stream] = perf_counter()
        self.num_waiting += 1
        self._out.append(frame(TEXT, self._templates[stream] % (self._inputs[input_index(stream, step)], step)))
