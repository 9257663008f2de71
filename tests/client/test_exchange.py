"""A stream without a network: whatever gets lost or refused in between, each step is done once and in its order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carousel_client import ConnectionFailed, Retry, Stepped, Unavailable, UnexpectedAnswer
from carousel_client.core.frames import MAGIC, NO_STEP, OPEN, Frames
from carousel_client.core.results import ModelCard
from carousel_client.core.retries import Pace
from carousel_client.core.streams import Exchange
from service.protocol.frame_answers import Failed, FrameWriter, Opened
from service.protocol.frame_answers import Stepped as Answered
from service.protocol.frames import FrameReader
from tests.service.protocol.specs import spec

SPEC = spec(1)
CARD = ModelCard.read(
    {
        "name": "m",
        "version": 1,
        "task": "t",
        "cell": "c",
        "streaming": True,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["time", 1]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["time", 1]}],
        "states": [],
    }
)
REFUSED = 999.0
"""The server finds this number wrong."""


class Serving:
    """Adds up, as the contract has it, and is busy with chance `busy`; with the real server's frames."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self.busy = 0.0
        self.done: dict[str, list[float]] = {}
        self._ids: dict[int, str] = {}

    def connect(self) -> None:
        self._ids = {}

    def answer(self, message: bytes) -> list[bytes]:
        answers: list[Any] = []
        for block in FrameReader(SPEC).read(message):
            for record in block.records:
                handle, tag = int(record["handle"]), int(record["tag"])
                if block.kind == OPEN:
                    self._ids[handle] = record["id"].decode()
                    done = self.done.get(self._ids[handle])
                    answers.append(Opened(handle, tag, NO_STEP if done is None else len(done), 0.0))
                else:
                    step, inputs = int(record["step"]), record["inputs"].ravel().tolist()
                    answers.append(self._step(self._ids[handle], handle, tag, step, inputs, block.commit))
        return list(FrameWriter(SPEC).write(answers, 200))

    def _step(self, id: str, handle: int, tag: int, step: int, inputs: list[float], commit: bool) -> Any:
        done = self.done.setdefault(id, [])
        if self._chance.random() < self.busy:
            return _failed(handle, tag, 503, "queue_full")
        replayed = commit and step + 16 >= len(done) > step and done[step : step + len(inputs)] == inputs
        if step != len(done) and not replayed:
            return _failed(handle, tag, 409, "step_conflict")
        if REFUSED in inputs:
            return _failed(handle, tag, 422, "invalid_input")
        if commit and not replayed:
            done += inputs
        sums = np.cumsum(done[:step] + inputs)[step:].astype(np.float32).reshape(-1, 1)
        return Answered(handle, tag, step + len(inputs), sums, None, replayed)


def _failed(handle: int, tag: int, status: int, code: str) -> Failed:
    return Failed(handle, tag, status, json.dumps({"code": code, "status": status, "detail": code}).encode())


class Talk:
    """An exchange with such a server over a connection that may be cut between any two messages."""

    def __init__(self, chance: Random, **retry: Any) -> None:
        self.serving, self._chance = Serving(chance), chance
        self.exchange = Exchange(CARD, Pace(Retry(**retry), lambda: 0.0, lambda: 0.0))
        self.outcomes: list[list[Any]] = []
        self.sent: list[tuple[str, list[float], bool]] = []

    def send(self, id: str, values: list[float], commit: bool = True) -> None:
        outcomes: list[Any] = []
        self.outcomes.append(outcomes)
        self.sent.append((id, values, commit))
        self.exchange.step(id, [[value] for value in values], outcomes.append, commit=commit)

    def turn(self, cut: float = 0.0) -> None:
        """Everything that can be sent goes, and is answered, unless the connection is cut before, with chance `cut`."""
        for message in self._passed(self.exchange.outgoing(), cut):
            for answer in self._passed(self.serving.answer(message), cut):
                self.exchange.receive(answer)

    def _passed(self, messages: list[bytes], cut: float) -> Iterator[bytes]:
        for message in messages:
            if self._chance.random() < cut:
                self.exchange.lost(ConnectionResetError())
                self.serving.connect()
                raise ConnectionResetError
            yield message

    def finish(self) -> None:
        while self.exchange.has_work:
            self.turn()


