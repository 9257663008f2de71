"""How a client reaches a server and shows itself."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

import httpx
from websockets.typing import Subprotocol

from carousel_client.core.frames import BINARY
from carousel_client.core.models import ModelCalls
from carousel_client.errors import UnexpectedAnswer

USER_AGENT = "carousel-client"


def http_options(url: str, api_key: str | None, timeout: float, deadline: float | None) -> dict[str, Any]:
    """Of httpx's clients. `timeout`: seconds; `deadline`: seconds that the server may let a call wait."""
    headers = {"User-Agent": USER_AGENT}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    if deadline is not None:
        headers["X-Request-Timeout-Ms"] = str(max(1, math.ceil(deadline * 1000)))
    return {"base_url": url, "headers": headers, "timeout": timeout}


def stream_options(http: httpx.Client | httpx.AsyncClient, model: ModelCalls, timeout: float) -> dict[str, Any]:
    """Of websockets' connect, blocking or not. The exchange bounds what is under way, so the queue needs no bound."""
    base = http.base_url
    query = "".join(f"?{name}={quote(value)}" for name, value in model.query.items())
    scheme = "wss" if base.scheme == "https" else "ws"
    key = http.headers.get("authorization")
    return {
        "uri": f"{scheme}{str(base).removeprefix(base.scheme).rstrip('/')}{model.path}/stream{query}",
        "additional_headers": {} if key is None else {"Authorization": key},
        "user_agent_header": USER_AGENT,
        "subprotocols": [Subprotocol(BINARY)],
        "compression": None,
        "max_size": None,
        "max_queue": None,
        "open_timeout": timeout,
        "ping_interval": timeout,
        "ping_timeout": timeout,
        "close_timeout": 1,
    }


def check_subprotocol(chosen: str | None) -> None:
    """Raises UnexpectedAnswer."""
    if chosen != BINARY:
        raise UnexpectedAnswer(f"The server does not speak {BINARY} on its streams: it chose {chosen!r}.")
