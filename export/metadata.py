"""The manifest inside an ONNX file: one JSON document under one metadata key. Knows neither torch nor onnxruntime."""

from __future__ import annotations

import json
from typing import Any

import onnx
from onnx import helper

METADATA_KEY = "carousel"
FORMAT = 1

Document = dict[str, Any]


def read_manifest(proto: onnx.ModelProto) -> Document:
    manifest: Document = json.loads(next(entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY))
    return manifest


def with_manifest(proto: onnx.ModelProto, manifest: Document) -> bytes:
    """The file, with `manifest` for its only metadata. Equal models and manifests give equal bytes."""
    helper.set_model_props(proto, {METADATA_KEY: json.dumps(manifest, ensure_ascii=False)})
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
