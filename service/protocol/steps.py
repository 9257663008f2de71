"""The body of a `steps` call, typed fields and inputs in one pass; for small JSON bodies that fit."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from service.model_spec import ModelSpec, TensorSpec
from service.protocol.arrays import Array
from service.protocol.bodies import ReadStepsBody

_MOST = float(np.nextafter(float(np.finfo(np.float32).max) + 2.0**103, 0))  # what is more becomes infinite in float32
_Finite = Annotated[float, Meta(ge=-_MOST, le=_MOST)]


class StepsReader:
    """Reads the bodies of one model. Raises one of MISFITS, without a reason, for what does not fit in every way."""

    def __init__(self, spec: ModelSpec) -> None:
        self._dtype = np.dtype(spec.input.dtype)
        self._step_shape = spec.input.step_shape
        self._limits = spec.input.token_limits if spec.input.token_limits.ndim else None
        self._decode = msgspec.json.Decoder(ReadStepsBody[_inputs_type(spec.input)]).decode  # type: ignore[misc]

    def read(self, body: bytes) -> tuple[ReadStepsBody[Any], Array]:
        """The fields, and the inputs as `(T, F)` float32 or `(T,)` int64."""
        fields = self._decode(body)
        inputs: Array = np.array(fields.inputs, self._dtype)
        if inputs.shape[1:] != self._step_shape or not len(inputs):
            raise ValueError("the inputs have another shape")
        if self._limits is not None and (inputs >= self._limits).any():
            raise ValueError("there is no such token")
        return fields, inputs


def _inputs_type(tensor: TensorSpec) -> Any:
    inner: Any = _Finite
    if tensor.dtype == "int64":
        inner = Annotated[int, Meta(ge=0, le=int(tensor.token_limits.max()) - 1)]
    for _ in range(1 + len(tensor.step_shape)):
        inner = list[inner]
    return inner
