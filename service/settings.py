"""What the operator chooses, from environment variables named `CAROUSEL_...` (or a `.env` file)."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsInvalid

_PASSWORD = re.compile(r"//[^/]*@")
"""What an address says of its user."""
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")

RESIDENTS_BESIDE_A_STORE = 10_000


class Settings(BaseSettings):
    """Validated at start; every bound is a count unless its name ends in a unit."""

    model_config = SettingsConfigDict(
        env_prefix="CAROUSEL_", env_file=".env", extra="ignore", frozen=True, allow_inf_nan=False
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model_repository: Path = Field(Path("model_repository"), description="Folder of <name>/<version>/model.onnx.")
    model_poll_seconds: float = Field(
        5.0, ge=0, le=86400, description="How often to look for new and removed versions; 0 never looks again."
    )
    model_control: bool = Field(False, description="Let callers load and unload models.")
    provider: Literal["cpu", "cuda"] = Field(
        "cpu", description="Where models run; cuda refuses to start without a GPU."
    )
    device_states: bool = Field(
        True, description="With cuda, states stay on the GPU between runs; 0 takes them to the host and back each time."
    )
    state_store: str = Field(
        "memory", description="Where committed state lives: memory, sqlite:///path or redis://host:port/0."
    )
    sqlite_synchronous: Literal["normal", "full"] = Field(
        "normal", description="Of a state store in a file: normal survives the end of the process, full power loss too."
    )
    intra_op_threads: int = Field(
        0, ge=0, le=1024, description="Threads inside one run; 0: all of the CPU quota where they pay, else one."
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that speak HTTP: 1, the one that has the models; of more, each is one beside it.",
    )

    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated `key` or `tenant:key`; keys of one tenant share its sequences. Empty: no keys."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated origins, `https://site`, whose pages may open streams; `*` is all of them."
    )
    allow_anonymous: bool = Field(False, description="Serve a public address without keys.")

    token_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated keys of state tokens, at least 16 characters each: the first seals, all of them "
        "open. Empty: one is made and kept beside the state store.",
    )
    token_ttl_seconds: float = Field(
        30 * 86400.0, gt=0, le=1e9, description="How long a state token can be used after it was given."
    )

    max_body_bytes: int = Field(16 * 2**20, ge=1024, le=2**30, description="Largest request body.")
    max_steps: int = Field(100_000, ge=1, le=100_000_000, description="Steps a call, over all its sequences.")
    max_batch: int = Field(1024, ge=1, le=1_000_000, description="Sequences in one predict call.")
    max_sequences: int = Field(100_000, ge=1, le=50_000_000, description="Sequences held at once, per model version.")
    max_resident_sequences: int = Field(
        0,
        ge=0,
        le=50_000_000,
        description="Sequences whose state is at hand at once, per model version; the others wait in the state store. "
        "0: all of them with the memory store, else 10000.",
    )
    max_queue: int = Field(8192, ge=1, le=1_000_000, description="Requests waiting at once, per model version.")
    max_queue_seconds: float = Field(5.0, gt=0, le=3600, description="Predicted seconds of waiting work, per version.")
    max_rows: int = Field(256, ge=1, le=65_536, description="Rows that run together.")
    max_chunk: int = Field(256, ge=1, le=65_536, description="Steps of one row in one run; a power of two.")

    max_streams: int = Field(1024, ge=1, le=1_000_000, description="WebSockets open at once.")
    max_frame_bytes: int = Field(2**20, ge=1024, le=2**30, description="Largest message on a WebSocket, either way.")
    max_stream_records: int = Field(
        2048, ge=1, le=1_000_000, description="Records of one WebSocket that wait for their answer at once."
    )
    max_stream_sequences: int = Field(
        16_384, ge=1, le=50_000_000, description="Sequences that one binary WebSocket has handles for."
    )

    sequence_ttl_seconds: float = Field(3600.0, gt=0, description="Lease of a sequence; each call renews it.")
    max_ttl_seconds: float = Field(30 * 86400.0, gt=0, le=1e9, description="Longest lease a caller may ask for.")
    drain_seconds: float = Field(
        30.0, ge=0, le=86400, description="How long shutting down waits for work that was accepted."
    )

    oip_strict: bool = Field(
        False, description="Under /v2, answer 400 for a sequence that is not there, as Triton does; 404 or 410 without."
    )

    log_format: Literal["console", "json"] = Field("console", description="console for people, json for machines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("api_keys", "token_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        return (
            tuple(part.strip().lower() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ValueError(f"expected `https://site` without a path, or `*`; got {origin[:80]!r}")
        return value

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            tenant, _, key = entry.rpartition(":")
            if len(key) < 8 or (tenant and not _TENANT.fullmatch(tenant)):
                raise ValueError("expected `key` or `tenant:key` with a key of at least 8 characters")
        if len({entry.rpartition(":")[2] for entry in value}) < len(value):
            raise ValueError("a key stands there twice; it can belong to one tenant only")
        return value

    @field_validator("state_store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        if value != "memory" and not re.match(r"(sqlite|rediss?|valkeys?)://.", value):
            raise ValueError("expected 'memory', sqlite:///path or redis://host:port/0")
        return value

    @field_validator("token_keys")
    @classmethod
    def _check_token_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(key) < 16 for key in value):
            raise ValueError("expected keys of at least 16 characters each")
        if len(set(value)) < len(value):
            raise ValueError("a key stands there twice")
        return value

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, value: int) -> int:
        if value > 1 and sys.platform != "linux":
            raise ValueError("expected 1: more need Linux, whose processes can hand each other open connections")
        return value

    @field_validator("model_repository", mode="before")
    @classmethod
    def _check_repository(cls, value: Any) -> Any:
        if not str(value).strip():
            raise ValueError("expected a folder of <name>/<version>/model.onnx, got nothing")
        return value

    @field_validator("max_ttl_seconds")
    @classmethod
    def _check_ttl(cls, value: float, info: ValidationInfo) -> float:
        usual = info.data.get("sequence_ttl_seconds", 0.0)
        if value < usual:
            raise ValueError(f"expected CAROUSEL_SEQUENCE_TTL_SECONDS={usual:g} or more, got {value:g}")
        return value

    @field_validator("max_chunk")
    @classmethod
    def _check_chunk(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"expected a power of two, got {value}")
        return value

    @property
    def tenants(self) -> dict[str, str]:
        """Key -> tenant. A key without a tenant name is the tenant `default`."""
        pairs = (entry.rpartition(":") for entry in self.api_keys)
        return {key: tenant or "default" for tenant, _, key in pairs}

    @property
    def is_public(self) -> bool:
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def stores_every_step(self) -> bool:
        """Is each step committed to the state store before it is answered?"""
        return self.state_store != "memory"

    @property
    def num_resident(self) -> int:
        """Most sequences of a model version that have their state at hand at once."""
        usual = RESIDENTS_BESIDE_A_STORE if self.stores_every_step else self.max_sequences
        return min(self.max_resident_sequences or usual, self.max_sequences)


def load_settings(**overrides: Any) -> Settings:
    """Read and check the settings. Raises SettingsInvalid that names the variable, what came and what fits."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "CAROUSEL_" + "_".join(str(part) for part in first["loc"][:1]).upper()
        # a key never stands in a message; what a rule over several settings got is all of them
        came = (
            ""
            if name in ("CAROUSEL_", "CAROUSEL_API_KEYS", "CAROUSEL_TOKEN_KEYS")
            else f" Got {_PASSWORD.sub('//...@', str(first['input']))[:80]!r}."
        )
        raise SettingsInvalid(f"{name}: {first['msg']}.{came}") from None
    if settings.is_public and not settings.api_keys and not settings.allow_anonymous:
        raise SettingsInvalid(
            f"CAROUSEL_HOST={settings.host} can be reached by others, and CAROUSEL_API_KEYS is empty. "
            "Set CAROUSEL_API_KEYS=tenant:key, or CAROUSEL_ALLOW_ANONYMOUS=1 to serve everybody."
        )
    return settings


def unknown_variables(names: Iterable[str]) -> dict[str, str | None]:
    """Of the names of environment variables, those that look like a setting and are none -> one of a like name."""
    known = {f"CAROUSEL_{field.upper()}" for field in Settings.model_fields}
    unknown = sorted(name for name in names if name.upper().startswith("CAROUSEL_") and name.upper() not in known)
    return {name: _nearest(name) for name in unknown}


def _nearest(name: str) -> str | None:
    found = get_close_matches(name.lower().removeprefix("carousel_"), Settings.model_fields, 1)
    return f"CAROUSEL_{found[0].upper()}" if found else None
