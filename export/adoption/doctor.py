"""What a model may be served as, found by running it: cut and whole, together and alone, with states lost and crossed.

Nothing is believed because of its name: a model streams only if its pieces give what the whole gives, and a state
counts only if the answers change without it. Array legend: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations

import numpy as np

from export.adoption.patient import Patient, difference, rms
from export.adoption.plan import AdoptionError, Array

LIMIT = 1e-4
"""Of a difference that is rounding: relative to 1 + |value|."""
EXPECTED_LIMIT = 1e-3
"""The same, between this machine and another."""
QUANTIZED_LIMIT, QUANTIZED_SHARE = 0.1, 0.2
"""Of the root mean square between whole and steps of an int8 model: at most, and of what it is without its states."""
ONE_STEP_A_RUN = "int8: one step a run"
STEPS = 24
CUTS = ([1] * STEPS, [8, 8, 8], [1, 2, 4, 8, 9], [23, 1])
WARM_STEPS, SEEN_STEPS, TRIES = (6, 7, 3), 6, 3
ROWS = (2, 5, 17)
MAX_PERMUTED = 4
"""States of one shape whose every order is tried."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `worst` is a relative difference, None where there is none to tell."""

    check: str
    scope: str
    worst: float | None
    verdict: str


@dataclass(frozen=True)
class Diagnosis:
    findings: tuple[Finding, ...]
    streaming: bool
    exact: bool
    """Whatever runs beside a row and however its steps are cut, its results are equal bit for bit."""
    max_batch_size: int | None = None
    max_chunk_size: int | None = None


