"""How the interpreter of each process of the server is set."""

from __future__ import annotations

import asyncio
import gc
import sys


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where the platform has it: a small call costs less on it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def spare_the_collector() -> None:
    """Keep Python's collector from walking every sequence held, which stops the loop for 100 ms a million of them.

    What makes cycles here, tasks and exceptions, dies young: the two young generations find it. The old one is left to
    reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 4, 1_000_000)


def hurry_threads() -> None:
    """Let the event loop have its turn after 0.1 ms when another thread, an engine's or a reader's, is at work."""
    sys.setswitchinterval(1e-4)
