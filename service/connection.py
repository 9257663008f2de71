"""uvicorn's HTTP/1.1 connection: a short way for plain calls, problem documents for no calls, bounded heads."""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from time import perf_counter
from typing import Any

import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.auth import ANONYMOUS
from service.api.call import Reply
from service.api.short_way import ShortCall, ShortWay, ShortWays, Target, plain_tenant
from service.errors import CarouselError, HeadTooLarge, MalformedRequest
from service.upgrades import Parser, asks_for_websocket, plain_head, websocket_misfit

MAX_HEAD_BYTES = 64 * 1024
"""So much of a head always fits; what came in one read may be more."""

MAX_SHOWN_BYTES = 200

log = structlog.get_logger(__name__)


class _Flow(FlowControl):
    """Reads no further while requests wait: who sends more than is answered fills its own buffers, not ours."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """One connection."""

    url = b""
    _head_bytes = 0
    """Of the head that is under way, from the end of the read that it began in."""
    _in_head = False

    def __init__(self, *args: Any, ways: ShortWays, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = Parser(self)
        self._ways = ways
        self._service = ways.service
        self._url = b""
        self._target: Target | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._fields: dict[bytes, bytes] = {}
        self._way: ShortWay | None = None
        self._are_plain = False
        self._has_connection_header = False
        self._tenant = ANONYMOUS
        self._is_short = False
        """A request is being read that may go the short way."""
        self._body = b""
        self._plain_head = b""
        """Of a request for a protocol that is not offered: what is read in its place."""
        self._known_head, self._known_bytes = b"", 0
        """Of the last request, if it was plain and came whole in one read: the same bytes need not be parsed again."""
        self._num_begun = 0
        self._quiet_since = math.inf
        self._resumed = b""
        self._num_in_a_row = 0
        """Calls, the last ones, that a worker could have taken."""
        self.patience = ways.patience
        """So many of them, and the connection is handed over."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        if self._resumed:
            self.data_received(self._resumed)

    def data_received(self, data: bytes) -> None:
        if self._num_in_a_row >= self.patience and self._may_leave():
            self._num_in_a_row = 0
            if self._ways.hand_over(self, data):
                return
        if len(data) == self._known_bytes and data.startswith(self._known_head) and self._may_begin():
            self._quiet_since = math.inf
            self._service.num_running += 1
            if self._begin_short_way(data[len(self._known_head) :]):
                return
            self._service.num_running -= 1
        begins = self._is_between
        self._known_bytes = self._num_begun = 0
        super().data_received(data)
        if begins and self._num_begun == 1 and self._is_between:
            self._know(data)
        if self._in_head:
            self._head_bytes = self._head_bytes + len(data) if self._head_bytes else 1
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(
                    HeadTooLarge(
                        f"The address and the headers are more than {MAX_HEAD_BYTES} bytes. Put data into the body.",
                        limit=MAX_HEAD_BYTES,
                        limit_name="head_bytes",
                    )
                )

    # -- to a worker and back ----------------------------------------------------------------------------------------

    @property
    def whose(self) -> tuple[str, str]:
        """Tenant and model of its last plain call."""
        assert self._target is not None, "it had one"
        return self._tenant, self._target[2][0]

    def _may_leave(self) -> bool:
        """Is it between two calls, and every answer with the system?"""
        return self._is_between and self._may_begin() and not self.transport.get_write_buffer_size()

    def detach(self) -> int:
        """Let go of the socket, which lives on by the descriptor given back. `_may_leave` looked."""
        descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
        self.transport.abort()
        return descriptor

    def resume(self, data: bytes, patience: int) -> None:
        """Before it is made: what another process read of it, and has not answered."""
        self._resumed, self.patience = data, patience

    @property
    def _is_between(self) -> bool:
        """Is the last request read to its end, and none begun after it?"""
        return not self._in_head and not self._is_short and (self.cycle is None or not self.cycle.more_body)

    def _know(self, data: bytes) -> None:
        """`data` is one request. Remember its head, if it went the short way and nothing else came with it."""
        end = data.find(b"\r\n\r\n") + 4
        if isinstance(self.cycle, ShortCall) and end + len(self._body) == len(data):
            self._known_head, self._known_bytes = data[:end], len(data)

    # -- the parser's callbacks --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # the scope is made when it is known to be needed
        self.url = b""
        self.headers = []
        self._in_head = True
        self._num_begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self.parser.should_upgrade() and not asks_for_websocket(self.headers):
            self._pass_over_upgrade()
            return
        self._is_short = self._may_be_short()
        if self._is_short:
            self._body = b""
            self._service.num_running += 1  # whoever drains waits for the rest of it
        else:
            self._begin_long_way()

    def on_body(self, body: bytes) -> None:
        if self._is_short:
            self._body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain_head:
            return
        if self._is_short:
            self._is_short = False
            if self._begin_short_way(self._body):
                return
            self._service.num_running -= 1
            self._begin_long_way()
            super().on_body(self._body)
        super().on_message_complete()

    def _may_be_short(self) -> bool:
        if self.url != self._url:
            self._url, self._target = self.url, self._ways.find(self.url)
        if self._target is None or not self._may_begin():
            return False
        way = self._target[0]
        if way is not self._way:
            self._way, self._headers, self._are_plain = way, [], False
        if self.headers != self._headers:  # a caller who keeps the connection sends the same ones each time
            self._headers, self._fields = self.headers, {name.lower(): value for name, value in self.headers}
            self._are_plain = self._look_at_headers(way)
        return (
            self._are_plain
            and self.parser.get_method() == b"POST"
            and self.parser.should_keep_alive()
            and (not self._has_connection_header or self.parser.get_http_version() == "1.1")
        )

    def _may_begin(self) -> bool:
        """Can a call be answered as soon as it is done, and is the server there for it?"""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self._service.draining
        )

    def _look_at_headers(self, way: ShortWay) -> bool:
        """Is it what the way takes, of a modest size, sent with a key of this server, and nothing out of the way?"""
        fields, service = self._fields, self._service
        self._has_connection_header = b"connection" in fields  # only so does HTTP/1.0 stay, which the long way ends
        tenant = plain_tenant(way, self.headers, fields, service.settings.max_body_bytes, service.tenants)
        if tenant is not None:
            self._tenant = tenant
        return tenant is not None

    # -- the two ways ------------------------------------------------------------------------------------------------

    def _begin_long_way(self) -> None:
        self._num_in_a_row = 0
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _begin_short_way(self, body: bytes) -> bool:
        target = self._target
        assert target is not None, "_may_be_short looked"
        call = ShortCall(target, self._tenant, self._fields, body, self._respond)
        before, self.cycle = self.cycle, call  # type: ignore[assignment]
        try:
            if target[0].begin(call):
                self._num_in_a_row += target[0].for_workers
                return True
        except Exception:
            log.exception("short_way_failed", route=call.route)
        self.cycle = before
        return False

    def _respond(self, call: ShortCall, reply: Reply) -> None:
        self._service.num_running -= 1
        if not call.disconnected and not self.transport.is_closing():
            self._send(call, reply)
        self._ways.edge.observe(call.route, "POST", reply.status, perf_counter() - call.begun_at, call.tenant)

    def _send(self, call: ShortCall, reply: Reply) -> None:
        keep_alive = call.keep_alive and not self._service.draining
        head = self._ways.head(reply.status, reply.content_type, self.server_state.default_headers)
        more = b"" if keep_alive else b"connection: close\r\n"
        for name, value in reply.headers:
            more += b"%b: %b\r\n" % (name, value)
        self.transport.write(b"%b%d\r\n%b\r\n%b" % (head, len(reply.body), more, reply.body))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    # -- the keep-alive timer: one a connection, that looks how long it was quiet, instead of one a call -------------

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._quiet_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        if self._in_head or self._is_short or not self.cycle.response_complete:
            self._quiet_since = math.inf  # more came in the read in which the last answer was given
        seconds = min(self._quiet_since + self.timeout_keep_alive - self.loop.time(), self.timeout_keep_alive)
        if seconds > 0:
            self._look_again_in(seconds)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._is_short:
            self._is_short = False
            self._service.num_running -= 1
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _unset_keepalive_if_required(self) -> None:
        self._quiet_since = math.inf  # until the next answer

    def _look_again_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    # -- other protocols ---------------------------------------------------------------------------------------------

    def _pass_over_upgrade(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self._plain_head = plain_head(method, self.url, version, self.headers)

    def take_plain_head(self) -> bytes:
        head, self._plain_head = self._plain_head, b""
        return head

    def handle_websocket_upgrade(self) -> None:
        is_busy = self.cycle is not None and not self.cycle.response_complete
        misfit = websocket_misfit(self.scope["method"], self.scope["http_version"], self.headers)
        if is_busy or misfit:
            self._refuse(MalformedRequest(f"This is no request for a WebSocket: {misfit or 'a call is under way'}."))
        else:
            super().handle_websocket_upgrade()

    # -- what is no request ------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            MalformedRequest(
                "This is no HTTP/1.1 request. An address is at most 65535 ASCII characters, others written as %XX; "
                "a header has no control characters."
            )
        )

    def _refuse(self, error: CarouselError) -> None:
        """Tell what is wrong and close; only close where an earlier call would take it for its own answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started):
            path = self.url.partition(b"?")[0][:MAX_SHOWN_BYTES].decode("ascii", "replace")
            reply = self._ways.edge.fail(error, path)
            length = str(len(reply.body)).encode()
            fields = [(b"content-type", reply.content_type.encode()), (b"content-length", length), *reply.headers]
            head = b"".join(b"%s: %s\r\n" % field for field in [*fields, (b"connection", b"close")])
            self.transport.write(STATUS_LINE[reply.status] + head + b"\r\n" + reply.body)
        self.transport.close()
