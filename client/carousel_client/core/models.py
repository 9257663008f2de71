"""Calls about models: the list, the card, and predict, where the caller carries the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

from numpy.typing import ArrayLike

from carousel_client.core.arrays import Array, State, state_to_lists, to_lists
from carousel_client.core.calls import Work, call, get, post
from carousel_client.core.results import Document, ModelCard, ModelLine, Position, Prediction
from carousel_client.core.retries import Pace
from carousel_client.core.rollouts import GenerateOptions, Outputs, Rollout, generate_body
from carousel_client.errors import InvalidState

PAGE = 1000


class PredictOptions(TypedDict, total=False):
    """`outputs`: of all steps (without), of the last, or none. `return_state=False` leaves out state and token."""

    outputs: Outputs
    return_state: bool


class ModelCalls:
    """Of one model; `version` None is the newest that is ready."""

    def __init__(self, pace: Pace, name: str, version: int | None) -> None:
        self.pace = pace
        self.name, self.version = name, version
        self.path = f"/v1/models/{quote(name, safe='')}"
        self.query = {} if version is None else {"version": str(version)}

    def card(self) -> Work[ModelCard]:
        return call(self.pace, get(self.path, ModelCard.read, self.query))

    def predict(
        self,
        inputs: Sequence[ArrayLike],
        states: Sequence[State | None],
        tokens: Sequence[str | None],
        *,
        outputs: Outputs = "all",
        return_state: bool = True,
    ) -> Work[list[Prediction]]:
        """Of many sequences. Raises InvalidInput, InvalidState."""
        rows = [_row(*parts) for parts in zip(range(len(inputs)), inputs, states, tokens, strict=True)]
        body = {"sequences": rows, "outputs": outputs, "return_state": return_state}
        return call(self.pace, post(f"{self.path}/predict", body, _read_predictions, self.query))

    def generate(
        self,
        inputs: ArrayLike | str,
        steps: int,
        initial_state: State | None,
        state_token: str | None,
        **options: Unpack[GenerateOptions],
    ) -> Rollout:
        """Raises InvalidInput, InvalidState."""
        body = generate_body(inputs, steps, **options)
        if initial_state is not None:
            body["initial_state"] = state_to_lists(initial_state, "initial_state")
        if state_token is not None:
            body["state_token"] = state_token

        def prepare() -> Work[Document]:
            yield from ()
            return body

        return Rollout(self.pace, f"{self.path}/generate", self.query, prepare, lambda document: None)

    def sequences(self) -> Work[list[Position]]:
        """All of the caller's, by id."""
        found: list[Position] = []
        query = {"limit": str(PAGE)}
        while True:
            page = yield from call(self.pace, get(f"{self.path}/sequences", _read_page, query))
            found += page[0]
            if page[1] is None:
                return found
            query["cursor"] = page[1]


def models(pace: Pace) -> Work[list[ModelLine]]:
    return call(pace, get("/v1/models", lambda told: [ModelLine.read(line) for line in told["models"]]))


def as_many(inputs: ArrayLike | Sequence[Array]) -> list[ArrayLike] | None:
    """Inputs of many sequences, which are a list of arrays; None for those of one."""
    if isinstance(inputs, list | tuple) and inputs and all(hasattr(item, "__array__") and item.ndim for item in inputs):
        return list(inputs)
    return None


def for_each(given: Any, count: int, name: str) -> list[Any]:
    """One of each sequence. Raises InvalidState."""
    if given is None:
        return [None] * count
    if not isinstance(given, list | tuple) or len(given) != count:
        raise InvalidState(
            f"{name}: expected a list of {count}, one for each sequence. Nothing was sent.",
            {"place": name, "expected": count},
        )
    return list(given)


def _row(index: int, inputs: ArrayLike, state: State | None, token: str | None) -> Document:
    row: Document = {"inputs": to_lists(inputs, f"sequences[{index}].inputs")}
    if state is not None:
        row["initial_state"] = state_to_lists(state, f"sequences[{index}].initial_state")
    if token is not None:
        row["state_token"] = token
    return row


def _read_predictions(told: Document) -> list[Prediction]:
    return [Prediction.read(sequence, told["version"]) for sequence in told["sequences"]]


def _read_page(told: Document) -> tuple[list[Position], str | None]:
    return [Position.read(line) for line in told["sequences"]], told["next_cursor"]
