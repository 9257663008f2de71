"""GET /v1/models/{model}/stream: a WebSocket on which sequences are stepped, many at once. Plain ASGI.

Text frames are the JSON of a `steps` call with `sequence_id`, and an `id` of the caller's that is echoed:

    {"id": 1, "sequence_id": "pump-7", "inputs": [[0.1, 0.2]], "step": 40}
    {"id": 1, "sequence_id": "pump-7", "step": 41, "outputs": [[0.7]], "expires_at": "...", "replayed": false}

A client, in Python:

    import asyncio, json
    from websockets.asyncio.client import connect

    async def main():
        async with connect("ws://127.0.0.1:8000/v1/models/adding-lstm/stream") as stream:
            for step, value in enumerate([0.1, 0.2, 0.3]):
                call = {"sequence_id": "pump-7", "inputs": [[value, 0]], "step": step, "start": True}
                await stream.send(json.dumps(call))
                print(json.loads(await stream.recv())["outputs"])

    asyncio.run(main())

`{"sequence_id": "pump-7", "delete": true}` ends a sequence. Errors are `{"id", "sequence_id", "error": problem}`, the
problem as HTTP answers it, and leave the stream open. Binary frames are described in `service/protocol/frames.py`; a
client asks for them by the subprotocol `carousel.v1.binary`, and may send text frames beside them.

Answers of one sequence come in the order of its calls, those of different sequences as they are ready. Whoever loses
the connection goes on from the last answer by step number: a call that was answered before is answered again, and
moves nothing.

A browser cannot send headers with a WebSocket, so it may send its API key as one more subprotocol,
`carousel.key.<key in base64url, without =>`, beside `carousel.v1.json` or `carousel.v1.binary`; in the address it would
end up in logs and histories. Other sites' pages are refused: the `Origin` that browsers send has to be this host or
one of CAROUSEL_ALLOWED_ORIGINS.

This module answers the handshake; `stream_connection.py` goes on from there.
"""

from __future__ import annotations

import re
from time import perf_counter
from urllib.parse import urlsplit

import structlog
from starlette.types import Receive, Scope, Send

from service.api.auth import authenticate
from service.api.call import Call, Reply, Service
from service.api.errors import internal_problem, problem
from service.api.headers import find_header
from service.api.stream_connection import Connection
from service.errors import CarouselError, Draining, Forbidden, NoRoom, RouteNotFound
from service.protocol.frames import BINARY
from service.sequence import require_streaming

JSON_TEXT = "carousel.v1.json"
SUBPROTOCOLS = (BINARY, JSON_TEXT)
PATH = re.compile(r"/v1/models/([^/]+)/stream")
ROUTE = "/v1/models/{model}/stream"

log = structlog.get_logger(__name__)


class Streams:
    """Every WebSocket of this process."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            call = self._admit(scope)
        except CarouselError as error:
            self._service.metrics.errors.labels(error.code).inc()
            log.info("stream_refused", route=ROUTE, code=error.code)
            await _refuse(scope, send, problem(error, scope["path"]))
            return
        except Exception:
            log.exception("stream_failed", route=ROUTE)
            await _refuse(scope, send, internal_problem(scope["path"]))
            return
        await self._serve(call, receive, send)

    def _admit(self, scope: Scope) -> Call:
        """The call whose model and tenant the stream works for. Raises what the handshake is refused with."""
        service = self._service
        found = PATH.fullmatch(scope["path"])
        if found is None:
            raise RouteNotFound("There is no WebSocket at this address; it is /v1/models/{model}/stream.")
        _check_origin(scope, service.settings.allowed_origins)
        scope["tenant"] = authenticate(scope, service.tenants)
        if service.draining:
            raise Draining("The server is shutting down. Connect to another replica, or again in a moment.")
        if len(service.streams) >= service.settings.max_streams:
            raise NoRoom(
                f"{service.settings.max_streams} streams are open already. Send several sequences on one.",
                limit=service.settings.max_streams,
                limit_name="streams",
            )
        scope["path_params"] = {"model": found[1]}
        call = Call(scope, service)
        require_streaming(call.model)
        return call

    async def _serve(self, call: Call, receive: Receive, send: Send) -> None:
        service, begin = self._service, perf_counter()
        offered = call.scope.get("subprotocols", ())
        subprotocol = next((name for name in offered if name in SUBPROTOCOLS), None)
        connection = Connection(call, receive, send, binary=subprotocol == BINARY)
        service.streams.add(connection)
        service.num_running += 1
        service.metrics.streams.inc()
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
            await connection.serve()
        finally:
            service.metrics.streams.dec()
            service.num_running -= 1
            service.streams.discard(connection)
            log.info(
                "stream",
                route=ROUTE,
                model=call.path("model"),
                tenant=call.tenant,
                subprotocol=subprotocol,
                seconds=round(perf_counter() - begin, 3),
                **connection.told(),
            )


def _check_origin(scope: Scope, allowed: tuple[str, ...]) -> None:
    """Raises Forbidden for a page of another site; programs that are no browsers send no origin."""
    origin = find_header(scope, b"origin")
    if origin is None or "*" in allowed or origin.lower() in allowed:
        return
    host = (find_header(scope, b"host") or "").lower()
    if urlsplit(origin.lower()).netloc != host or not host:
        raise Forbidden(
            "Pages of other sites may not open streams here. Name the site in CAROUSEL_ALLOWED_ORIGINS to let it.",
            received=origin[:200],
        )


async def _refuse(scope: Scope, send: Send, reply: Reply) -> None:
    """Answer the handshake as HTTP answers a call; a server without that extension closes with 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return
    headers = [(b"content-type", reply.content_type.encode()), *reply.headers]
    await send({"type": "websocket.http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": reply.body})
