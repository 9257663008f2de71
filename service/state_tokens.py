"""State tokens: a final state, sealed, for the caller to carry to any server that has the same key.

A token is base64url, without padding, of

    format 1 (1 byte) | key id (4) | expiry, seconds since the epoch (8) | step (8)
    | SHA-256 of the model file, its first half (16) | mark of the tenant (16) | state, float32 little-endian
    | HMAC-SHA256 over all before it (32)

so what it says can be read by its holder, and changed by nobody. Whose it is comes last in the checks: only what this
server sealed itself is told apart any further. Knows nothing of HTTP.
"""

from __future__ import annotations

import hmac
import math
import struct
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from time import time
from typing import NoReturn

import numpy as np

from service.engine.request import State
from service.errors import InvalidState
from service.registry import LoadedModel
from service.stores.store import store_unavailable

_FORMAT = 1
_HEAD = struct.Struct(">B4sQQ16s16s")
_MAC_BYTES = 32
_REASONS = {
    "malformed": "expected a token as this server gives it, and this is none for this model",
    "unknown_key": "it was sealed with a key that this server does not have, or no longer has",
    "tampered": "its seal is broken: it is not what this server gave",
    "foreign_tenant": "it belongs to another tenant",
    "foreign_model": "it belongs to another model, or to another version of this one; ?version= pins the version",
    "expired": "it has expired",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """What a token holds."""

    state: State
    step: int


class _Key:
    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.id = sha256(b"carousel key id" + secret).digest()[:4]
        self._marks: dict[str, bytes] = {}

    def mac(self, body: bytes) -> bytes:
        return hmac.digest(self.secret, b"state" + body, "sha256")

    def mark(self, tenant: str) -> bytes:
        """Of a tenant, as its tokens have it: it tells nobody the name."""
        found = self._marks.get(tenant)
        if found is None:
            sealed = hmac.digest(self.secret, b"tenant" + tenant.encode("utf-8", "surrogatepass"), "sha256")
            found = self._marks[tenant] = sealed[:16]
        return found


class StateTokens:
    """Seals and opens tokens. The first key seals, all of them open; without keys, StoreUnavailable is raised."""

    def __init__(self, ttl_seconds: float, clock: Callable[[], float] = time) -> None:
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._keys: dict[bytes, _Key] = {}
        self._sealing: _Key | None = None

    @property
    def ready(self) -> bool:
        return self._sealing is not None

    def use(self, secrets: Sequence[bytes]) -> None:
        """The keys from now on."""
        keys = [_Key(secret) for secret in secrets]
        self._sealing, self._keys = keys[0], {key.id: key for key in keys}

    def seal(self, tenant: str, model: LoadedModel, step: int, state: State) -> str:
        """`state` as `step` steps have left it: `(L, H)` float32 each."""
        key = self._sealing
        if key is None:
            raise store_unavailable()
        expiry = math.ceil(self._clock() + self._ttl_seconds)
        head = _HEAD.pack(_FORMAT, key.id, expiry, step, _half(model.fingerprint), key.mark(tenant))
        body = b"".join([head, *(tensor.astype("<f4", copy=False).tobytes() for tensor in state)])
        return urlsafe_b64encode(body + key.mac(body)).rstrip(b"=").decode()

    def open(self, token: str, tenant: str, model: LoadedModel, place: str = "state_token") -> Opened:
        """Raises InvalidState with the `reason`: a key of `_REASONS`."""
        if self._sealing is None:
            raise store_unavailable()
        raw = _decoded(token)
        if raw is None or len(raw) < _HEAD.size + _MAC_BYTES or raw[0] != _FORMAT:
            _refuse("malformed", place)
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        _, key_id, expiry, step, fingerprint, mark = _HEAD.unpack_from(body)
        key = self._keys.get(key_id)
        if key is None:
            _refuse("unknown_key", place)
        if not hmac.compare_digest(key.mac(body), mac):
            _refuse("tampered", place)
        if not hmac.compare_digest(key.mark(tenant), mark):
            _refuse("foreign_tenant", place)
        if fingerprint != _half(model.fingerprint):
            _refuse("foreign_model", place)
        if expiry <= self._clock():
            _refuse("expired", place)
        return Opened(_tensors(body[_HEAD.size :], model, place), step)


def _half(fingerprint: str) -> bytes:
    return bytes.fromhex(fingerprint)[:16]


def _decoded(token: str) -> bytes | None:
    """None unless the token is the one way to write its bytes: a decoder lets stray bits and characters pass."""
    try:
        written = token.encode("ascii")
        raw = b64decode(written + b"=" * (-len(written) % 4), b"-_", validate=True)
    except ValueError:
        return None
    return raw if urlsafe_b64encode(raw).rstrip(b"=") == written else None


def _tensors(packed: bytes, model: LoadedModel, place: str) -> State:
    if len(packed) != model.spec.state_bytes:
        _refuse("malformed", place)
    values = np.frombuffer(packed, "<f4").astype(np.float32)
    tensors, at = [], 0
    for state in model.spec.states:
        size = math.prod(state.row_shape)
        tensors.append(values[at : at + size].reshape(state.row_shape))
        at += size
    return tuple(tensors)


def _refuse(reason: str, place: str) -> NoReturn:
    raise InvalidState(f"{place}: {_REASONS[reason]}.", place=place, reason=reason)
