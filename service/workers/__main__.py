"""python -m service.workers CHANNEL LINK: a worker, started by the engine's process with two open sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Any

from service.interpreter import new_event_loop, spare_the_collector
from service.workers.worker import Worker


def main() -> None:
    # the engine's process says when to leave, and its end is ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel, link = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.get_loop().set_exception_handler(_break_off)
        spare_the_collector()
        runner.run(Worker().run(channel, link))


def _break_off(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Callers who are hung up on repeat their calls; those who are never answered wait."""
    loop.default_exception_handler(context)
    if not isinstance(context.get("exception"), OSError):  # that is a connection's, which ends
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
