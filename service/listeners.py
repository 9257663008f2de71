"""Give an address up without losing a connection.

A kernel resets the connections that wait in the queue of a listening socket when it is closed, and one more may come
between the last look into that queue and the end: its caller would take that for a lost answer. So on Linux a filter
on the socket lets no more callers in first (they try again by themselves, a second later, and meet the next server
or a closed port), then the queue is emptied, then the socket is closed.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

HANDSHAKE_SECONDS = 0.05
"""Callers who are half way in when the filter is set get so long for the rest of their way."""

_SO_ATTACH_FILTER = 26  # linux: include/uapi/asm-generic/socket.h
# Classic BPF, instructions of (opcode, jump if true, jump if false, operand); a packet begins with its TCP header.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # let it pass
)


async def emptied(listeners: Iterable[socket.socket]) -> list[socket.socket]:
    """Let nobody else in; the connections that were made and that nobody has taken yet. Close the listeners next."""
    listeners = list(listeners)
    shut_out = [_shut_out(listener) for listener in listeners]
    if any(shut_out):
        await asyncio.sleep(HANDSHAKE_SECONDS)
    return [connection for listener in listeners for connection in _queue(listener)]


def _shut_out(listener: socket.socket) -> bool:
    """True if new callers' packets are dropped from now on."""
    if sys.platform != "linux" or listener.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    kept = ctypes.create_string_buffer(code, len(code))
    with suppress(OSError):  # a sandbox may not know of filters
        program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(kept))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        return True
    return False


def _queue(listener: socket.socket) -> list[socket.socket]:
    taken = []
    listener.setblocking(False)
    while True:
        try:
            taken.append(listener.accept()[0])
        except ConnectionAbortedError:  # this caller has gone again
            continue
        except OSError:  # nobody is left, or no file descriptor is
            return taken
