from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service import errors
from service.api.oip.errors import STATUS, internal_problem, problem, status_of
from tests.service.api.clients import open_client
from tests.service.api.test_errors import CONTRACT, MET_BY_CALLERS

pytestmark = pytest.mark.anyio
OTHERWISE = {
    **dict.fromkeys(("InvalidInput", "InvalidState", "NotStreamable", "NotGenerative"), 400),
    "UnsupportedEncoding": 501,
}


@pytest.mark.parametrize("kind", MET_BY_CALLERS)
def test_statuses_are_those_of_v1_but_for_the_protocols_own(kind: type[errors.CarouselError]) -> None:
    if expected := {**CONTRACT, **OTHERWISE}.get(kind.__name__):
        assert status_of(kind("message")) == expected
    assert 400 <= status_of(kind("message")) < 600
    assert STATUS[errors.Unprocessable] == 400


def test_an_error_is_a_string_with_the_facts_beside_it() -> None:
    reply = problem(errors.QueueFull("Full \udcff.", limit=8, retry_after=3, error="x"), "/v2/models/x/infer")
    assert (reply.status, reply.content_type) == (503, "application/json")
    assert dict(reply.headers)[b"retry-after"] == b"3"
    assert reply.body == b'{"error":"Full ?.","code":"queue_full","limit":8}'
    assert internal_problem("/v2").body.startswith(b'{"error":"Something went wrong')


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v2/nothing/here", 404, "nothing at this address"),
        ("GET", "/v2/systemsharedmemory/status", 404, "shared memory is not part of this server"),
        ("POST", "/v2/cudasharedmemory/region/a/register", 404, "shared memory is not part of this server"),
        ("GET", "/v2/trace/setting", 404, "trace settings are not part of this server"),
        ("POST", "/v2/models/m/trace/setting", 404, "trace settings are not part of this server"),
        ("POST", "/v2/logging", 404, "log settings are not part of this server"),
    ],
)
async def test_what_is_not_there_is_told_in_the_protocols_form(
    client: httpx.AsyncClient, method: str, path: str, status: int, words: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert words in answer.json()["error"]


async def test_a_key_is_asked_for(repository: Path) -> None:
    async with open_client(repository, api_keys=("alice:alices-key",)) as client:
        answer = await client.get("/v2/models/stats")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_server_that_shuts_down_refuses(repository: Path) -> None:
    async with open_client(repository) as client:
        client._transport.app.state.service.draining = True  # type: ignore[attr-defined]
        answer = await client.get("/v2/models/stats")
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert answer.headers["retry-after"]
