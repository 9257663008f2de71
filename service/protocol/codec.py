"""Two forms of the same bodies: JSON and MessagePack. Bytes to typed fields, answers to bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import orjson

from service.errors import CarouselError, InvalidInput, MalformedRequest
from service.protocol.bounded import MOST_ITEMS, SHORT_BYTES, bounded, unbounded
from service.protocol.places import non_finite_place, refusal, row_of

T = TypeVar("T")

MAX_SEARCHED_BYTES = 256 * 1024

_UNKNOWN_FIELD = "Object contains unknown field"
_STOPPED_AT = re.compile(r"\(byte (\d+)\)")
_NON_FINITE = re.compile(rb".?-?(NaN|Infinity)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Codec:
    """`content_type` is what it reads and answers with."""

    name: str
    content_type: str
    decoder: Callable[[Any], Any]
    """Type -> an object whose `decode(bytes)` gives that type."""
    tree: Callable[[bytes], Any]
    """Bytes -> plain objects, NaN and Infinity included: to find out what is wrong."""
    encode: Callable[[Any], bytes]
    """Plain objects and float32 arrays -> bytes."""


def decode_body(codec: Codec, wanted: type[T], body: bytes, most_items: int = MOST_ITEMS) -> T:
    """Read a body. Raises MalformedRequest: not this form, unknown field; InvalidInput: a field's type or range.

    Of a list in a large body, no more than one item above `most_items` is read: enough to know that it is too long.
    """
    kind: Any = wanted
    try:
        if len(body) <= SHORT_BYTES:
            return cast(T, decode_part(codec, kind, body))
        return cast(T, unbounded(decode_part(codec, bounded(kind, most_items), body)))
    except msgspec.ValidationError as error:
        _require_form(codec, body)
        message, facts = refusal(str(error), wanted)
        if str(error).startswith(_UNKNOWN_FIELD):
            raise MalformedRequest(f"{message}. Leave it out, or look up its name in /docs.", **facts) from error
        raise InvalidInput(f"{message}.", **facts) from error
    except RecursionError as error:
        raise MalformedRequest("The body is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(codec, body, error) from error


def decode_part(codec: Codec, wanted: Any, raw: msgspec.Raw | bytes) -> Any:
    """Read one field of a body. Raises what msgspec raises: the caller knows what it should have been."""
    return _decoder(codec, wanted).decode(raw)


def decode_field(codec: Codec, wanted: Any, raw: msgspec.Raw, place: str) -> Any:
    """Read a field that was left as it is. Raises InvalidInput: its type or range; MalformedRequest: not this form."""
    try:
        return decode_part(codec, wanted, raw)
    except msgspec.ValidationError as error:
        message, facts = refusal(str(error), wanted, place)
        raise InvalidInput(f"{message}.", **facts) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"{place}: not valid {codec.name}: {error}.", place=place) from error


def is_absent(codec: Codec, raw: msgspec.Raw) -> bool:
    """Left out, or null."""
    return not raw or (len(raw) <= len(b"null") and bytes(raw) == codec.encode(None))


def most_names(codec: Codec, raw: msgspec.Raw) -> int:
    """How many fields an object of numbers can have at most, told without reading it."""
    if codec is JSON:
        return bytes(raw).count(b'"') // 2
    head = bytes(memoryview(raw)[:5])
    if head[:1] in (b"\xde", b"\xdf"):
        return int.from_bytes(head[1 : 3 if head[0] == 0xDE else 5], "big")
    return head[0] & 0x0F if head and head[0] >> 4 == 0x8 else 0


@cache
def _decoder(codec: Codec, wanted: Any) -> Any:
    return codec.decoder(wanted)


def _require_form(codec: Codec, body: bytes) -> None:
    """A field of the wrong type is met before the end of the body: whether the rest can be read is still open."""
    try:
        _decoder(codec, msgspec.Raw).decode(body)
    except RecursionError as error:
        raise MalformedRequest("The body is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(codec, body, error) from error


def _malformed(codec: Codec, body: bytes, error: Exception) -> CarouselError:
    if codec is JSON and (place := _find_non_finite(body, error)):
        facts = {"place": place, "expected": "a finite number", "received": "NaN or Infinity", **row_of(place)}
        return InvalidInput(f"{place}: expected a finite number, got NaN or Infinity.", **facts)
    return MalformedRequest(f"The body is not valid {codec.name}: {error}.")


def _find_non_finite(body: bytes, error: Exception) -> str | None:
    """Where JSON breaks off at NaN or Infinity: its path in the document, or, where that would take long, its byte."""
    stopped = _STOPPED_AT.search(str(error))
    if stopped is None or not _NON_FINITE.match(body, max(0, int(stopped[1]) - 1)):
        return None
    if len(body) > MAX_SEARCHED_BYTES:
        return f"body, byte {stopped[1]}"
    try:
        return non_finite_place(JSON.tree(body))
    except (ValueError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot encode {type(value).__name__}")


def _encode_json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _encode_msgpack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=_plain)


JSON = Codec("JSON", "application/json", msgspec.json.Decoder, json.loads, _encode_json)
MSGPACK = Codec(
    "MessagePack", "application/msgpack", msgspec.msgpack.Decoder, msgspec.msgpack.Decoder().decode, _encode_msgpack
)
