"""Settings: what is refused at start, and what the refusal says."""

from __future__ import annotations

import pytest

from service.errors import SettingsInvalid
from service.settings import load_settings, unknown_variables


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CAROUSEL_PROVIDER", "tpu", "'cpu' or 'cuda'"),
        ("CAROUSEL_WORKERS", "0", "greater than or equal to 1"),
        ("CAROUSEL_PORT", "70000", "65535"),
        ("CAROUSEL_MAX_CHUNK", "100", "power of two, got 100"),
        ("CAROUSEL_STATE_STORE", "floppy", "'memory'"),
        ("CAROUSEL_API_KEYS", "short", "at least 8 characters"),
        ("CAROUSEL_SEQUENCE_TTL_SECONDS", "inf", "finite number"),
        ("CAROUSEL_MAX_TTL_SECONDS", "nan", "finite number"),
        ("CAROUSEL_MAX_TTL_SECONDS", "60", "CAROUSEL_SEQUENCE_TTL_SECONDS=3600 or more, got 60"),
        ("CAROUSEL_DRAIN_SECONDS", "inf", "finite number"),
        ("CAROUSEL_MAX_SEQUENCES", "1000000000000", "50000000"),
        ("CAROUSEL_INTRA_OP_THREADS", "1000000", "1024"),
        ("CAROUSEL_MAX_ROWS", "1000000000", "65536"),
        ("CAROUSEL_MAX_CHUNK", str(2**40), "65536"),
        ("CAROUSEL_MODEL_REPOSITORY", "", "expected a folder"),
        ("CAROUSEL_API_KEYS", "acme:short-secret,other:short-secret", "one tenant only"),
        ("CAROUSEL_API_KEYS", "bad tenant:secret-secret", "tenant:key"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings()
    assert refused.value.message.startswith(variable)
    assert variable == "CAROUSEL_API_KEYS" or value in refused.value.message, "what came is said"
    assert reason in refused.value.message
    assert "short" not in refused.value.message, "a key never stands in a message"


def test_a_misspelt_variable_is_found_with_the_one_that_is_meant():
    found = unknown_variables(["CAROUSEL_API_KEY", "CAROUSEL_PORT", "carousel_host", "CAROUSEL_XYZZY", "PATH"])
    assert found == {"CAROUSEL_API_KEY": "CAROUSEL_API_KEYS", "CAROUSEL_XYZZY": None}


def test_keys_belong_to_tenants(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CAROUSEL_API_KEYS", "acme:secret-one, acme:secret-two ,lone-secret")
    assert load_settings().tenants == {"secret-one": "acme", "secret-two": "acme", "lone-secret": "default"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CAROUSEL_TOKEN_KEYS", "a secret of enough length,short one"),
        ("CAROUSEL_TOKEN_KEYS", "a secret of enough length,a secret of enough length"),
        ("CAROUSEL_STATE_STORE", "redsi://user:a secret@host:6379/0"),
    ],
)
def test_a_secret_never_stands_in_a_message(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid, match=variable) as refused:
        load_settings()
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_a_public_address_without_keys_is_refused(host: str):
    with pytest.raises(SettingsInvalid, match="CAROUSEL_ALLOW_ANONYMOUS=1"):
        load_settings(host=host)
    assert load_settings(host=host, allow_anonymous=True).is_public
    assert load_settings(host=host, api_keys=("tenant:secret-key",)).is_public


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone_needs_no_keys(host: str):
    assert not load_settings(host=host).is_public
