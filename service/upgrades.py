"""Requests to go on in another protocol: a WebSocket's must fit, any other wish is passed over.

Knows the form of such requests, not what is served.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import httptools
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

Fields = Iterable[tuple[bytes, bytes]]


class Reader(Protocol):
    """Whom the parser tells what it finds."""

    def take_plain_head(self) -> bytes:
        """The head to read in place of the one that asked for an upgrade; empty if that is to take place."""
        ...


class Parser(httptools.HttpRequestParser):
    """Stays with HTTP/1.1 where the protocol asked for is not offered, as RFC 9110 (7.8) lets it.

    llhttp takes all that follows such a head for the other protocol, the body too. So the head is read once more,
    without the wish.
    """

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self._reader: Reader = reader
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets its own

    def feed_data(self, data: Any) -> None:
        while True:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                head = self._reader.take_plain_head()
                if not head:
                    raise
                super().feed_data(head)
                data = memoryview(data)[upgrade.args[0] :]


def asks_for_websocket(fields: Fields) -> bool:
    found = {name.lower(): value.lower() for name, value in fields}
    options = [option.strip() for option in found.get(b"connection", b"").split(b",")]
    return b"upgrade" in options and found.get(b"upgrade") == b"websocket"


def plain_head(method: bytes, url: bytes, version: str, fields: Fields) -> bytes:
    """The head without its wish for another protocol."""
    kept = [b"%b: %b" % field for field in fields if field[0].lower() != b"upgrade"]
    return b"\r\n".join([b"%b %b HTTP/%b" % (method, url, version.encode()), *kept, b"", b""])


def websocket_misfit(method: str, version: str, fields: Fields) -> str | None:
    """Why this is no request for a WebSocket, in a few words; None if it is one."""
    headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)
    if method != "GET" or version != "1.1":
        return "expected GET and HTTP/1.1"
    if "transfer-encoding" in headers or not set(headers.get_all("content-length")) <= {"0"}:
        return "expected no body"
    answer = ServerProtocol().accept(Request("/", headers))
    return None if answer.status_code == 101 else answer.body.decode().strip().rpartition("connection: ")[2].rstrip(".")
