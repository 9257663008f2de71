"""A short way for the plain, good case of an address: from the socket to the engine and back without a task.

ASGI costs more than a small model's step: a scope, a task, an event, a timer and six awaits a call. Whatever is not the
plain case, a header that changes the meaning, a sequence that has to be looked for, a body that does not fit, goes the
long way, through ASGI, from its first byte; so both give one verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from service.api.auth import authenticate
from service.errors import Unauthenticated

if TYPE_CHECKING:  # workers have ways, and none of what these bring along
    from service.api.call import Reply, Service
    from service.api.edge import Edge

MAX_BODY_BYTES = 65_536
"""A larger body is read in pieces and off the event loop: the long way."""

_CHANGES_MEANING = frozenset(
    (b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"x-request-timeout-ms")
)
_JSON_TYPES = (b"application/json", None)
_STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

Field = tuple[bytes, bytes]


class Route(Protocol):
    """Addresses that are told apart by their words: `/v1/models/{}/sequences/{}/steps`."""

    path: str
    any_type: bool
    """Is the body read whatever its Content-Type says?"""


class ShortWay(Route, Protocol):
    """The short way of the addresses of one route."""

    for_workers: bool
    """Can a worker take such calls?"""

    def begin(self, call: ShortCall) -> bool:
        """Start the call; `call.answer` must follow, at once or later. False, and nothing done: the long way."""
        ...


Target = tuple[ShortWay, str, list[str]]
"""The way for an address, its path, and the path's parameters."""


class ShortCall:
    """One call on the short way. To uvicorn it stands for the cycle of request and response that is under way."""

    __slots__ = (
        "_respond",
        "begun_at",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "names",
        "path",
        "response_complete",
        "route",
        "tenant",
        "withdraw",
    )
    more_body = False

    def __init__(
        self,
        target: Target,
        tenant: str,
        headers: dict[bytes, bytes],
        body: bytes,
        respond: Callable[[ShortCall, Reply], None],
    ) -> None:
        way, path, names = target
        self.route = way.path
        self.path = path
        self.names = names
        """The path's parameters."""
        self.tenant = tenant
        self.headers = headers
        self.body = body
        self.begun_at = perf_counter()
        self.withdraw: Callable[[], None] | None = None
        """Told when the caller is gone before the answer."""
        self._respond = respond
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True

    @property
    def message_event(self) -> ShortCall:
        return self

    def set(self) -> None:
        """uvicorn: something came in for this call; here that is the end of the connection."""
        if self.disconnected and self.withdraw is not None and not self.response_complete:
            self.withdraw()

    def answer(self, reply: Reply) -> None:
        """Once."""
        self.response_complete = True
        self.withdraw = None  # the connection keeps this call until the next, and must not keep its sequence
        self._respond(self, reply)


R = TypeVar("R", bound=Route)


class Addresses(Generic[R]):
    """Finds the route of an address."""

    def __init__(self, routes: Sequence[R]) -> None:
        self._routes: dict[tuple[int, bytes], tuple[R, list[tuple[int, bytes]], list[int]]] = {}
        for route in routes:
            parts = list(enumerate(route.path.encode().split(b"/")))
            words = [(n, part) for n, part in parts if not part.startswith(b"{")]
            names = [n for n, part in parts if part.startswith(b"{")]
            self._routes[len(parts), parts[-1][1]] = route, words, names

    def find(self, url: bytes) -> tuple[R, str, list[str]] | None:
        """The route, the path and its parameters."""
        parts = url.split(b"/")
        found = self._routes.get((len(parts), parts[-1]))
        if found is None or b"%" in url or b"?" in url:
            return None
        route, words, places = found
        if any(parts[n] != word for n, word in words) or not all(parts[n] for n in places):
            return None
        path = url.decode("ascii", "replace")
        return route, path, [parts[n].decode("ascii", "replace") for n in places]


class Heads:
    """Answers up to the length of their body."""

    def __init__(self) -> None:
        self._made_of: list[Field] | None = None
        self._heads: dict[tuple[int, str], bytes] = {}

    def get(self, status: int, content_type: str, default_headers: list[Field]) -> bytes:
        """`default_headers` are those of every answer, a new list each time that they change."""
        if self._made_of is not default_headers:
            self._made_of, self._heads = default_headers, {}
        head = self._heads.get((status, content_type))
        if head is None:
            lines = [*default_headers, (b"content-type", content_type.encode()), (b"content-length", b"")]
            head = _STATUS_LINE[status] + b"\r\n".join(b"%b: %b" % line for line in lines)
            self._heads[status, content_type] = head
        return head


class ShortWays:
    """What all connections share."""

    def __init__(self, service: Service, edge: Edge, ways: Sequence[ShortWay]) -> None:
        self.service = service
        self.edge = edge
        self.find = Addresses(ways).find
        self.head = Heads().get
        self.patience: float = math.inf
        """So many calls in a row that a worker can take, and a connection is offered to `hand_over`."""
        self.hand_over: Callable[[Any, bytes], bool] = lambda connection, data: False
        """Takes a connection between two calls, and what was just read of it. False: it stays."""


def plain_tenant(
    route: Route, headers: Sequence[Field], fields: dict[bytes, bytes], max_bytes: int, tenants: Mapping[str, str]
) -> str | None:
    """Who calls, if a short way takes such a head: of a modest size, with a key, and nothing out of the way.

    `fields` are the headers by their names in lower case.
    """
    length = fields.get(b"content-length", b"")
    plain = (
        len(fields) == len(headers)
        and (route.any_type or fields.get(b"content-type") in _JSON_TYPES)
        and _CHANGES_MEANING.isdisjoint(fields)
        and length.isdigit()
        and len(length) < 6
        and int(length) <= min(MAX_BODY_BYTES, max_bytes)
    )
    if not plain:
        return None
    try:
        return authenticate({"headers": [*fields.items()]}, tenants)
    except Unauthenticated:
        return None
