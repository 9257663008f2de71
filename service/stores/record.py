"""Records as bytes that tell whether they are what was written, and names as bytes that sort as the ids do."""

from __future__ import annotations

import struct
from hashlib import blake2b

from service.errors import StateDamaged
from service.stores.store import DAMAGED, Key, Record

SEAL_BYTES = 8
"""Of BLAKE2b: of all damage, not of single bits alone, one in 2**64 goes unnoticed."""

_ORIGIN = struct.Struct("<HddQI")  # bytes of the name, created, lease in seconds, first revision, version
_ZERO, _ESCAPED, _END = b"\x00", b"\x00\xff", b"\x00\x01"


class Damaged(Exception):
    """Bytes are not what was written."""


def state_damaged() -> StateDamaged:
    """What the caller of a damaged sequence is told; the log has more."""
    return StateDamaged(
        "What is stored of the sequence is not what was written, so it cannot go on. Create it again to begin from "
        "zeros.",
        reason=DAMAGED,
    )


def seal(body: bytes, place: bytes = b"") -> bytes:
    """`body` and its checksum; `place` is where it is kept, so that it counts nowhere else."""
    return body + blake2b(place + body, digest_size=SEAL_BYTES).digest()


def unseal(sealed: bytes, place: bytes = b"") -> bytes:
    """The body again. Raises Damaged."""
    body = sealed[:-SEAL_BYTES]
    if len(sealed) < SEAL_BYTES or blake2b(place + body, digest_size=SEAL_BYTES).digest() != sealed[-SEAL_BYTES:]:
        raise Damaged(f"{len(sealed)} bytes do not have the checksum that they were written with")
    return body


def name_of(key: Key) -> bytes:
    """A key as one byte string. Names of a tenant and model begin alike and sort by sequence id."""
    tenant, model, sequence_id = key
    return owner_of(tenant, model) + _bytes(sequence_id)


def owner_of(tenant: str, model: str) -> bytes:
    """What the names of a tenant's sequences of a model begin with."""
    return b"".join(_bytes(part).replace(_ZERO, _ESCAPED) + _END for part in (tenant, model))


def model_in(name: bytes) -> bytes:
    """What stands for the model in a name, or in what names begin with."""
    return name.split(_END, 2)[1]


def key_of(name: bytes) -> Key:
    tenant, model, sequence_id = name.split(_END, 2) if name.count(_END) >= 2 else (b"", b"", name)
    return _text(tenant.replace(_ESCAPED, _ZERO)), _text(model.replace(_ESCAPED, _ZERO)), _text(sequence_id)


def pack_origin(name: bytes, record: Record) -> bytes:
    """What stays as it is for as long as the sequence lives."""
    head = _ORIGIN.pack(len(name), record.created_at, record.ttl_seconds, record.revision, record.version)
    return head + name + record.fingerprint.encode()


def name_in(origin: bytes) -> bytes:
    """The name that a packed origin says."""
    return origin[_ORIGIN.size :][: int.from_bytes(origin[:2], "little")]


def unpack_origin(packed: bytes) -> Record:
    """A record without what moves, at the revision that it had first. Raises Damaged."""
    try:
        length, created_at, ttl_seconds, revision, version = _ORIGIN.unpack_from(packed)
        name, fingerprint = packed[_ORIGIN.size :][:length], packed[_ORIGIN.size + length :].decode()
        return Record(key_of(name), version, fingerprint, revision, 0, b"", [], created_at, created_at, ttl_seconds)
    except (struct.error, UnicodeDecodeError) as error:
        raise Damaged(str(error)) from error


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
