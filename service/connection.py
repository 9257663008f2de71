"""uvicorn's HTTP/1.1 connection, with problem documents for what is no request, and an end to heads without end."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api import errors as native
from service.api.oip import errors as oip
from service.errors import CarouselError, HeadTooLarge, MalformedRequest

MAX_HEAD_BYTES = 64 * 1024
"""So much of a head always fits; what came in one read may be more."""

MAX_SHOWN_BYTES = 200


class Connection(HttpToolsProtocol):
    url = b""
    _head_bytes = 0
    """Of the head that is under way, from the end of the read that it began in."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.scope is not (self.cycle and self.cycle.scope):  # a head has begun and is not complete
            self._head_bytes = self._head_bytes + len(data) if self._head_bytes else 1
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(
                    HeadTooLarge(
                        f"The address and the headers are more than {MAX_HEAD_BYTES} bytes. Put data into the body.",
                        limit=MAX_HEAD_BYTES,
                        limit_name="head_bytes",
                    )
                )
        elif self._head_bytes:
            self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            MalformedRequest(
                "This is no HTTP/1.1 request. An address is at most 65535 ASCII characters, others written as %XX; "
                "a header has no control characters."
            )
        )

    def _refuse(self, error: CarouselError) -> None:
        """Tell what is wrong and close; only close where an earlier call would take it for its own answer."""
        self.config.app.state.service.metrics.errors.labels(error.code).inc()  # type: ignore[union-attr]
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started):
            path = self.url.partition(b"?")[0][:MAX_SHOWN_BYTES].decode("ascii", "replace")
            reply = (oip if oip.is_oip(path) else native).problem(error, path)
            length = str(len(reply.body)).encode()
            fields = [(b"content-type", reply.content_type.encode()), (b"content-length", length), *reply.headers]
            head = b"".join(b"%s: %s\r\n" % field for field in [*fields, (b"connection", b"close")])
            self.transport.write(STATUS_LINE[reply.status] + head + b"\r\n" + reply.body)
        self.transport.close()
