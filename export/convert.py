"""A checkpoint's model and info -> the bytes of one self-describing ONNX file.

Equal checkpoints give equal bytes, but for the creation time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import onnx
from onnx import helper

from export.graph import IR_VERSION, OPSET, build_graph
from export.manifest import ExportError, build_manifest
from export.metadata import with_manifest
from models.sequence_model import SequenceModel

__all__ = ["ExportError", "convert"]


def convert(
    model: SequenceModel,
    info: dict[str, Any],
    name: str,
    created_at: str | None = None,
    max_batch_size: int | None = None,
) -> bytes:
    """Returns the file. `created_at` is ISO 8601 in UTC, by default now; `max_batch_size` binds the server.

    Raises ExportError when `info` does not describe this model, or a weight is not finite.
    """
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ExportError(f"{key} has values that are not finite: the training diverged")
    created_at = created_at or datetime.now(UTC).isoformat(timespec="seconds")
    manifest = build_manifest(model, info, name, created_at)
    if max_batch_size is not None:
        manifest["max_batch_size"] = max_batch_size
    proto = helper.make_model(
        build_graph(model),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="carousel",
    )
    onnx.checker.check_model(proto, full_check=True)
    return with_manifest(proto, manifest)