def diagnose(patient: Patient, *, many_rows: bool, many_steps: bool, quantized: bool = False) -> Diagnosis:
    """`quantized`: it scales activations by what runs together, so steps and rows in one run touch each other.

    Raises AdoptionError for a model that would answer wrongly however it was served.
    """
    findings = [_repeatable(patient, many_steps)]
    cut = _cut(patient, quantized) if many_steps else None
    findings.append(cut or Finding("whole == cut", "one call is one step", None, "nothing to compare"))
    fits_when_cut = cut is None or _within(cut) or cut.verdict == ONE_STEP_A_RUN
    if not fits_when_cut:
        findings.append(_future(patient))
    streaming = fits_when_cut and bool(patient.states)
    if streaming:
        findings += [*_dropped(patient), *_crossed(patient)]
    # of int8 equal answers prove nothing: a class stays the same until a score beside another's row tips it
    together = _together(patient, STEPS // 4 if many_steps else 1) if many_rows and not quantized else None
    alone = Finding("batched == alone", "int8 shares scales" if quantized else "it takes one row", None, "one by one")
    findings.append(together or alone)
    batched = together is not None and _within(together)
    cut_exact = not streaming or cut is None or cut.worst == 0
    one_step = streaming and (cut is None or cut.verdict == ONE_STEP_A_RUN)
    return Diagnosis(
        findings=tuple(findings),
        streaming=streaming,
        exact=cut_exact and not quantized and (together is None or together.worst == 0),
        max_batch_size=None if batched else 1,
        max_chunk_size=1 if one_step else None,
    )


def compare(patient: Patient, sample: Array, expected: Array) -> Finding:
    """Step through the sample from the beginning; raises AdoptionError unless that gives what its maker gets."""
    x = sample[None].astype(patient.input["dtype"])
    y = step_through(patient, x, patient.begin(1))[0]
    if y.size != expected.size:
        raise AdoptionError(f"the expected outputs are {list(expected.shape)}; the model gives {list(y[0].shape)}")
    worst = difference([expected.reshape(y.shape)], [y])
    if not worst <= EXPECTED_LIMIT:
        raise AdoptionError(
            f"stepped through the sample, it differs from the expected outputs by {worst:.1e}: a state, a context, a "
            "constant or an axis is not what its maker has"
        )
    return Finding("stream == expected", f"T {len(sample)}", worst, "as its maker has it")


def step_through(
    patient: Patient, x: Array, states: Sequence[Array], order: Sequence[int] | None = None
) -> list[Array]:
    """One step a run -> y and the last states. With `order`, state n is fed what came out of the state `order[n]`."""
    outputs, states = [], list(states)
    for step in range(x.shape[1]):
        y, *after = patient.session.run(x[:, step : step + 1], states)
        states = after if order is None else [after[place] for place in order]
        outputs.append(y)
    return [np.concatenate(outputs, axis=1), *states]


def _within(finding: Finding) -> bool:
    return finding.worst is not None and finding.worst <= LIMIT  # NaN is not


def _verdict(worst: float, otherwise: str) -> str:
    return "exact" if worst == 0 else "within rounding" if worst <= LIMIT else otherwise


def _repeatable(patient: Patient, many_steps: bool) -> Finding:
    x, states = patient.x(1, STEPS if many_steps else 1), patient.begin(1)
    first, second = patient.session.run(x, states), patient.session.run(x, states)
    if difference(first, second):
        raise AdoptionError("two equal runs give different answers: it draws random numbers")
    return Finding("run == run again", f"B 1, T {x.shape[1]}", 0.0, "exact")


def _cut(patient: Patient, quantized: bool) -> Finding:
    differences, steps, forgotten = [], [], []
    for session in patient.sessions:
        x, states = patient.x(1, STEPS), patient.begin(1)
        whole = session.run(x, states)
        differences += [difference(whole, session.run_chunks(x, states, cut)) for cut in CUTS]
        steps.append(rms(whole[0], step_through(patient, x, states)[0]))
        forgotten.append(
            rms(whole[0], np.concatenate([session.run(x[:, t : t + 1], states)[0] for t in range(STEPS)], 1))
        )
    worst = float(np.max(differences))
    verdict = _verdict(worst, "whole sequences only")
    if quantized and max(steps) <= min(QUANTIZED_LIMIT, QUANTIZED_SHARE * min(forgotten)):
        verdict = ONE_STEP_A_RUN
    elif not worst <= LIMIT:
        _refuse_crossed(patient)
    return Finding("whole == cut", f"T {STEPS} cut {len(CUTS)} ways", worst, verdict)


def _refuse_crossed(patient: Patient) -> None:
    """Does another pairing of states of one shape make the pieces equal to the whole?"""
    shapes = [spec["shape"] for spec in patient.states]
    if len(shapes) > MAX_PERMUTED:
        return
    x, states = patient.x(1, STEPS), patient.begin(1)
    whole = patient.session.run(x, states)[0]
    for order in permutations(range(len(shapes))):
        if all(shapes[a] == shapes[b] for a, b in enumerate(order)):
            pieces = step_through(patient, x, states, order)[0]
            if list(order) != sorted(order) and difference([whole], [pieces]) <= LIMIT:
                outputs = [patient.states[place]["output"] for place in order]
                right = " ".join(f"--state {s['name']}={o}" for s, o in zip(patient.states, outputs, strict=True))
                raise AdoptionError(f"its states are crossed: the pieces give what the whole gives with {right}")


def _future(patient: Patient) -> Finding:
    """Why do pieces differ from the whole? See whether earlier answers change with later inputs."""
    half, worst = STEPS // 2, 0.0
    for _ in range(TRIES):
        x, states = patient.x(1, STEPS), patient.begin(1)
        other = np.concatenate([x[:, :half], patient.x(1, half)], axis=1)
        y, z = (patient.session.run(values, states)[0][:, :half] for values in (x, other))
        worst = max(worst, difference([y], [z]))
    verdict = "it looks into the future" if worst else "it forgets at the end of a call: see --lift, --state, --context"
    return Finding("past == past", "another second half", worst, verdict)


def _dropped(patient: Patient) -> list[Finding]:
    findings = []
    for place, spec in enumerate(patient.states):
        worst = _change(patient, partial(_zeroed, place=place))
        if worst == 0:
            raise AdoptionError(
                f"the answers are the same without state {spec['name']!r}: its pair is suspicious. Say another "
                f"(--state {spec['name']}=OUTPUT), or its value if it is none (--constant {spec['name']}=...)"
            )
        findings.append(Finding("state matters", f"{spec['name']} dropped", worst, "answers change"))
    return findings


def _crossed(patient: Patient) -> list[Finding]:
    findings = []
    for a, b in combinations(range(len(patient.states)), 2):
        if patient.states[a]["shape"] != patient.states[b]["shape"]:
            continue
        order = list(range(len(patient.states)))
        order[a], order[b] = b, a
        worst = _change(patient, partial(_reordered, order=order))
        scope = f"{patient.states[a]['name']}, {patient.states[b]['name']} crossed"
        if worst == 0:
            raise AdoptionError(f"the answers are the same with {scope}: which is which must be told, and cannot be")
        findings.append(Finding("states differ", scope, worst, "answers change"))
    return findings


def _zeroed(states: list[Array], place: int) -> list[Array]:
    return [np.zeros_like(state) if n == place else state for n, state in enumerate(states)]


def _reordered(states: list[Array], order: Sequence[int]) -> list[Array]:
    return [states[place] for place in order]


def _change(patient: Patient, change: Callable[[list[Array]], list[Array]]) -> float:
    """How far answers go apart when the states are changed in the middle of a sequence; the most of several tries."""
    worst = []
    for steps in WARM_STEPS:
        _, *states = step_through(patient, patient.x(1, steps), patient.begin(1))
        x = patient.x(1, SEEN_STEPS)
        worst.append(difference(*(step_through(patient, x, s)[:1] for s in (states, change(states)))))
    return float(np.max(worst))


def _together(patient: Patient, T: int) -> Finding:
    """Rows in the middle of their sequences, each beside others and by itself."""
    differences = []
    for B in ROWS:
        for session in patient.sessions:
            _, *states = step_through(patient, patient.x(B, WARM_STEPS[0]), patient.begin(B))
            x = patient.x(B, T)
            y, *after = session.run(x, states)
            for b in range(B):
                alone = session.run(x[b : b + 1], patient.rows(states, b, b + 1))
                differences.append(difference(alone, [y[b : b + 1], *patient.rows(after, b, b + 1)]))
    worst = float(np.max(differences))
    return Finding("batched == alone", f"B up to {max(ROWS)}, T {T}", worst, _verdict(worst, "one by one"))
