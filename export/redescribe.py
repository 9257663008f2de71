"""`python -m export.redescribe FILE...`: gives published files the `feedback` that their tasks declare since.

Only the manifest changes. The graph, and with it every answer, stays as it was, which is checked: the same graph to the
last byte, and the test figure that the file tells, measured anew. The fingerprint is another one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx

from export.convert import ExportError
from export.metadata import read_manifest, with_manifest
from export.session import Session
from models.tasks import TASKS

LIMIT = 1e-4


def redescribe(data: bytes) -> bytes:
    """The file with its task's `feedback`. Raises ExportError for a model of no such task, or not what it says."""
    proto = onnx.load_from_string(data)
    manifest = read_manifest(proto)
    task = TASKS.get(manifest["name"])
    if task is None or task.feedback is None:
        raise ExportError(f"{manifest['name']!r} is no task that declares feedback")
    feedback = {"feedback": [dict(source) for source in task.feedback]}
    described: dict[str, object] = {}
    for key, value in manifest.items():
        described |= {key: value} | (feedback if key == "states" else {})
    graph = proto.graph.SerializeToString(deterministic=True)
    changed = with_manifest(proto, described | feedback)
    if onnx.load_from_string(changed).graph.SerializeToString(deterministic=True) != graph:
        raise ExportError(f"{manifest['name']!r}: the graph did not stay the same")
    told = next(metric["value"] for metric in manifest["metrics"] if metric["name"] == task.metric_name)
    measured = task.evaluate(Session(changed).predict)
    if abs(measured - told) > LIMIT * abs(told):
        raise ExportError(f"{manifest['name']!r}: {task.metric_name} is {measured:.6g}, and the file says {told:.6g}")
    return changed


def main(paths: list[str]) -> int:
    for path in map(Path, paths):
        try:
            data = redescribe(path.read_bytes())
        except (ExportError, OSError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 1
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
        print(f"redescribed {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
