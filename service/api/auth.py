"""Who calls: API key -> tenant. Once the settings name a key, /v1, /v2 and /metrics ask for one; probes do not."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping

from starlette.types import Scope

from service.api.headers import find_header
from service.errors import Unauthenticated

ANONYMOUS = "anonymous"
KEY_SUBPROTOCOL = "carousel.key."


def is_protected(path: str) -> bool:
    return is_work(path) or path == "/metrics"


def is_work(path: str) -> bool:
    """What a server that is shutting down refuses."""
    return path.startswith(("/v1", "/v2")) and not path.startswith("/v2/health/")


def authenticate(scope: Scope, tenants: Mapping[str, str]) -> str:
    """The tenant of the key that was sent, `anonymous` where no keys are set. Raises Unauthenticated."""
    if not tenants:
        return ANONYMOUS
    sent = _sent_key(scope).encode("latin-1")
    # every key is compared, in constant time: how long it takes tells nothing about any of them
    found = [tenant for key, tenant in tenants.items() if hmac.compare_digest(key.encode(), sent)]
    if not found:
        raise Unauthenticated("Send a key of this server, as `Authorization: Bearer <key>` or as `X-API-Key: <key>`.")
    return found[0]


def _sent_key(scope: Scope) -> str:
    if key := find_header(scope, b"x-api-key"):
        return key
    scheme, _, key = (find_header(scope, b"authorization") or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else _key_among(scope.get("subprotocols", ()))


def _key_among(subprotocols: Iterable[str]) -> str:
    """Browsers send no headers of their own with a WebSocket: there the key is one more subprotocol."""
    encoded = next((name for name in subprotocols if name.startswith(KEY_SUBPROTOCOL)), "")
    encoded = encoded.removeprefix(KEY_SUBPROTOCOL)
    try:
        return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("latin-1")
    except ValueError:
        return ""
