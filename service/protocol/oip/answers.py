"""The answer to an infer request: JSON, then the binary tensors in the order of the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.protocol.oip.tensors import datatype_of

Rows = list[NDArray[Any]]
"""A tensor without its batch axis, once for each row; all of one shape."""


def encode_answer(document: dict[str, Any], outputs: list[tuple[str, Rows, bool]]) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON; None is all of it. `outputs` are (name, rows, in binary?)."""
    tensors, buffers = [], []
    for name, rows, is_binary in outputs:
        shape = [len(rows), *rows[0].shape]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(rows[0].dtype.name), "shape": shape}
        if is_binary:
            pieces = [row.tobytes() for row in rows]
            tensor["parameters"] = {"binary_data_size": len(pieces[0]) * len(pieces)}
            buffers += pieces
        else:
            tensor["data"] = np.concatenate([row.ravel() for row in rows])
        tensors.append(tensor)
    head = orjson.dumps({**document, "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    has_binary = any(is_binary for _, _, is_binary in outputs)
    return b"".join([head, *buffers]), len(head) if has_binary else None
