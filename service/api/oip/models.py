"""What is served, as the Open Inference Protocol tells it: server and model metadata, configuration, readiness."""

from __future__ import annotations

from typing import Any

from service.api import health
from service.api.call import Call, Reply
from service.api.oip.errors import problem
from service.errors import CarouselError, VersionNotFound
from service.model_spec import ModelSpec, TensorSpec
from service.protocol.oip.tensors import datatype_of
from service.registry import LoadedModel
from service.settings import Settings

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = [
    "sequence",
    "sequence(string_id)",
    "binary_tensor_data",
    "model_repository",
    "model_configuration",
    "statistics",
    "parameters",
]
NOT_READY = 400


def model_of(call: Call) -> LoadedModel:
    """The model in the path, at the version there. Raises ModelNotFound, VersionNotFound, ModelNotReady."""
    return call.service.registry.get(call.path("model"), version_of(call))


def version_of(call: Call) -> int | None:
    """The version in the path. Raises VersionNotFound for one that no version is called by."""
    text: str | None = call.scope["path_params"].get("version")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise VersionNotFound("A version is a whole number.", expected="1, 2, 3, ...", received=text[:40])
    return int(text)


async def live(call: Call) -> Reply:
    """200 as long as the process answers at all."""
    return _yes(call, live=True)


async def ready(call: Call) -> Reply:
    """200 once models are loaded and warm; 400 before that, while draining, and when no model could be loaded."""
    try:
        await health.ready(call)
    except CarouselError as error:
        return not_ready(call, error)
    return _yes(call, ready=True)


async def model_ready(call: Call) -> Reply:
    """200 when the model can be called; 400 when it cannot, or is not there."""
    try:
        model = model_of(call)
    except CarouselError as error:
        return not_ready(call, error)
    return _yes(call, name=model.name, ready=True)


async def server_metadata(call: Call) -> Reply:
    """Name, version and the extensions of the protocol that are served."""
    app = call.scope["app"]
    return call.answer({"name": app.title.lower(), "version": app.version, "extensions": EXTENSIONS})


async def model_metadata(call: Call) -> Reply:
    """Versions and tensors. The states stand after the input and the output; as inputs they may be left out."""
    model = model_of(call)
    spec, versions = model.spec, call.service.registry.versions(model.name)[0]
    states_in = [_metadata(state.input, state.dtype, (-1, *state.row_shape)) for state in spec.states]
    states_out = [_metadata(state.output, state.dtype, (-1, *state.row_shape)) for state in spec.states]
    return call.answer(
        {
            "name": model.name,
            "versions": [str(loaded.version) for loaded in versions],
            "platform": PLATFORM,
            "inputs": [*(_metadata(x.name, x.dtype, (-1, -1, *x.step_shape)) for x in spec.inputs), *states_in],
            "outputs": [*(_metadata(y.name, y.dtype, (-1, -1, *y.step_shape)) for y in spec.outputs), *states_out],
        }
    )


async def model_config(call: Call) -> Reply:
    """The model configuration that clients of Triton read: shapes without the batch axis, and the states."""
    model = model_of(call)
    return call.answer(_config(model, call.service.settings))


def _yes(call: Call, **document: Any) -> Reply:
    """An empty answer, as most servers of the protocol give; its document for callers who say that they read JSON."""
    wants_json = call.codec.content_type in (call.header(b"accept") or "")
    return call.answer(document) if wants_json else Reply()


def not_ready(call: Call, error: CarouselError) -> Reply:
    """The error, with the status that clients of the protocol expect of what is not ready."""
    reply = problem(error, call.scope["path"])
    reply.status = NOT_READY
    return reply


def _metadata(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype_of(dtype), "shape": shape}


def _config(model: LoadedModel, settings: Settings) -> dict[str, Any]:
    spec = model.spec
    states_in = [
        _config_tensor(state.input, state.dtype, state.row_shape, optional=not state.required) for state in spec.states
    ]
    states_out = [_config_tensor(state.output, state.dtype, state.row_shape) for state in spec.states]
    config = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": settings.max_batch,
        "input": [*(_step_tensor(tensor) for tensor in spec.inputs), *states_in],
        "output": [*(_step_tensor(tensor) for tensor in spec.outputs), *states_out],
        "default_model_filename": "model.onnx",
        "parameters": {},
    }
    if spec.streaming:
        config["sequence_batching"] = _sequence_batching(spec, settings)
    return config


def _sequence_batching(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    return {
        "max_sequence_idle_microseconds": int(settings.sequence_ttl_seconds * 1e6),
        "oldest": {"max_candidate_sequences": settings.max_sequences},
        "control_input": [],
        "state": [
            {
                "input_name": state.input,
                "output_name": state.output,
                "data_type": f"TYPE_{datatype_of(state.dtype)}",
                "dims": state.row_shape,
                "initial_state": []
                if state.required
                else [
                    {
                        "name": "zeros",
                        "data_type": f"TYPE_{datatype_of(state.dtype)}",
                        "dims": state.row_shape,
                        "zero_data": True,
                    }
                ],
            }
            for state in spec.states
        ],
    }


def _step_tensor(tensor: TensorSpec) -> dict[str, Any]:
    return _config_tensor(tensor.name, tensor.dtype, (-1, *tensor.step_shape))


def _config_tensor(name: str, dtype: str, dims: tuple[int, ...], *, optional: bool = False) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": name, "data_type": f"TYPE_{datatype_of(dtype)}", "dims": dims}
    return {**tensor, "optional": True} if optional else tensor
