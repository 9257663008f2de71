"""The plain infer request and its answer, for the short way: the next steps of a sequence, in binary form both ways.

What is not plain in every respect gets its verdict where every request gets it.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from service.engine.request import Result
from service.model_spec import ModelSpec
from service.protocol.arrays import Array
from service.protocol.misfits import MISFITS
from service.protocol.oip.bodies import MAX_NUMBER, InferBody, OutputTensor
from service.protocol.oip.tensors import datatype_of

FEW = 256
"""Numbers that are quicker looked at one by one than as an array."""

_decode = msgspec.json.Decoder(InferBody).decode


def open_plain(body: bytes, json_length: bytes) -> tuple[InferBody, int] | None:
    """The JSON of a request that goes on with one sequence, and where its binary data begin; None: it is not plain.

    `json_length` is the value of the header, empty without one.
    """
    if not json_length.isdigit():
        return None
    begin = int(json_length)
    if not 0 < begin < len(body):
        return None
    try:
        fields = _decode(body[:begin])
    except MISFITS:
        return None
    p = fields.parameters
    if (
        p is None
        or not p.sequence_id
        or p.sequence_start
        or p.sequence_end
        or p.sequence_takeover
        or p.sequence_ids is not None
        or p.timeout
        or not (isinstance(p.sequence_id, str) or 0 < p.sequence_id <= MAX_NUMBER)
    ):
        return None
    return fields, begin


class PlainInfer:
    """Reads plain requests to one model version, and writes their answers."""

    def __init__(self, name: str, version: int, spec: ModelSpec) -> None:
        x, y = spec.input, spec.output
        self._input, self._output = x.name, y.name
        self._datatype = datatype_of(x.dtype)
        self._dtype = np.dtype(x.dtype)
        self._step_shape = list(x.step_shape)
        self._step_bytes = x.step_bytes
        self._limits = x.token_limits
        # a template: encoding the same names anew costs as much as the rest of the answer
        head = msgspec.json.encode({"model_name": name, "model_version": str(version)})[:-1].replace(b"%", b"%%")
        tensor = msgspec.json.encode({"name": y.name, "datatype": datatype_of(y.dtype)})[:-1].replace(b"%", b"%%")
        sizes = "".join(f",{size}" for size in y.step_shape).encode()
        self._template = (
            head + b'%b,"parameters":{"sequence_id":%b,"sequence_step":%d,"sequence_replayed":%b,'
            b'"sequence_expires_at":"%b"},"outputs":['
            + tensor
            + b',"shape":[1,%d'
            + sizes
            + b'],"parameters":{"binary_data_size":%d}}]}'
        )

    def read(self, fields: InferBody, body: bytes, begin: int, max_steps: int) -> Array | None:
        """The inputs, `(T, F)` or `(T,)`: a view of the body. None: they are not plain."""
        inputs, size = fields.inputs, len(body) - begin
        if len(inputs) != 1 or not self._asks_for_binary_output(fields):
            return None
        x = inputs[0]
        shape, described = x.shape, x.parameters
        if (
            x.name != self._input
            or x.datatype != self._datatype
            or x.data
            or described is None
            or described.binary_data_size != size
            or described.shared_memory_region
            or shape[2:] != self._step_shape
            or len(shape) < 2
            or shape[0] != 1
            or not 0 < shape[1] <= max_steps
            or size != shape[1] * self._step_bytes
        ):
            return None
        array: Array = np.ndarray(shape[1:], self._dtype, body, begin)
        return array if self._is_in_range(array, body, begin) else None

    def write(self, fields: InferBody, result: Result, expires_at: str) -> tuple[bytes, int]:
        """The body of the answer, and how much of it is JSON."""
        assert fields.parameters is not None, "they name the sequence"
        sequence_id, data = fields.parameters.sequence_id, result.outputs.tobytes()
        head = self._template % (
            b"" if fields.id is None else b',"id":' + msgspec.json.encode(fields.id),
            # the id of a sequence needs no escapes
            b'"%b"' % sequence_id.encode() if isinstance(sequence_id, str) else b"%d" % sequence_id,
            result.position,
            b"true" if result.replayed else b"false",
            expires_at.encode(),
            len(result.outputs),
            len(data),
        )
        return head + data, len(head)

    def _asks_for_binary_output(self, fields: InferBody) -> bool:
        usual = fields.parameters is not None and fields.parameters.binary_data_output
        if not fields.outputs:
            return usual
        return (
            len(fields.outputs) == 1 and fields.outputs[0].name == self._output and _is_binary(fields.outputs[0], usual)
        )

    def _is_in_range(self, array: Array, body: bytes, begin: int) -> bool:
        if self._dtype == np.int64:
            return bool((array >= 0).all() and (array < self._limits).all())
        if array.size > FEW:
            return bool(np.isfinite(array).all())
        # the sum of so few float32 numbers is finite if they are
        return math.isfinite(sum(memoryview(body)[begin:].cast("f")))


def _is_binary(output: OutputTensor, usual: bool) -> bool:
    asked = output.parameters
    if asked is None:
        return usual
    if asked.classification or asked.shared_memory_region:
        return False
    return usual if asked.binary_data is None else asked.binary_data
