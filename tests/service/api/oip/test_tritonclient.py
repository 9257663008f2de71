"""tritonclient.http as it comes from PyPI, unmodified, sync and asyncio, against a server in a process of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.service.api.clients import BROKEN, LSTM, SUM, TOKENS
from tests.service.api.oip.schema import CONFIG, INDEX, MODEL, SERVER, STATISTICS, check
from tests.service.api.processes import Served, serve

pytestmark = pytest.mark.anyio
X = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Served]:
    with serve(repository, CAROUSEL_MODEL_CONTROL="1") as served:
        yield served


@pytest.fixture(params=["sync", "asyncio"])
async def call(request: pytest.FixtureRequest, served: Served) -> Any:
    """`await call("method", ...)` on either client."""
    url = served.address.removeprefix("http://")
    kind = triton if request.param == "sync" else triton_aio
    client = kind.InferenceServerClient(url)

    async def call(method: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(client, method)(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    yield call
    closed = client.close()
    if inspect.isawaitable(closed):
        await closed


def tensor(values: Any, *, name: str = "x", binary: bool = True) -> Any:
    array = np.asarray(values)
    datatype = "BYTES" if array.dtype == object else triton.np_to_triton_dtype(array.dtype)
    described = triton.InferInput(name, list(array.shape), datatype)
    return described.set_data_from_numpy(array, binary_data=binary)


async def test_probes(call: Call) -> None:
    assert await call("is_server_live") is True
    assert await call("is_server_ready") is True
    assert await call("is_model_ready", LSTM) is True
    assert await call("is_model_ready", LSTM, "1") is True
    assert await call("is_model_ready", LSTM, "7") is False
    assert await call("is_model_ready", BROKEN) is False
    assert await call("is_model_ready", "nobody") is False


async def test_metadata_and_configuration(call: Call) -> None:
    assert check(SERVER, await call("get_server_metadata"))["name"] == "carousel"
    for version in ("", "1"):
        assert check(MODEL, await call("get_model_metadata", LSTM, version))["name"] == LSTM
        assert check(CONFIG, await call("get_model_config", LSTM, version))["name"] == LSTM


async def test_statistics(call: Call) -> None:
    before = (await call("get_inference_statistics", SUM))["model_stats"][0]["inference_count"]
    await call("infer", SUM, [tensor(np.ones((3, 1, 2), np.float32))])
    for arguments in ((SUM,), (SUM, "1")):
        (found,) = check(STATISTICS, await call("get_inference_statistics", *arguments))["model_stats"]
        assert found["inference_count"] == before + 3
    assert len(check(STATISTICS, await call("get_inference_statistics"))["model_stats"]) > 3


async def test_the_repository(call: Call) -> None:
    entries = {entry["name"]: entry["state"] for entry in check(INDEX, await call("get_model_repository_index"))}
    assert (entries[LSTM], entries[BROKEN]) == ("READY", "UNAVAILABLE")
    await call("unload_model", TOKENS)
    assert await call("is_model_ready", TOKENS) is False
    await call("load_model", TOKENS)
    assert await call("is_model_ready", TOKENS) is True


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
async def test_inference_in_every_form(call: Call, binary_in: bool, binary_out: bool | None) -> None:
    asked = None if binary_out is None else [triton.InferRequestedOutput("y", binary_data=binary_out)]
    inputs = [tensor(X, binary=binary_in)]
    result = await call("infer", LSTM, inputs, outputs=asked, request_id="q-7", model_version="1")
    assert result.get_response()["id"] == "q-7"
    assert result.as_numpy("y").shape == (2, 6, 2)
    again = await call("infer", LSTM, [tensor(X)])
    assert result.as_numpy("y").tobytes() == again.as_numpy("y").tobytes()
    assert (result.as_numpy("h_next") is None) == (binary_out is not None)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compression(call: Call, algorithm: str) -> None:
    plain = await call("infer", LSTM, [tensor(X)])
    result = await call(
        "infer",
        LSTM,
        [tensor(X)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert result.as_numpy("y").tobytes() == plain.as_numpy("y").tobytes()


async def test_states_are_carried_by_the_caller_in_mixed_forms(call: Call) -> None:
    whole = await call("infer", LSTM, [tensor(X)])
    first = await call("infer", LSTM, [tensor(X[:, :2])])
    states = [tensor(first.as_numpy("c_next"), name="c", binary=False), tensor(first.as_numpy("h_next"), name="h")]
    second = await call("infer", LSTM, [states[0], tensor(X[:, 2:]), states[1]])
    joined = np.concatenate([first.as_numpy("y"), second.as_numpy("y")], axis=1)
    assert joined.tobytes() == whole.as_numpy("y").tobytes()
    assert second.as_numpy("h_next").tobytes() == whole.as_numpy("h_next").tobytes()


@pytest.mark.parametrize("sequence_id", [17, "pump-17"])
async def test_sequences(call: Call, sequence_id: Any) -> None:
    whole = await call("infer", LSTM, [tensor(X[:1])])
    got = []
    for step in range(6):
        marks = {"sequence_id": sequence_id, "sequence_start": step == 0, "sequence_end": step == 5}
        result = await call("infer", LSTM, [tensor(X[:1, step : step + 1])], **marks)
        got.append(result.as_numpy("y"))
        assert result.get_response()["parameters"]["sequence_step"] == step + 1
    assert np.concatenate(got, axis=1).tobytes() == whole.as_numpy("y").tobytes()
    with pytest.raises(InferenceServerException, match="must set sequence_start") as caught:
        await call("infer", LSTM, [tensor(X[:1, :1])], sequence_id=sequence_id)
    assert caught.value.status() == "410"


async def test_our_own_parameters_travel_as_custom_ones(call: Call) -> None:
    one = tensor(np.ones((1, 1, 2), np.float32))
    marks = {"sequence_id": token_hex(8), "sequence_start": True, "parameters": {"sequence_step": 0}}
    for replayed in (False, True):
        result = await call("infer", SUM, [one], **marks)
        assert result.get_response()["parameters"]["sequence_replayed"] is replayed
    both = tensor(np.ones((2, 1, 2), np.float32))
    ids = {"sequence_ids": ["own-a", "own-b"], "sequence_takeover": True}
    await call("infer", SUM, [both], sequence_id="own-a", sequence_start=True, parameters=ids)
    result = await call("infer", SUM, [both], parameters={"sequence_ids": ["own-b", "own-a"]})
    assert result.as_numpy("y").tolist() == [[[2, 2]], [[2, 2]]]
    assert result.get_response()["parameters"]["sequence_steps"] == [2, 2]


async def test_tokens_as_numbers_and_as_texts(call: Call) -> None:
    vocabulary = ["a", "b", "c"]
    numbers = await call("infer", TOKENS, [tensor(np.array([[0, 2, 1]]))])
    for binary in (True, False):
        texts = tensor(np.array([[vocabulary[n] for n in (0, 2, 1)]], object), binary=binary)
        assert (await call("infer", TOKENS, [texts])).as_numpy("y").tolist() == numbers.as_numpy("y").tolist()


async def test_a_deadline(call: Call) -> None:
    long = tensor(np.zeros((1, 50_000, 2), np.float32))
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        await call("infer", SUM, [long], timeout=1)
    assert caught.value.status() == "504"


async def test_requests_under_way_together(served: Served) -> None:
    with triton.InferenceServerClient(served.address.removeprefix("http://"), concurrency=4) as client:
        pending = [client.async_infer(SUM, [tensor(np.full((1, 1, 2), n, np.float32))]) for n in range(16)]
        values = [request.get_result().as_numpy("y")[0, 0, 0] for request in pending]
    assert values == list(range(16))


async def test_bodies_made_and_read_by_the_clients_own_functions(served: Served) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([tensor(X)])
    headers = {"Inference-Header-Content-Length": str(length)}
    answer = await asyncio.to_thread(
        httpx.post, f"{served.address}/v2/models/{LSTM}/infer", content=body, headers=headers
    )
    length = int(answer.headers["Inference-Header-Content-Length"])
    result = triton.InferenceServerClient.parse_response_body(answer.content, header_length=length)
    assert result.as_numpy("y").shape == (2, 6, 2)


REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("get_model_metadata", ("nobody",), {}, "404", "no model"),
    ("get_model_config", ("nobody",), {}, "404", "no model"),
    ("get_inference_statistics", ("nobody",), {}, "404", "no model"),
    ("load_model", ("nobody",), {}, "404", "no model"),
    ("unload_model", ("nobody",), {}, "404", "no model"),
    ("load_model", (BROKEN,), {}, "400", "could be loaded"),
    ("load_model", (LSTM,), {"config": "{}"}, "400", "cannot be sent"),
    ("infer", ("nobody", [tensor(X)]), {}, "404", "no model"),
    ("infer", (LSTM, [tensor(X)]), {"model_version": "9"}, "404", "no version"),
    ("infer", (LSTM, [tensor(X, name="u")]), {}, "400", "expected 'x' once"),
    ("infer", (LSTM, [tensor(X.astype(np.float64))]), {}, "400", "expected datatype FP32"),
    ("infer", (LSTM, [tensor(X[0])]), {}, "400", "expected shape"),
    ("infer", (LSTM, [tensor(X)]), {"outputs": [triton.InferRequestedOutput("u")]}, "400", "expected some of y"),
    ("infer", (LSTM, [tensor(X)]), {"outputs": [triton.InferRequestedOutput("y", class_count=2)]}, "400", "classif"),
    ("infer", (LSTM, [tensor(X[:1])]), {"sequence_id": 99}, "404", "must set sequence_start"),
    ("get_trace_settings", (), {}, "404", "trace settings are not part"),
    ("update_trace_settings", (), {"settings": {}}, "404", "trace settings are not part"),
    ("get_log_settings", (), {}, "404", "log settings are not part"),
    ("update_log_settings", ({},), {}, "404", "log settings are not part"),
    ("get_system_shared_memory_status", (), {}, "404", "shared memory is not part"),
    ("register_system_shared_memory", ("r", "k", 8), {}, "404", "shared memory is not part"),
    ("unregister_system_shared_memory", (), {}, "404", "shared memory is not part"),
    ("get_cuda_shared_memory_status", (), {}, "404", "shared memory is not part"),
    ("register_cuda_shared_memory", ("r", b"AAAA", 0, 8), {}, "404", "shared memory is not part"),
    ("unregister_cuda_shared_memory", (), {}, "404", "shared memory is not part"),
]


@pytest.mark.parametrize(("method", "args", "kwargs", "status", "words"), REFUSED)
async def test_what_is_refused_is_told_in_words(
    call: Call, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        await call(method, *args, **kwargs)
    assert caught.value.status() == status


async def test_shared_memory_as_an_input_is_refused_in_words(call: Call) -> None:
    described = triton.InferInput("x", [1, 1, 3], "FP32")
    described.set_shared_memory("region", 12)
    with pytest.raises(InferenceServerException, match="shared memory is not part"):
        await call("infer", LSTM, [described])


@pytest.mark.parametrize("kind", [triton, triton_aio])
def test_every_call_that_the_client_has_is_tried_here(kind: Any) -> None:
    source = Path(__file__).read_text()
    own = {"close", "register_plugin", "unregister_plugin", "plugin"}
    calls = {name for name, _ in inspect.getmembers(kind.InferenceServerClient, callable) if name[0] != "_"} - own
    assert [name for name in sorted(calls) if name not in source] == []
