"""A worker's connections: plain calls of steps are read and answered, whatever else comes goes back whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from time import perf_counter, time
from typing import Protocol, cast

import httptools

from service.api.short_way import Addresses, Heads, plain_tenant
from service.protocol.answers import PROBLEM_TYPE
from service.protocol.codec import JSON
from service.workers.limits import STEPS_PATH, Limits
from service.workers.tally import Tally

MAX_AHEAD_BYTES = 65_536
"""What a caller may send before it has its answer; more stays in the socket."""

NUM_KEPT_HEADS, MAX_KEPT_HEAD_BYTES = 4096, 2048
"""Of heads that were read: a caller sends the same one again and again."""

UNSENT_SECONDS = 5.0
"""What a caller gets to read its answers, once the server shuts down."""

_END = b"\r\n\r\n"
_CALLER_GONE = 499


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a plain call of steps says. `length` is that of the body."""

    tenant: str
    model: str
    sequence_id: str
    length: int


class Ask(Protocol):
    def __call__(self, connection: Connection, head: Head, body: bytes, /) -> bool:
        """Begin the call; `answer` or `give_back` of the connection must follow. False, and nothing done: neither."""


GiveBack = Callable[[int, bytes, int, int], None]
"""Takes an open socket's descriptor, what was read of it and not answered, its patience, and the calls it had here."""

OnGone = Callable[[], None]
"""Told after each connection that is here no more."""


class StepsRoute:
    path = STEPS_PATH
    any_type = False


Find = Callable[[bytes], tuple[StepsRoute, str, list[str]] | None]


class Front:
    """All of them."""

    def __init__(self, limits: Limits, tally: Tally, ask: Ask, give_back: GiveBack, on_gone: OnGone) -> None:
        self.limits = limits
        self.tally = tally
        self.ask = ask
        self.hand_back = give_back
        self.on_gone = on_gone
        self.connections: set[Connection] = set()
        self.leaving = False
        self._find = Addresses([StepsRoute()]).find
        self._known: dict[bytes, Head | None] = {}
        self._heads = Heads()
        self._default_headers: list[tuple[bytes, bytes]] = []
        self.tick()

    def tick(self) -> None:
        """Each second: the date of answers; who was quiet for long leaves."""
        self._default_headers = [(b"date", formatdate(time(), usegmt=True).encode())]
        before = perf_counter() - self.limits.keep_alive_seconds
        for connection in [one for one in self.connections if one.quiet_since < before]:
            connection.hang_up()

    def leave(self) -> None:
        """Give every connection back, each once its call is answered."""
        self.leaving = True
        for connection in list(self.connections):
            if not connection.is_busy:
                connection.give_back()

    def head(self, data: bytes) -> Head | None:
        """What a head says, None if it is none of a plain call."""
        try:
            return self._known[data]
        except KeyError:
            head = _HeadReader(data).head(self._find, self.limits)
            if len(data) <= MAX_KEPT_HEAD_BYTES:
                if len(self._known) == NUM_KEPT_HEADS:
                    self._known.clear()
                self._known[data] = head
            return head

    def answer(self, body: bytes, more: bytes, status: int, content_type: str) -> bytes:
        """`more` headers, each with the end of its line."""
        head = self._heads.get(status, content_type, self._default_headers)
        return b"%b%d\r\n%b\r\n%b" % (head, len(body), more, body)


