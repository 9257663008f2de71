"""A long list of JSON as short ones, so that reading it can be interrupted between them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from time import sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 16 * 1024
"""0.1 to 0.3 ms to read, the more the shorter its lists are; nothing else of this process runs meanwhile."""

REST_SECONDS = 1e-4
"""Between blocks: who waits for the interpreter gets it at once, and not only after the switch interval."""

_FOLLOWED = re.compile(rb"[ \t\r\n]*,")


def pieces(text: bytes, rank: int) -> Iterator[bytes]:
    """The items of the list `text`, numbers at rank 0 and lists of numbers at rank 1, as lists of some of them.

    Of items that are something else, a piece may not be JSON; all pieces fit only where the whole does.
    """
    closer = b"]" if rank else b","
    begin = text.index(b"[") + 1
    while (cut := text.find(closer, begin + PIECE_BYTES)) >= 0:
        cut += rank  # a bracket belongs to its item, a comma does not
        followed = _FOLLOWED.match(text, cut)
        if followed is None:
            break
        yield b"[" + text[begin:cut] + b"]"
        begin = followed.end()
    yield b"[" + text[begin:]


def join(blocks: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """One array of blocks that are read one after the other, with rests between them off the main thread."""
    read = []
    for block in blocks:
        read.append(block)
        if threading.current_thread() is not threading.main_thread():
            sleep(REST_SECONDS)
    return np.concatenate(read)
