"""An address is given up under callers who connect all the time: each is answered or refused, none is cut off."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.listeners import emptied

CALLERS = 16


def call_until_refused(address: tuple[str, int]) -> str:
    while True:
        try:
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(b"?")
                if connection.recv(1) != b"!":
                    return "closed without an answer"
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            return "reset"


def num_waiting(listener: socket.socket) -> int:
    """Connections that nobody has taken: of a listening socket it is the field `tcpi_unacked`."""
    facts = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(facts[24:28], sys.byteorder)


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can shut callers out before it closes a socket")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_no_caller_is_cut_off(host: str) -> None:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=64) as listener, ThreadPoolExecutor(CALLERS) as pool:
        calls = [loop.run_in_executor(pool, call_until_refused, listener.getsockname()[:2]) for _ in range(CALLERS)]
        while num_waiting(listener) < CALLERS:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0)
        for connection in await emptied([listener]):
            with connection:
                assert connection.recv(1) == b"?"
                connection.sendall(b"!")
        await asyncio.sleep(0.05)  # those just answered would be back in the queue
        listener.close()
        assert Counter(await asyncio.gather(*calls)) == {"refused": CALLERS}
