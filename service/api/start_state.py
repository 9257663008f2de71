"""Where a call begins: at a state that it spells out, at one that it carries sealed, or at zeros."""

from __future__ import annotations

from msgspec import Raw

from service.api.call import Call
from service.errors import InvalidState
from service.protocol.arrays import read_state
from service.protocol.codec import is_absent
from service.registry import LoadedModel
from service.state_tokens import Opened


def read_start(
    call: Call, model: LoadedModel, state: Raw, token: str | None, *, field: str = "initial_state", within: str = ""
) -> Opened | None:
    """What `field` or the `state_token` beside it holds; None for neither. `within` leads to both, with a dot.

    Raises InvalidState.
    """
    if token is None:
        read = read_state(call.codec, state, model.spec, within + field)
        return None if read is None else Opened(read, 0)
    if not is_absent(call.codec, state):
        raise InvalidState(
            f"{within}state_token: expected it or {field}, got both. Leave one of them out.",
            place=f"{within}state_token",
        )
    return call.service.tokens.open(token, call.tenant, model, f"{within}state_token")
