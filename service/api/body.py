"""Reads a request body within its limit, inflated where it was deflated, and says which form it has."""

from __future__ import annotations

import zlib
from typing import Any

from starlette.types import Receive, Scope

from service.api.headers import find_header
from service.errors import MalformedRequest, TooLarge, UnsupportedEncoding
from service.protocol.codec import JSON, MSGPACK, Codec

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_CHARSETS = {"utf-8", "utf8", "us-ascii"}
_MSGPACK_TYPES = {"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"}


class CallerGone(Exception):
    """The connection was closed before the answer: there is nobody to tell."""


def pick_codec(scope: Scope, *, msgpack: bool) -> Codec:
    """By Content-Type; without one, JSON. Raises MalformedRequest for a form that this address does not take."""
    header = find_header(scope, b"content-type")
    if not header:
        return JSON
    kind, *parameters = (part.strip().lower() for part in header.split(";"))
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name == "charset" and value.strip('"') not in _CHARSETS:
                raise MalformedRequest(
                    "Content-Type: JSON is UTF-8; send it as such.", expected="utf-8", received=value[:40]
                )
        return JSON
    if msgpack and kind in _MSGPACK_TYPES:
        return MSGPACK
    expected = [JSON.content_type, MSGPACK.content_type] if msgpack else [JSON.content_type]
    raise MalformedRequest(f"Content-Type: expected {' or '.join(expected)}.", expected=expected, received=header[:80])


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body. Raises TooLarge, UnsupportedEncoding, MalformedRequest (broken compression), CallerGone."""
    declared = find_header(scope, b"content-length")
    if declared and declared.isdigit() and (len(declared) > 18 or int(declared) > max_bytes):
        raise _too_large(max_bytes)
    inflater = _inflater(find_header(scope, b"content-encoding"))
    message = await receive()
    if inflater is None and message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    return await _read_pieces(message, receive, inflater, max_bytes)


async def _read_pieces(message: Any, receive: Receive, inflater: Any, max_bytes: int) -> bytes:
    pieces, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise CallerGone
        piece = message.get("body", b"")
        if inflater is not None and piece:
            piece = _inflate(inflater, piece, max_bytes - size + 1)
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
        if not message.get("more_body"):
            break
        message = await receive()
    if inflater is not None and size and not inflater.eof:
        raise MalformedRequest("Content-Encoding: the compressed body breaks off before its end.")
    return b"".join(pieces)


def _inflate(inflater: Any, piece: bytes, most: int) -> bytes:
    # max_length: a few bytes may stand for gigabytes; what is beyond the limit is never unpacked
    try:
        inflated: bytes = inflater.decompress(piece, most)
    except zlib.error as error:
        raise MalformedRequest("Content-Encoding: the body is not compressed as the header says.") from error
    if inflater.unused_data:
        raise MalformedRequest("Content-Encoding: there is more after the end of the compressed body.")
    return inflated


def _inflater(encoding: str | None) -> Any:
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return None
    if name not in _WINDOW_BITS:
        raise UnsupportedEncoding(
            "Content-Encoding: expected identity, gzip or deflate.",
            expected=["identity", "gzip", "deflate"],
            received=name[:40],
        )
    return zlib.decompressobj(_WINDOW_BITS[name])


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than {max_bytes} bytes. Send fewer steps or sequences a call; the state carries over.",
        limit=max_bytes,
        limit_name="body_bytes",
    )
