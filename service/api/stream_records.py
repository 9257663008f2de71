"""What is asked on a stream, and how it is answered in the form that it was asked in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from service.api.call import Call, Reply
from service.api.predict import read_bounded
from service.api.sequences import steps_answer
from service.engine.request import Result
from service.errors import CarouselError, InvalidInput, VersionNotFound
from service.model_spec import ModelSpec
from service.protocol.arrays import LARGE_BYTES
from service.protocol.bodies import StreamBody
from service.protocol.codec import JSON
from service.protocol.frame_answers import Answer, Deleted, Failed, Opened, Stepped
from service.protocol.frames import NO_STEP
from service.sequence import Sequence, Steps


@dataclass(slots=True, eq=False)
class Record(ABC):
    """One thing asked of one sequence. `answer` is str or frame_answers.Answer, once there is one."""

    action: Literal["step", "open", "delete"]
    owed_bytes: int
    """About what the answer takes."""
    step: int | None = None
    start: bool = False
    answer: Any = None

    @property
    @abstractmethod
    def is_long(self) -> bool:
        """Is there so much to read that it is not to be done on the event loop?"""

    @abstractmethod
    def work(self, spec: ModelSpec) -> Steps:
        """What is asked, its inputs read and checked. Raises InvalidInput, TooLarge, VersionNotFound."""

    @abstractmethod
    def succeed(self, sequence: Sequence | None, result: Result | None) -> None: ...

    @abstractmethod
    def fail(self, reply: Reply) -> None:
        """`reply` is the problem document as HTTP would send it."""


@dataclass(slots=True, eq=False, kw_only=True)
class TextRecord(Record):
    call: Call
    """With the frame as its body."""
    frame: StreamBody

    @property
    def is_long(self) -> bool:
        return len(self.call.body) > LARGE_BYTES

    def work(self, spec: ModelSpec) -> Steps:
        frame = self.frame
        if not frame.inputs:
            raise InvalidInput("Object missing required field `inputs`.")
        inputs = read_bounded(self.call, frame.inputs, spec)
        return Steps(inputs, frame.step, frame.outputs, frame.return_state, frame.commit, None)

    def succeed(self, sequence: Sequence | None, result: Result | None) -> None:
        told = {} if self.frame.id is None else {"id": self.frame.id}
        if sequence is not None and result is not None:
            told |= steps_answer(sequence, result)
        else:
            told |= {"sequence_id": self.frame.sequence_id, "deleted": True}
        self.answer = JSON.encode(told).decode()

    def fail(self, reply: Reply) -> None:
        self.answer = error_text(reply, self.frame.id, self.frame.sequence_id)


@dataclass(slots=True, eq=False, kw_only=True)
class BinaryRecord(Record):
    handle: int
    tag: int
    asked: Steps | CarouselError | None = None
    """What is wrong with the inputs stands here in its place: it is told in turn."""
    spec: ModelSpec
    """What the layout of the stream was made from."""
    tell_expiry: bool = False

    @property
    def is_long(self) -> bool:
        return False

    def work(self, spec: ModelSpec) -> Steps:
        if isinstance(self.asked, CarouselError):
            raise self.asked
        assert self.asked is not None, "only steps are work"
        if not same_layout(spec, self.spec):
            raise VersionNotFound(
                "The sequence is of a model version with other shapes or states than those of this stream. "
                "Open a stream with `?version=` for it."
            )
        return self.asked

    def succeed(self, sequence: Sequence | None, result: Result | None) -> None:
        self.answer = self._answer(sequence, result)

    def fail(self, reply: Reply) -> None:
        self.answer = Failed(self.handle, self.tag, reply.status, reply.body)

    def _answer(self, sequence: Sequence | None, result: Result | None) -> Answer:
        if result is not None:
            expires_at = sequence.expires_at if self.tell_expiry and sequence is not None else None
            position, outputs, state = result.position, result.outputs, result.state
            return Stepped(self.handle, self.tag, position, outputs, state, result.replayed, expires_at)
        if self.action == "delete":
            return Deleted(self.handle, self.tag)
        if sequence is None:
            return Opened(self.handle, self.tag, NO_STEP, 0.0)
        return Opened(self.handle, self.tag, sequence.step, sequence.expires_at)


def error_text(reply: Reply, id: Any = None, sequence_id: str | None = None) -> str:
    """`{"id", "sequence_id", "error": problem}`; the second only where it is known."""
    told = {"id": id} if sequence_id is None else {"id": id, "sequence_id": sequence_id}
    return orjson.dumps({**told, "error": orjson.Fragment(reply.body)}).decode()


def same_layout(one: ModelSpec, other: ModelSpec) -> bool:
    """Do inputs, outputs and states of the two take the same bytes and names, and tokens the same ids?"""
    return one is other or _layout(one) == _layout(other)


def _layout(spec: ModelSpec) -> tuple[Any, ...]:
    states = [(state.name, state.row_shape) for state in spec.states]
    return spec.input.dtype, spec.input.step_shape, spec.input.token_limits.tolist(), spec.output.step_shape, states
