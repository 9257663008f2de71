"""Answers to infer requests, compressed for callers who ask for it.

`Accept-Encoding` has to name one coding, gzip or deflate, as tritonclient's `response_compression_algorithm` does. Many
clients list all that they can read at every call: they get plain answers, since float32 hardly shrinks and compressing
costs more than a step.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial

from service.api.call import Call, Reply
from service.protocol.arrays import LARGE_BYTES

LEVEL = 1
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=LEVEL, mtime=0),
    "deflate": partial(zlib.compress, level=LEVEL),
}


def asks_for_compression(accept_encoding: bytes) -> bool:
    return _coding(accept_encoding.decode("latin-1")) in _COMPRESS


async def compressed(call: Call, reply: Reply) -> Reply:
    """The answer in the coding that the caller asks for, if any. Inference-Header-Content-Length means it inflated."""
    coding = _coding(call.header(b"accept-encoding") or "")
    compress = _COMPRESS.get(coding)
    if compress is None:
        return reply
    if len(reply.body) <= LARGE_BYTES:
        reply.body = compress(reply.body)
    else:
        reply.body = await call.service.read(compress, reply.body)
    reply.headers = (*reply.headers, (b"content-encoding", coding.encode()))
    return reply


def _coding(accept_encoding: str) -> str:
    return accept_encoding.strip().lower()