class Connection(asyncio.Protocol):
    """One, with one call under way at a time. What was read and is not answered is kept: it may have to go back."""

    def __init__(self, front: Front, data: bytes, patience: int) -> None:
        self._front = front
        self._patience = patience
        self._data = data
        self._size = 0
        """Of the call under way: what `_data` begins with."""
        self._transport: asyncio.Transport
        self._begun_at = 0.0
        self._num_calls = 0
        self._is_unread = self._is_leaving = False
        self.is_busy = False
        self.quiet_since = float("inf")
        """On perf_counter, while nothing is under way."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._front.connections.add(self)
        if self._front.leaving:
            self.give_back()
        else:
            self._next()

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if not self.is_busy:
            self._next()
        self._read_on()

    def _read_on(self) -> None:
        """Or not, while the caller is far ahead of its answers."""
        if self._is_leaving:
            return
        if (self.is_busy or self._is_unread) and len(self._data) > self._size + MAX_AHEAD_BYTES:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._is_unread = True

    def resume_writing(self) -> None:
        self._is_unread = False
        if self._is_leaving:
            self._go()
        elif not self.is_busy:
            self._next()
            self._read_on()

    def connection_lost(self, error: Exception | None) -> None:
        self._front.connections.discard(self)
        self._is_leaving = True
        self._front.on_gone()

    def _next(self) -> None:
        """Begin the call that was read, if it is whole."""
        data = self._data
        self.quiet_since = perf_counter()
        if self._is_unread or self._is_leaving or not data:
            return
        end = data.find(_END) + len(_END)
        if end < len(_END):
            if len(data) > MAX_KEPT_HEAD_BYTES or not _HeadReader(data).may_be_plain:
                self.give_back()
            return
        head = self._front.head(data[:end])
        if head is not None and len(data) < end + head.length:
            return
        self._begun_at, self.quiet_since = self.quiet_since, float("inf")
        self.is_busy = True
        if head is None or self._front.leaving or not self._front.ask(self, head, data[end : end + head.length]):
            self.give_back()
        else:
            self._size = end + head.length

    def fail(self, status: int, document: bytes) -> None:
        self._answer(document, status, PROBLEM_TYPE, b"retry-after: 1\r\n" if status == 503 else b"")

    def answer(self, body: bytes) -> None:
        self._answer(body, HTTPStatus.OK, JSON.content_type)

    def _answer(self, body: bytes, status: int, content_type: str, more: bytes = b"") -> None:
        """Of the call under way; then the next."""
        seconds = perf_counter() - self._begun_at
        self.is_busy = False
        self._data, self._size = self._data[self._size :], 0
        if self._transport.is_closing():
            self._front.tally.note(_CALLER_GONE, seconds)
            return
        ends = self._front.leaving and not self._data
        if ends:
            more += b"connection: close\r\n"
        self._transport.write(self._front.answer(body, more, status, content_type))
        self._front.tally.note(status, seconds)
        self._num_calls += 1
        if ends:
            self._close()
        elif self._front.leaving:
            self.give_back()
        else:
            self._next()
            self._read_on()

    def hang_up(self) -> None:
        """It was quiet for long. One that has begun to send a call may go on, elsewhere."""
        if self._data:
            self.give_back()
        else:
            self._close()

    def give_back(self) -> None:
        """With the call under way, if there is one, which has not moved anything."""
        self.is_busy, self.quiet_since = False, float("inf")
        if not self._is_leaving and not self._transport.is_closing():
            self._is_leaving = True
            self._transport.pause_reading()
            self._transport.set_write_buffer_limits(0)  # `resume_writing` comes when all answers have left
            self._go()
        self._limit_the_wait()

    def _go(self) -> None:
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            return
        # no descriptor left: who is hung up on may call again
        with suppress(OSError):
            descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
            self._front.hand_back(descriptor, self._data, self._patience, self._num_calls)
        self._transport.abort()  # here: the socket lives on by the other descriptor

    def _close(self) -> None:
        self._is_leaving, self.quiet_since = True, float("inf")
        self._transport.close()
        self._limit_the_wait()

    def _limit_the_wait(self) -> None:
        """Who does not read answers must not hold up a server that shuts down."""
        if self._front.leaving and self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(UNSENT_SECONDS, self._transport.abort)


class _HeadReader:
    """httptools' callbacks, for one head."""

    def __init__(self, data: bytes) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_complete = self._has_more = False
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._has_more = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._has_more = self._is_complete  # a second head
        self._is_complete = True

    def on_body(self, body: bytes) -> None:
        self._has_more = True

    @property
    def may_be_plain(self) -> bool:
        """Of what has no end yet: can it still become the head of a plain call?"""
        return not self._is_complete and not self._has_more

    def head(self, find: Find, limits: Limits) -> Head | None:
        parser, fields = self._parser, {name.lower(): value for name, value in self._headers}
        if not self._is_complete or self._has_more or parser.get_method() != b"POST":
            return None
        if parser.get_http_version() != "1.1" or not parser.should_keep_alive() or parser.should_upgrade():
            return None
        found = find(self._url)
        if found is None:
            return None
        route, _, (model, sequence_id) = found
        tenant = plain_tenant(route, self._headers, fields, limits.max_body_bytes, limits.tenants)
        if tenant is None:
            return None
        return Head(tenant, model, sequence_id, int(fields[b"content-length"]))
