"""uvicorn, made to drain: readiness turns 503 first, calls under way end, then the address is given up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from time import monotonic
from typing import cast

import structlog
import uvicorn

from service.api.call import Service
from service.api.openapi import example_inputs
from service.api.short_way import ShortWays
from service.connection import Connection
from service.listeners import emptied
from service.workers.limits import FIRST_PATIENCE
from service.workers.pool import Workers

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.02

LINGER_SECONDS = 0.5
"""After the last call connections stay open for so long: callers who keep one learn from an answer that they must move
on, instead of from a call that nobody answers."""


class Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Service, ways: ShortWays, on_started: Callable[[], None]
    ) -> None:
        """`ways`: those of the connections that `config` makes."""
        super().__init__(config)
        self._service = service
        self._on_started = on_started
        self._ways = ways
        self.workers: Workers | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._service.settings.workers > 1:
            self.workers = Workers(self._service, self._make_connection, self.config.timeout_keep_alive)
            await self.workers.start()
            self._ways.patience, self._ways.hand_over = FIRST_PATIENCE, self.workers.take
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self._service
        service.drain()
        log.info("draining", calls=service.num_running)
        until = monotonic() + service.settings.drain_seconds
        if self.workers is not None:
            self.workers.leave()
        # still listening: probes learn that this replica is not ready, instead of meeting a closed port
        while self._is_busy and not self.force_exit and monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        await self._stop_listening(sockets or [])
        until = monotonic() + LINGER_SECONDS
        while self.server_state.connections and not self.force_exit and monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        if service.num_running:
            log.warning("hanging_up", calls=service.num_running)
            for connection in list(self.server_state.connections):
                connection.transport.abort()  # for the call it is as if its caller had gone
        if self.workers is not None:
            await self.workers.stop()
        await super().shutdown(sockets)
        log.info("stopped")

    @property
    def _is_busy(self) -> bool:
        return self._service.num_running > 0 or (self.workers is not None and self.workers.are_away)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Close the address, but no connection that somebody made already: that would look like a lost answer."""
        late = await emptied(sockets)
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        for connection in late:
            await asyncio.get_running_loop().connect_accepted_socket(self._make_connection, connection)

    def _make_connection(self) -> Connection:
        make = cast("Callable[..., Connection]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def announce(service: Service, listener: socket.socket) -> None:
    """Print where the server is, and one call that works as it stands."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    address = f"http://{shown}:{port}"
    lines = [f"Carousel   {address}", f"API        {address}/docs"]
    if model := min(service.registry.loaded(), key=lambda model: not model.spec.streaming, default=None):
        body = json.dumps({"sequences": [{"inputs": example_inputs(model, 1)}], "return_state": False})
        key = "-H 'X-API-Key: <key>' " if service.tenants else ""
        json_type = "-H 'Content-Type: application/json'"
        lines.append(f"Try        curl -s {address}/v1/models/{model.name}/predict {key}{json_type} -d '{body}'")
    print("\n".join(lines), flush=True)