@given(
    chance=st.randoms(use_true_random=False),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.lists(st.sampled_from([1.0, 2.0, 3.0, REFUSED]), min_size=1, max_size=3),
            st.sampled_from([True, True, False]),
            st.booleans(),
        ),
        max_size=60,
    ),
    cut=st.sampled_from([0.0, 0.1, 0.5]),
    busy=st.sampled_from([0.0, 0.3]),
)
def test_each_step_is_done_once_and_in_order(chance: Random, steps: Any, cut: float, busy: float) -> None:
    talk = Talk(chance)
    talk.serving.busy = busy
    for id, values, commit, rest in steps:
        talk.send(id, values, commit)
        if rest:
            try:
                talk.turn(cut)
            except ConnectionResetError:
                continue
    talk.serving.busy = 0
    talk.finish()
    wanted: dict[str, list[float]] = {}
    for (id, values, commit), outcomes in zip(talk.sent, talk.outcomes, strict=True):
        (outcome,) = outcomes
        done = wanted.setdefault(id, [])
        if isinstance(outcome, Stepped):
            after = done + values
            assert (outcome.sequence_id, outcome.step) == (id, len(after))
            assert outcome.outputs.ravel().tolist() == np.cumsum(after)[-len(values) :].tolist()
            wanted[id] = after if commit else done
        elif REFUSED not in values:
            assert outcome.code == "out_of_turn"
    assert {id: done for id, done in talk.serving.done.items() if done} == {i: d for i, d in wanted.items() if d}


def test_nothing_fails_because_of_another_sequence() -> None:
    talk = Talk(Random(0))
    for id, values in (("a", [REFUSED]), ("b", [1.0]), ("a", [1.0]), ("b", [2.0])):
        talk.send(id, values)
    talk.finish()
    assert [type(outcome).__name__ for (outcome,) in talk.outcomes] == [
        "InvalidInput",
        "Stepped",
        "OutOfTurn",
        "Stepped",
    ]


def test_what_waits_behind_a_step_that_failed_is_not_run_either() -> None:
    talk = Talk(Random(0))
    for value in [1.0, REFUSED] + [2.0] * 40:
        talk.send("a", [value])
    talk.finish()
    assert {outcome.code for (outcome,) in talk.outcomes[2:]} == {"out_of_turn"}
    assert talk.serving.done["a"] == [1.0]


def test_a_sequence_that_is_refused_for_too_long_says_why_and_can_be_gone_on_with() -> None:
    talk = Talk(Random(0), total_seconds=-1.0)
    talk.serving.busy = 1.0
    talk.send("a", [1.0])
    talk.finish()
    assert isinstance(talk.outcomes[0][0], Unavailable)
    talk.serving.busy = 0.0
    talk.send("a", [1.0])
    talk.finish()
    assert talk.outcomes[1][0].step == 1


def test_when_connecting_fails_for_too_long_everything_is_told() -> None:
    talk = Talk(Random(0), total_seconds=-1.0)
    talk.send("a", [1.0])
    talk.send("b", [1.0])
    assert talk.exchange.lost(OSError("no route")) == 0.0
    assert [type(outcome) for (outcome,) in talk.outcomes] == [ConnectionFailed] * 2
    assert not talk.exchange.has_work


def test_no_more_is_under_way_than_the_server_can_replay() -> None:
    talk = Talk(Random(0))
    for _ in range(50):
        talk.send("a", [1.0])
    talk.turn()  # it opens
    (message,) = talk.exchange.outgoing()
    assert sum(len(block.records) for block in FrameReader(SPEC).read(message)) == 16


@pytest.mark.parametrize("message", ["text", b"", MAGIC + b"\x08\0\0\0\x01", MAGIC + b"\x10\0\0\0\x63\0\0\0\0\0\0\0"])
def test_what_is_no_message_of_a_stream_is_told(message: Any) -> None:
    with pytest.raises(UnexpectedAnswer):
        Exchange(CARD, Pace()).receive(message)


def test_a_message_of_the_exchange_is_what_the_documentation_shows() -> None:
    frames = Frames(CARD)
    assert frames.write([], []) == MAGIC + b"\x08\0\0\0"
