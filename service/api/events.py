"""Server-sent events, as the HTML standard has them: https://html.spec.whatwg.org/multipage/server-sent-events.html

Plain bytes over our own stream: sse-starlette ends its streams when the process is told to stop, while this server
lets calls that are under way come to their end.
"""

from __future__ import annotations

from typing import Any

from service.api.call import Call, Header
from service.protocol.codec import JSON

CONTENT_TYPE = "text/event-stream"
HEADERS: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep events until a buffer is full
)


def wants_events(call: Call) -> bool:
    """Does `Accept` name them?"""
    kinds = (part.partition(";")[0].strip().lower() for part in (call.header(b"accept") or "").split(","))
    return CONTENT_TYPE in kinds


def event(name: str, document: Any) -> bytes:
    """One event. JSON without white space has no line break in it, so it is one `data` line."""
    return event_of(name, JSON.encode(document))


def event_of(name: str, data: bytes) -> bytes:
    """One event of data that are JSON already."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
