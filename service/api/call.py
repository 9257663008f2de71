"""One HTTP call as the endpoints see it, what they answer with, and the objects they work on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

from starlette.types import Scope, Send

from service.api.headers import find_header
from service.errors import InvalidInput
from service.metrics import Metrics
from service.protocol.arrays import LARGE_BYTES
from service.protocol.codec import JSON, Codec
from service.readers import make_readers
from service.registry import LoadedModel, Registry
from service.rollout import Rollouts
from service.sequences import Sequences
from service.settings import Settings
from service.state_tokens import StateTokens

MAX_TIMEOUT_MS = 86_400_000
Header = tuple[bytes, bytes]
T = TypeVar("T")


class Stream(Protocol):
    """A connection that outlasts its calls."""

    def leave(self) -> None:
        """Take no more work, finish what was taken, and close."""


@dataclass
class Service:
    """What one server process consists of."""

    settings: Settings
    metrics: Metrics
    registry: Registry
    sequences: Sequences
    rollouts: Rollouts
    tokens: StateTokens
    draining: bool = False
    num_running: int = 0
    """Calls that are not answered yet, probes and pages aside, and open streams."""
    streams: set[Stream] = field(default_factory=set)
    tenants: dict[str, str] = field(init=False)
    readers: ThreadPoolExecutor = field(default_factory=make_readers)
    """Of large bodies. Few, so that many of these do not leave the event loop last in a long line."""

    def __post_init__(self) -> None:
        self.tenants = self.settings.tenants

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` in a thread, so that other calls go on."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *args)

    def drain(self) -> None:
        """Take no more work; what was taken is finished."""
        self.draining = True
        for stream in self.streams:
            stream.leave()


@dataclass(slots=True)
class Reply:
    """A whole answer, ready to be sent."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON.content_type
    headers: Iterable[Header] = ()


Emit = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class StreamedReply:
    """An answer that is sent piece by piece: `run(emit)` makes the pieces. What it raises before the first is told as
    of any call; after it, the connection breaks off."""

    run: Callable[[Emit], Awaitable[None]]
    content_type: str
    headers: Iterable[Header] = ()


class Call:
    """`scope` as ASGI has it, with the tenant that the key belongs to; `body` and `codec` once they are read."""

    __slots__ = ("body", "codec", "scope", "service", "tenant")

    def __init__(self, scope: Scope, service: Service) -> None:
        self.scope = scope
        self.service = service
        self.tenant: str = scope["tenant"]
        self.codec: Codec = JSON
        self.body = b""

    def path(self, name: str) -> str:
        value: str = self.scope["path_params"][name]
        return value

    def header(self, name: bytes) -> str | None:
        """Value of a header, its name in lower case."""
        return find_header(self.scope, name)

    def query(self, name: str) -> str | None:
        query: bytes = self.scope["query_string"]
        return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)).get(name) if query else None

    @property
    def version(self) -> int | None:
        """`?version=`. Raises InvalidInput."""
        text = self.query("version")
        return None if text is None else whole_number("version", text, 1, 10**9)

    @property
    def model(self) -> LoadedModel:
        """The model in the path, at the version asked for. Raises ModelNotFound, VersionNotFound, ModelNotReady."""
        return self.service.registry.get(self.path("model"), self.version)

    @property
    def deadline(self) -> float | None:
        """On the engine's clock, from `X-Request-Timeout-Ms`. Raises InvalidInput."""
        text = self.header(b"x-request-timeout-ms")
        if text is None:
            return None
        arrived: float = self.scope["arrived_at"]
        return arrived + whole_number("X-Request-Timeout-Ms", text, 1, MAX_TIMEOUT_MS) / 1000

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`, which reads the body; if that is large, in a thread, so that other calls go on."""
        if len(self.body) <= LARGE_BYTES:
            return function(*args)
        return await self.service.read(function, *args)

    def answer(self, document: Any, status: int = 200, headers: Iterable[Header] = ()) -> Reply:
        """In the form that the body came in."""
        return Reply(self.codec.encode(document), status, self.codec.content_type, headers)


def whole_number(name: str, text: str, least: int, most: int) -> int:
    """Raises InvalidInput unless `text` is such a number."""
    # len: int() of a very long text takes time
    if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    expected = f"{least}..{most}"
    raise InvalidInput(
        f"{name}: expected a whole number from {least} to {most}.", expected=expected, received=text[:40]
    )


def now() -> float:
    """The engine's clock."""
    return monotonic()


async def send_reply(send: Send, reply: Reply) -> None:
    headers = [
        (b"content-type", reply.content_type.encode()),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.headers,
    ]
    if reply.status == 204:  # RFC 9110: it has no body, so it must not say how long that is
        headers = [*reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def send_streamed(send: Send, reply: StreamedReply) -> None:
    """Each piece is on its way before the next is made, and a reader who is slow is waited for."""
    started = False

    async def emit(piece: bytes) -> None:
        nonlocal started
        if not started:
            headers = [(b"content-type", reply.content_type.encode()), *reply.headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            started = True
        await send({"type": "http.response.body", "body": piece, "more_body": True})

    await reply.run(emit)
    await send({"type": "http.response.body", "body": b""})
