"""What calls answer, with NumPy arrays in it. T steps, F features, O outputs, L layers, H hidden."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carousel_client.core.arrays import Floats, to_floats, to_state

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model in the list. `version` is the newest that is ready; `reason` says why none is."""

    name: str
    version: int
    versions: tuple[int, ...]
    ready: bool
    task: str | None
    cell: str | None
    description: str
    reason: str | None

    @classmethod
    def read(cls, line: Document) -> ModelLine:
        told = (line.get("task"), line.get("cell"), line.get("description", ""), line.get("reason"))
        return cls(line["name"], line["version"], tuple(line["versions"]), line["ready"], *told)


@dataclass(frozen=True, slots=True)
class Tensor:
    """`step_shape` is one step's, or a whole state's, without batch and time."""

    name: str
    dtype: str
    step_shape: tuple[int, ...]
    unit: str | None
    labels: tuple[str, ...] | None
    vocabulary: tuple[str, ...] | None

    @classmethod
    def read(cls, told: Document) -> Tensor:
        shape = tuple(size for size in told["shape"] if size != "time")
        labels, vocabulary = (
            None if told.get(name) is None else tuple(told[name]) for name in ("labels", "vocabulary")
        )
        return cls(told["name"], told["dtype"], shape, told.get("unit"), labels, vocabulary)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model takes, gives and carries; `document` has all that the server tells of it."""

    name: str
    version: int
    task: str
    cell: str
    streaming: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    document: Document

    @classmethod
    def read(cls, card: Document) -> ModelCard:
        inputs, outputs, states = (tuple(map(Tensor.read, card[name])) for name in ("inputs", "outputs", "states"))
        told = (card["name"], card["version"], card["task"], card["cell"], card["streaming"])
        return cls(*told, inputs, outputs, states, card)


@dataclass(frozen=True, slots=True)
class Prediction:
    """`outputs` are `(T, O)`, `(1, O)` or empty, as asked; `final_state` and `state_token` go on from there."""

    outputs: Floats
    steps: int
    final_state: dict[str, Floats] | None
    state_token: str | None
    version: int

    @classmethod
    def read(cls, sequence: Document, version: int) -> Prediction:
        state, token = to_state(sequence.get("final_state")), sequence.get("state_token")
        return cls(to_floats(sequence["outputs"]), sequence["steps"], state, token, version)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a sequence stands, and until when it is kept."""

    sequence_id: str
    model: str
    version: int
    step: int
    expires_at: datetime

    @classmethod
    def read(cls, told: Document) -> Position:
        at = datetime.fromisoformat(told["expires_at"])
        return cls(told["sequence_id"], told["model"], told["version"], told["step"], at)


@dataclass(frozen=True, slots=True)
class Stepped:
    """The answer to one call of `step`: `outputs` `(T, O)`, `(1, O)` or empty; the sequence stands at `step`.

    `replayed`: these steps were done before, and nothing was run again. `expires_at` is None on a stream.
    """

    sequence_id: str
    step: int
    outputs: Floats
    final_state: dict[str, Floats] | None
    replayed: bool
    expires_at: datetime | None

    @classmethod
    def read(cls, told: Document) -> Stepped:
        state, at = to_state(told.get("final_state")), datetime.fromisoformat(told["expires_at"])
        return cls(told["sequence_id"], told["step"], to_floats(told["outputs"]), state, told["replayed"], at)


@dataclass(frozen=True, slots=True)
class StateAt:
    """A sequence's state after `step` steps; `token` is the same, sealed."""

    step: int
    state: dict[str, Floats]
    token: str | None

    @classmethod
    def read(cls, told: Document) -> StateAt:
        return cls(told["step"], to_state(told["state"]) or {}, told.get("state_token"))


@dataclass(frozen=True, slots=True)
class GeneratedStep:
    """One step as it comes: `token` and its `text`, or of a forecaster the `value` `(F,)` that it was fed.

    `output` `(O,)` is what the model put out just before, where outputs were asked for.
    """

    number: int
    step: int
    token: int | None
    text: str | None
    value: Floats | None
    output: Floats | None

    @classmethod
    def read(cls, told: Document) -> GeneratedStep:
        value, output = (None if told.get(name) is None else to_floats(told[name]) for name in ("value", "output"))
        return cls(told["number"], told["step"], told.get("token"), told.get("text"), value, output)


@dataclass(frozen=True, slots=True)
class Generated:
    """All that was generated: `tokens` `(steps,)` and `text`, or of a forecaster `values` `(steps, F)`.

    `outputs` `(steps, O)` came just before each of them, where asked for; `final_state` has seen inputs and all of it.
    `state_token` seals that; a rollout of a sequence has none.
    """

    step: int
    steps: int
    finish_reason: str
    text: str | None
    tokens: NDArray[np.int64] | None
    seed: int | None
    values: Floats | None
    outputs: Floats
    final_state: dict[str, Floats] | None
    state_token: str | None
    replayed: bool

    @classmethod
    def read(cls, told: Document) -> Generated:
        tokens = None if told.get("tokens") is None else np.array(told["tokens"], np.int64)
        return cls(
            step=told["step"],
            steps=told["steps"],
            finish_reason=told["finish_reason"],
            text=told.get("text"),
            tokens=tokens,
            seed=told.get("seed"),
            values=None if told.get("values") is None else to_floats(told["values"]),
            outputs=to_floats(told["outputs"]),
            final_state=to_state(told.get("final_state")),
            state_token=told.get("state_token"),
            replayed=told.get("replayed", False),
        )
