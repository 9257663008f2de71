"""Calls of the Open Inference Protocol, put together by hand."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import orjson

from tests.service.api.oip.schema import ERROR, INFER, check

Array = np.ndarray[Any, Any]
JSON_LENGTH = "inference-header-content-length"
DATATYPES = {"f4": "FP32", "i8": "INT64"}


def tensor(name: str, values: Any, dtype: str = "f4") -> dict[str, Any]:
    array = np.asarray(values, dtype)
    return {"name": name, "datatype": DATATYPES[dtype], "shape": array.shape, "data": array.ravel().tolist()}


async def infer(client: httpx.AsyncClient, model: str, *inputs: dict[str, Any], **fields: Any) -> dict[str, Array]:
    """Outputs by name of a call in JSON that goes well."""
    answer = await post(client, model, *inputs, **fields)
    assert answer.status_code == 200, answer.text
    return outputs_of(answer)


async def post(client: httpx.AsyncClient, model: str, *inputs: dict[str, Any], **fields: Any) -> httpx.Response:
    return await client.post(f"/v2/models/{model}/infer", json={"inputs": inputs, **fields})


async def post_binary(
    client: httpx.AsyncClient, model: str, values: Array, headers: dict[str, str] | None = None, **parameters: Any
) -> httpx.Response:
    """`values` is the input x, `(B, T, F)`, and all outputs come back in binary form."""
    described = {"name": "x", "datatype": DATATYPES[values.dtype.str[1:]], "shape": values.shape}
    described["parameters"] = {"binary_data_size": values.nbytes}
    head = orjson.dumps({"inputs": [described], "parameters": {"binary_data_output": True, **parameters}})
    sent = {JSON_LENGTH: str(len(head)), **(headers or {})}
    return await client.post(f"/v2/models/{model}/infer", content=head + values.tobytes(), headers=sent)


def outputs_of(answer: httpx.Response) -> dict[str, Array]:
    """Both forms, after holding the answer to the protocol's schema."""
    length = answer.headers.get(JSON_LENGTH)
    assert answer.headers["content-type"] == ("application/json" if length is None else "application/octet-stream")
    at = len(answer.content) if length is None else int(length)
    document = check(INFER, orjson.loads(answer.content[:at]))
    outputs = {}
    for output in document["outputs"]:
        if "data" in output:
            values = np.array(output["data"], np.float32)
        else:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(answer.content[at : at + size], np.float32)
            at += size
        outputs[output["name"]] = values.reshape(output["shape"])
    assert at == len(answer.content), "nothing is left over"
    return outputs


def parameters_of(answer: httpx.Response) -> dict[str, Any]:
    length = int(answer.headers.get(JSON_LENGTH, len(answer.content)))
    parameters: dict[str, Any] = orjson.loads(answer.content[:length]).get("parameters", {})
    return parameters


def error_of(answer: httpx.Response, status: int, words: str = "") -> dict[str, Any]:
    """The error, after checking that it has the protocol's form."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    document: dict[str, Any] = check(ERROR, answer.json())
    assert words in document["error"], document
    return document
