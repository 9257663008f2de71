"""SQLite's write-ahead log as it lies on the disk.

SQLite reads it up to the first frame that does not fit, and takes that for its end: one flipped bit would silently
undo every commit after it. So the end is looked for here too. The format: https://sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, checkpoints, salt (2), checksum (2)
_FRAME = struct.Struct(">IIII")  # page, pages of the file after a commit or 0, salt (2)
_FRAME_BYTES = 24
_MAGICS = (0x377F0682, 0x377F0683)
PAGE_BYTES = 4096
"""Measured with 10,000 sequences of 512 bytes: smaller pages cost more calls, larger ones more bytes a step."""


def last_commit(log: bytes) -> int:
    """Frames of a log up to the last commit that ever was written to it; 0 if it is empty."""
    return max((number for number, _, is_commit, _ in frames(log) if is_commit), default=0)


def frames(data: bytes) -> Iterator[tuple[int, int, bool, bytes]]:
    """Number from 1, page number, whether a commit ends there, and the page: whatever its checksum, of this round."""
    if len(data) < _HEADER.size + _FRAME_BYTES:
        return
    salt = data[16:24] if _is_sound(data[: _HEADER.size]) else data[_HEADER.size + 8 : _HEADER.size + 16]
    size = _FRAME_BYTES + PAGE_BYTES
    for number, at in enumerate(range(_HEADER.size, len(data) - size + 1, size), 1):
        page, pages, _, _ = _FRAME.unpack_from(data, at)
        if data[at + 8 : at + 16] == salt:
            yield number, page, pages > 0, data[at + _FRAME_BYTES : at + size]


def _is_sound(header: bytes) -> bool:
    magic, *_, first, second = _HEADER.unpack(header)
    if magic not in _MAGICS:
        return False
    order = ">" if magic & 1 else "<"
    words = struct.unpack(f"{order}6I", header[:24])
    a = b = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        a = (a + even + b) & 0xFFFFFFFF
        b = (b + odd + a) & 0xFFFFFFFF
    return (a, b) == (first, second)
