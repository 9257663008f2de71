"""Baseline: what a good engineer writes in an afternoon. FastAPI and pydantic, a dict of states, a run a request.

No batching, no keys, no leases, no limits. It has what such a server would have: onnxruntime with one thread for its
one core, no thread pool hop for a run of microseconds, orjson for the answer, no access log, uvloop and httptools.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

STATE_NAMES = ("h", "c")


class StepsBody(BaseModel):
    inputs: list[list[float]]
    step: int | None = None
    start: bool = False


class Model:
    """One ONNX file with its states by sequence id: [step, h, c]."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        shapes = {node.name: node.shape for node in self.session.get_inputs()}
        self.zeros = [np.zeros((shapes[name][0], 1, shapes[name][2]), np.float32) for name in STATE_NAMES]
        self.sequences: dict[str, list[Any]] = {}


def create_app(repository: Path) -> FastAPI:
    app = FastAPI()
    models = {path.parts[-3]: Model(path) for path in sorted(repository.glob("*/*/model.onnx"))}

    @app.post("/v1/models/{model}/sequences/{sequence_id}/steps")
    async def steps(model: str, sequence_id: str, body: StepsBody) -> Response:
        loaded = models.get(model)
        if loaded is None:
            raise HTTPException(404, "no such model")
        sequence = loaded.sequences.get(sequence_id)
        if sequence is None:
            if not body.start:
                raise HTTPException(404, "no such sequence")
            sequence = loaded.sequences[sequence_id] = [0, *loaded.zeros]
        if body.step is not None and body.step != sequence[0]:
            raise HTTPException(409, f"expected step {sequence[0]}")
        x = np.array([body.inputs], np.float32)
        y, *state = loaded.session.run(None, {"x": x, "h": sequence[1], "c": sequence[2]})
        sequence[:] = [sequence[0] + len(body.inputs), *state]
        answer = {"sequence_id": sequence_id, "step": sequence[0], "outputs": y[0].tolist()}
        return Response(orjson.dumps(answer), media_type="application/json")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    args = parser.parse_args()
    uvicorn.run(
        create_app(args.repository),
        port=args.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
