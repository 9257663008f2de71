"""An unknown ONNX file -> a file that the server runs, with what was found out about it in its manifest.

lift if asked -> inspect -> canonicalise -> doctor -> manifest. Meant to run in the sandbox; it may as well be called.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import onnx

from export.adoption.canonical import Canonical, canonicalise
from export.adoption.doctor import LIMIT, STEPS, Diagnosis, Finding, compare, diagnose, step_through
from export.adoption.graph_edit import walk
from export.adoption.inspect import inspect
from export.adoption.lift import lift
from export.adoption.opened import Manners, find_manners, modern, open_file, put_constants, session
from export.adoption.pairs import find_pair
from export.adoption.patient import Patient, difference
from export.adoption.plan import AdoptionError, Array, Plan, Stream, Wishes
from export.adoption.read import FLOATS, tensors
from export.metadata import FORMAT, Document, with_manifest

_CELLS = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm", "DynamicQuantizeLSTM": "lstm"}


@dataclass(frozen=True)
class Adopted:
    data: bytes
    """The file to publish."""
    report: Document
    """For people: `tensors`, `findings`, `served`, `notes`."""


def adopt(
    proto: onnx.ModelProto, data: bytes, wishes: Wishes, begin: Callable[[str], None] = lambda phase: None
) -> Adopted:
    """`proto` is what `read` made of `data`; `begin` is told the phases "try" and "doctor". Raises AdoptionError."""
    begin("try")
    proto = modern(proto)
    put_constants(proto, wishes.constants)
    lifted, wishes = _lifted(proto, wishes)
    plan = inspect(lifted, wishes)
    manners, canonical = _rewrite(lifted, plan)
    begin("doctor")
    patient = Patient(with_manifest(canonical.proto, _draft(canonical)), wishes.sample, bounds=plan.bounds)
    quantized = any(node.op_type.startswith("DynamicQuantize") for node in walk(proto.graph))
    diagnosis = diagnose(patient, many_rows=manners.many_rows, many_steps=manners.many_steps, quantized=quantized)
    extra = [_unlifted(proto, wishes, patient, manners)] if wishes.lift else []
    if wishes.expected is not None and wishes.sample is not None:
        extra.append(compare(patient, wishes.sample, wishes.expected))
    else:
        _check_against_names(lifted, wishes, manners)
    diagnosis = replace(diagnosis, findings=(*diagnosis.findings, *extra))
    if wishes.max_batch_size and diagnosis.max_batch_size is None:
        diagnosis = replace(diagnosis, max_batch_size=wishes.max_batch_size)
    manifest = _manifest(proto, data, canonical, diagnosis, patient.token_counts, wishes.about)
    return Adopted(
        with_manifest(canonical.proto, manifest), _report(plan, wishes.constants, manners, diagnosis, manifest)
    )


def _lifted(proto: onnx.ModelProto, wishes: Wishes) -> tuple[onnx.ModelProto, Wishes]:
    if not wishes.lift:
        return proto, wishes
    lifted, pairs = lift(proto)
    return lifted, replace(wishes, states={**wishes.states, **pairs})


def _rewrite(proto: onnx.ModelProto, plan: Plan) -> tuple[Manners, Canonical]:
    opened = open_file(proto, plan)
    manners = find_manners(session(opened), plan)
    return manners, canonicalise(opened, plan, manners)


def _draft(canonical: Canonical) -> Document:
    return {"inputs": [canonical.input], "outputs": [canonical.output], "states": list(canonical.states)}


def _unlifted(proto: onnx.ModelProto, wishes: Wishes, patient: Patient, manners: Manners) -> Finding:
    """From zeros, the file with its states lifted answers as it did before, where whole sequences were all it took."""
    own = {info.name for info in proto.graph.input}
    before = replace(wishes, lift=False, states={a: b for a, b in wishes.states.items() if a in own})
    plan = inspect(proto, before)
    _, canonical = _rewrite(proto, plan)
    original = Patient(with_manifest(canonical.proto, _draft(canonical)), wishes.sample, bounds=plan.bounds)
    x = patient.x(1, STEPS)
    y = original.session.run(x, original.begin(1))[0]
    if manners.many_steps:
        worst = difference([y], patient.session.run(x, patient.begin(1))[:1])
    else:
        worst = difference([y[:, -1]], [step_through(patient, x, patient.begin(1))[0][:, -1]])
    if not worst <= LIMIT:
        raise AdoptionError(f"--lift: whole sequences differ from what they were, by {worst:.1e}")
    return Finding("lifted == before", f"whole, T {STEPS}", worst, "exact" if worst == 0 else "within rounding")


def _check_against_names(proto: onnx.ModelProto, wishes: Wishes, manners: Manners) -> None:
    """Where a call is a step, no whole proves a pairing: one that the names speak against needs another proof."""
    if manners.many_steps:
        return
    outputs = [info.name for info in proto.graph.output]
    for name, output in wishes.states.items():
        found = find_pair(name, outputs)
        if found and found[0] != output:
            raise AdoptionError(
                f"--state {name}={output} goes against the names, which say {name}={found[0]}. One call is one step, "
                "so no whole sequence can prove it: bring --sample X.npy and --expect Y.npy, what its maker gets"
            )


def _manifest(
    proto: onnx.ModelProto,
    data: bytes,
    canonical: Canonical,
    diagnosis: Diagnosis,
    token_counts: list[int | None] | None,
    about: Mapping[str, Any],
) -> Document:
    cells = {_CELLS[node.op_type] for node in walk(proto.graph) if node.op_type in _CELLS}
    counts = token_counts if token_counts and all(token_counts) else None
    return {
        "format": FORMAT,
        "name": about["name"],
        "task": about.get("task") or "unspecified",
        "description": about.get("description") or "",
        "cell": "+".join(sorted(cells)) or "custom",
        "parameters": sum(math.prod(tensor.dims) for tensor in tensors(proto) if tensor.data_type in FLOATS),
        "streaming": diagnosis.streaming,
        "batch_invariant": diagnosis.exact,
        "max_batch_size": diagnosis.max_batch_size,
        "max_chunk_size": diagnosis.max_chunk_size,
        "inputs": [canonical.input | {"token_counts": counts}],
        "outputs": [canonical.output | {"kind": about.get("kind") or "value"}],
        "states": list(canonical.states),
        "origin": {
            "file": about.get("file") or "",
            "sha256": hashlib.sha256(data).hexdigest(),
            "producer": " ".join(filter(None, (proto.producer_name, proto.producer_version)))[:200],
            "source": about.get("source") or "",
            "licence": about.get("licence") or "",
        },
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _report(
    plan: Plan, constants: Mapping[str, Array], manners: Manners, diagnosis: Diagnosis, manifest: Document
) -> Document:
    lines: list[tuple[str, str, list[str | int], str]] = [
        *((s.name, "data", _shape(s), s.reason) for s in plan.inputs),
        *((s.name, "output", _shape(s), "run with other sizes") for s in manners.outputs),
        *((s.name, f"state -> {s.output}", list(s.shape), s.reason) for s in plan.states),
        *((s.name, "once a sequence", list(s.shape), s.reason) for s in plan.once),
        *((tensor.name, "length", [], "its name and type") for tensor in plan.lengths),
        *((name, "constant", list(value.shape), "you said so") for name, value in constants.items()),
        *((name, f"context of {size}", [], "you said so") for name, size in plan.contexts.items() if size),
    ]
    return {
        "tensors": lines,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "served": _served(diagnosis),
        "cell": manifest["cell"],
        "parameters": manifest["parameters"],
    }


def _served(diagnosis: Diagnosis) -> str:
    how = "streams and whole sequences" if diagnosis.streaming else "whole sequences only"
    rows = "one by one" if diagnosis.max_batch_size == 1 else "batched"
    matters = {
        "whole == cut": diagnosis.streaming and diagnosis.max_chunk_size != 1,
        "batched == alone": diagnosis.max_batch_size != 1,
    }
    worst = max((f.worst for f in diagnosis.findings if matters.get(f.check) and f.worst), default=0.0)
    exactness = f"within {worst:.0e}" if worst else "bit for bit"
    return f"{how}, {rows}, {exactness}"


def _shape(stream: Stream) -> list[str | int]:
    return [axis if isinstance(axis, str) else stream.step[axis] for axis in stream.order]
