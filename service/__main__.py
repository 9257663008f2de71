"""python -m service: settings -> app -> uvicorn. Ends with 0 when told to stop, with 2 when it cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from functools import partial
from typing import cast

import structlog
import uvicorn

from service.api.oip.short_infer import ShortInfer
from service.api.short_steps import ShortSteps
from service.api.short_way import ShortWays
from service.app import App, create_app
from service.connection import Connection
from service.errors import SettingsInvalid, StartupError
from service.interpreter import hurry_threads, new_event_loop, spare_the_collector
from service.logs import configure_logs
from service.server import Server, announce
from service.settings import Settings, load_settings, unknown_variables

CANNOT_START = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
BACKLOG = 2048
PING_SECONDS, PONG_SECONDS = 20.0, 60.0
"""A WebSocket is asked so often whether it is alive, and dropped unless it says so within; a slow reader takes long."""
LAST_SECONDS = 5
"""What tasks get for their ends, once the server has drained and hung up."""

log = structlog.get_logger(__name__)


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings)
        for name, meant in unknown_variables(os.environ).items():
            log.warning("unknown_setting", variable=name, nearest=meant)
        with bind(settings) as listener, asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve(settings, listener))
    except StartupError as error:
        print(f"carousel: {error.message}", file=sys.stderr)
        return CANNOT_START
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 0  # told to stop before it began
    return 0


async def _serve(settings: Settings, listener: socket.socket) -> None:
    app = create_app(settings)
    ways = make_ways(app)
    config = make_config(app, settings, ways)
    server = Server(config, app.state.service, ways, lambda: announce(app.state.service, listener))
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    async with app.router.lifespan_context(app):
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            # uvicorn takes over from here, and raises the signal once more when it is done
            signal.signal(number, server.handle_exit)
        spare_the_collector()
        hurry_threads()
        await server.serve(sockets=[listener])


def make_ways(app: App) -> ShortWays:
    service, edge = app.state.service, app.edge
    return ShortWays(service, edge, [ShortSteps(service, edge), ShortInfer(service, edge)])


def make_config(app: App, settings: Settings, ways: ShortWays) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(Connection, ways=ways)),
        lifespan="off",  # ours is open already: an error in it is told here, in one line
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=settings.max_frame_bytes,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
        ws_per_message_deflate=False,  # float32 hardly shrinks, and inflating costs more than a step
        timeout_graceful_shutdown=LAST_SECONDS,
    )


def bind(settings: Settings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        # IPPROTO_TCP: event loops set TCP_NODELAY only on sockets that say so, and an answer leaves in two writes
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.port))
            listener.listen(BACKLOG)  # at once: until somebody listens, another process may bind the same port
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SettingsInvalid(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}. "
            "Set CAROUSEL_HOST or CAROUSEL_PORT (PORT with make serve) to another."
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
