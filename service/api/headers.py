"""Headers of a call, as ASGI has them."""

from __future__ import annotations

from starlette.types import Scope


def find_header(scope: Scope, name: bytes) -> str | None:
    """Value of a header, its name in lower case; of one that is sent twice, the first."""
    headers = scope.get("first_headers")
    if headers is None:  # a call asks for six of them
        headers = scope["first_headers"] = dict(reversed(scope["headers"]))
    value: bytes | None = headers.get(name)
    return None if value is None else value.decode("latin-1")
