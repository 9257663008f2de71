"""One WebSocket: reads frames, lets their records run, writes the answers; neither side gets far ahead of the other.

A record is owed from the moment it is read until its answer is handed to the connection. A stream that owes too much
is not read further, and answers to a slow reader wait until the connection takes more: what is held for a stream is
bounded, whatever its client does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, Literal

import msgspec
import structlog
from starlette.types import Receive, Send

from service.api.call import Call
from service.api.predict import check_steps
from service.api.stream_lines import Lines
from service.api.stream_records import BinaryRecord, Record, TextRecord, error_text
from service.api.stream_volleys import StreamVolleys
from service.errors import CarouselError, InvalidInput, TooLarge
from service.model_spec import ModelSpec
from service.protocol.bodies import SEQUENCE_ID_IN_WORDS, StreamBody, StreamId, is_sequence_id
from service.protocol.codec import JSON, decode_body
from service.protocol.frame_answers import Failed, FrameWriter
from service.protocol.frames import BINARY, NO_HANDLE, OPEN, STEP, Block, FrameReader
from service.sequence import Steps

MAX_OWED_BYTES = 4 * 2**20
"""Of answers, about; a single frame may owe more."""
ANSWER_BYTES = 256
"""Of an answer, besides its numbers."""
TEXT_FACTOR = 4
"""What a float32 takes in JSON, over its own four bytes."""

UNSUPPORTED, INTERNAL, RESTARTING = 1003, 1011, 1012

log = structlog.get_logger(__name__)


class Connection:
    """Ends when the client leaves or breaks the protocol, or when the server drains."""

    def __init__(self, call: Call, receive: Receive, send: Send, *, binary: bool, of_worker: bool = False) -> None:
        """`of_worker`: it carries calls of many callers, each of whom waits for one answer.

        They are counted in the metrics as the calls that they are, and none may hold up another by what is owed to it.
        """
        settings = call.service.settings
        self._call = call
        self._receive, self._send = receive, send
        self._spec: ModelSpec = call.model.spec
        self._frames = FrameReader(self._spec) if binary else None
        self._writer = FrameWriter(self._spec)
        self._lines = Lines(call, self._on_answer, counted=not of_worker)
        self._volleys = StreamVolleys(call, self._spec, self._lines, self._on_volley)
        self._max_records, self._max_sequences = settings.max_stream_records, settings.max_stream_sequences
        self._max_owed = (math.inf, math.inf) if of_worker else (self._max_records, MAX_OWED_BYTES)
        self._max_bytes = settings.max_frame_bytes
        self._owed = self._owed_bytes = 0
        self._done: list[Any] = []
        self._done_records = self._done_bytes = 0
        self._wake, self._changed = asyncio.Event(), asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._gone = False
        self._close: tuple[int, str] | None = None
        self._num_frames = self._num_records = 0
        metrics = call.service.metrics
        self._counts = {
            form: (metrics.stream_frames.labels(form), metrics.stream_records.labels(form))
            for form in ("text", "binary")
            if not of_worker
        }

    async def serve(self) -> None:
        """Until the stream is over and all that was read of it is answered."""
        self._reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        if self._close:
            self._reader.cancel()
        try:
            await asyncio.wait((self._reader, writer), return_when=asyncio.FIRST_COMPLETED)
            self._reader.cancel()
            while self._owed:
                await self._change()
            if self._close and not self._gone:
                code, reason = self._close
                with suppress(OSError):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        finally:
            for task in (self._reader, writer):
                task.cancel()
            await asyncio.gather(self._reader, writer, return_exceptions=True)

    def leave(self) -> None:
        """The server is shutting down: read no more, and close when what was read is answered."""
        self._close = RESTARTING, "The server is shutting down. Connect again and go on by step number."
        if self._reader:
            self._reader.cancel()

    def told(self) -> dict[str, int]:
        """Counts for the log."""
        return {"frames": self._num_frames, "records": self._num_records, "errors": self._lines.num_errors}

    # -- in ----------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while self._close is None:
                message = await self._receive()
                if message["type"] != "websocket.receive":
                    self._gone = True
                    return
                self._num_frames += 1
                if (text := message.get("text")) is not None:
                    await self._take_text(text.encode())
                elif self._frames is not None:
                    await self._take_binary(self._frames, message["bytes"])
                else:
                    self._close = UNSUPPORTED, f"Binary frames need the subprotocol {BINARY}."
        except Exception:
            log.exception("stream_failed")
            self._close = INTERNAL, "Something went wrong in the server. Connect again and go on by step number."

    async def _take_text(self, text: bytes) -> None:
        self._note("text", 1)
        await self._until_volleys_end()
        call = Call(self._call.scope, self._call.service)
        call.body = text
        try:
            frame = await call.read(decode_body, JSON, StreamBody, text)
        except CarouselError as error:
            answer = error_text(self._lines.problem(error), await call.read(_id_of, text))
            await self._reserve(1, 0)
            self._emit(answer, 0)
            return
        # a number and what parts it from the next are two bytes at least
        most_steps = len(frame.inputs) // (2 * math.prod(self._spec.input.step_shape)) + 1
        owed = ANSWER_BYTES + TEXT_FACTOR * self._answer_bytes(most_steps, frame.return_state)
        await self._reserve(1, owed)
        record = TextRecord(
            "delete" if frame.delete else "step",
            owed,
            frame.step,
            frame.start,
            call=call,
            frame=frame,
        )
        self._lines.add(self._lines.of_id(frame.sequence_id), record)

    async def _take_binary(self, frames: FrameReader, message: bytes) -> None:
        try:
            blocks = frames.read(message)
            num_records = sum(len(block.records) for block in blocks)
            check_steps(self._call.service.settings, sum(block.num_steps for block in blocks))
            self._check_records(num_records)
        except CarouselError as error:
            self._note("binary", 0)
            await self._reserve(1, 0)
            reply = self._lines.problem(error)
            self._emit(Failed(NO_HANDLE, 0, reply.status, reply.body), 0)
            return
        self._note("binary", num_records)
        await self._reserve(num_records, sum(len(block.records) * self._owed_each(block) for block in blocks))
        for block in blocks:
            if block.kind == STEP and self._volleys.suits(block):
                while not self._volleys.is_free(block):
                    await self._change()
                block = block.at(self._volleys.take(block, self._owed_each(block)))
            if len(block.records):
                await self._until_volleys_end()
                self._take_block(block)

    def _take_block(self, block: Block) -> None:
        records, owed = block.records, self._owed_each(block)
        handles, tags = records["handle"].tolist(), records["tag"].tolist()
        if block.kind == OPEN:
            for handle, tag, name in zip(handles, tags, records["id"].tolist(), strict=True):
                self._open(BinaryRecord("open", owed, handle=handle, tag=tag, spec=self._spec), name)
        elif block.kind == STEP:
            record = partial(
                BinaryRecord, "step", owed, start=block.start, spec=self._spec, tell_expiry=block.tell_expiry
            )
            for handle, tag, asked in zip(handles, tags, self._asked(block), strict=True):
                step = None if isinstance(asked, CarouselError) else asked.step
                self._put(record(step=step, handle=handle, tag=tag, asked=asked))
        else:
            for handle, tag in zip(handles, tags, strict=True):
                self._put(BinaryRecord("delete", owed, handle=handle, tag=tag, spec=self._spec))

    def _asked(self, block: Block) -> Iterator[Steps | CarouselError]:
        outputs, return_state, commit = block.outputs, block.return_state, block.commit
        for step, x in zip(block.steps(), block.inputs(self._spec.input), strict=True):
            yield x if isinstance(x, CarouselError) else Steps(x, step, outputs, return_state, commit, None)

    def _open(self, record: BinaryRecord, name: bytes) -> None:
        sequence_id = name.decode("latin-1")
        if record.handle >= self._max_sequences:
            expected = f"0..{self._max_sequences - 1}"
            error = InvalidInput(f"handle: expected {expected}.", expected=expected, received=record.handle)
            self._lines.refuse(record, error)
        elif not is_sequence_id(sequence_id):
            self._lines.refuse(record, InvalidInput(f"id: expected {SEQUENCE_ID_IN_WORDS}"))
        else:
            self._lines.add(self._lines.open(record.handle, sequence_id), record)

    def _put(self, record: BinaryRecord) -> None:
        line = self._lines.of_handle(record.handle)
        if line is None:
            self._lines.refuse(record, InvalidInput(f"handle: {record.handle} is not open. Name its sequence by OPEN."))
        else:
            self._lines.add(line, record)

    def _check_records(self, num_records: int) -> None:
        if num_records > self._max_records:
            raise TooLarge(
                f"{num_records} records are more than the {self._max_records} that may wait for their answer.",
                limit=self._max_records,
                limit_name="records",
                received=num_records,
            )

    def _owed_each(self, block: Block) -> int:
        """About the bytes of the answer to each record."""
        steps = {"all": block.steps_each, "last": 1, "none": 0}[block.outputs] if block.kind == STEP else 0
        return ANSWER_BYTES + self._answer_bytes(steps, block.return_state)

    def _answer_bytes(self, steps: int, return_state: bool) -> int:
        return steps * self._spec.output.step_bytes + return_state * self._spec.state_bytes

    def _note(self, form: Literal["text", "binary"], num_records: int) -> None:
        self._num_records += num_records
        if form in self._counts:
            frames, records = self._counts[form]
            frames.inc()
            records.inc(num_records)

    # -- owed --------------------------------------------------------------------------------------------------------

    async def _reserve(self, records: int, size: int) -> None:
        """Wait until the stream may owe so much more."""
        most_records, most_bytes = self._max_owed
        while self._owed and (self._owed + records > most_records or self._owed_bytes + size > most_bytes):
            await self._change()
        self._owed += records
        self._owed_bytes += size

    async def _until_volleys_end(self) -> None:
        """What comes after them must not overtake their answers."""
        while self._volleys.num_running:
            await self._change()

    async def _change(self) -> None:
        """Wait until a volley ends, or answers leave."""
        self._changed.clear()
        await self._changed.wait()

    def _on_answer(self, record: Record) -> None:
        self._emit(record.answer, record.owed_bytes)

    def _on_volley(self, answer: Any, num_records: int, owed_bytes: int) -> None:
        self._emit(answer, owed_bytes, num_records)
        self._changed.set()

    def _emit(self, answer: Any, owed_bytes: int, num_records: int = 1) -> None:
        self._done.append(answer)
        self._done_records += num_records
        self._done_bytes += owed_bytes
        self._wake.set()

    # -- out ---------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """What is ready when the connection takes more goes out together."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            done, count, size = self._done, self._done_records, self._done_bytes
            self._done, self._done_records, self._done_bytes = [], 0, 0
            if not self._gone:
                await self._send_all(done)
            self._owed -= count
            self._owed_bytes -= size
            self._changed.set()

    async def _send_all(self, answers: list[Any]) -> None:
        try:
            for is_text, part in groupby(answers, lambda answer: isinstance(answer, str)):
                for message in self._messages(is_text, list(part)):
                    await self._send(message)
        except Exception:  # a write to a connection that was closed meanwhile: each loop has its own class
            self._gone = True
            if self._reader:
                self._reader.cancel()

    def _messages(self, is_text: bool, answers: list[Any]) -> Iterator[dict[str, Any]]:
        if is_text:
            yield from ({"type": "websocket.send", "text": text} for text in answers)
        else:
            frames = self._writer.write(answers, self._max_bytes)
            yield from ({"type": "websocket.send", "bytes": frame} for frame in frames)


def _id_of(text: bytes) -> Any:
    """The `id` of a frame that does not fit, as far as it can be read and echoed."""
    try:
        # the tree: where NaN stands in the inputs, whose answer it is can still be read
        named = msgspec.convert(JSON.tree(text), _Named)
        str(named.id).encode()  # JSON can spell half a character, which has no bytes
    except (msgspec.ValidationError, ValueError, RecursionError):
        return None
    return named.id


class _Named(msgspec.Struct):
    id: StreamId = None
