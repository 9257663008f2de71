"""Manifests of models whose input is what a test is about."""

from __future__ import annotations

from typing import Any

from service.model_spec import ModelSpec


def spec(*step_shape: int, **tensor: Any) -> ModelSpec:
    """A model that takes `(T, *step_shape)` float32, unless `tensor` says more of its input, and gives `(T, 1)`."""
    return ModelSpec.model_validate(
        {
            "format": 1,
            "name": "m",
            "task": "regression",
            "cell": "lstm",
            "layers": 1,
            "hidden_size": 2,
            "parameters": 0,
            "streaming": True,
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", "time", *step_shape], **tensor}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", "time", 1]}],
            "states": [{"name": "h", "input": "h", "output": "h_next", "shape": [1, "batch", 2]}],
            "created_at": "2026-01-01T00:00:00Z",
        }
    )
