"""The keys of state tokens: those that the operator sets, or one that is made once and kept beside the store."""

from __future__ import annotations

from pathlib import Path
from secrets import token_bytes

import structlog

from service.settings import Settings
from service.stores.secret_file import keep_in_file
from service.stores.store import Store

log = structlog.get_logger(__name__)

KEY_BYTES = 32
DEFAULT_FILE = Path("state/token.key")
"""Where the key is kept when the store keeps nothing; below the working directory."""


async def find_keys(settings: Settings, store: Store) -> list[bytes]:
    """The first one seals. Raises StoreUnavailable where the store that keeps the key is away."""
    if settings.token_keys:
        return [key.encode() for key in settings.token_keys]
    made = token_bytes(KEY_BYTES)
    if (kept := await store.keep_secret(made)) is not None:
        return [kept]
    try:
        return [keep_in_file(DEFAULT_FILE, made)]
    except OSError as error:
        log.warning("token_key_not_kept", path=str(DEFAULT_FILE), reason=str(error), lives="as long as this process")
        return [made]
