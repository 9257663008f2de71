"""The model feeds itself: one answer, or its steps as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypedDict

import httpx
from numpy.typing import ArrayLike

from carousel_client.core.arrays import to_lists
from carousel_client.core.calls import Ask, Send, Work, call, post, respond
from carousel_client.core.events import Events
from carousel_client.core.results import Document, Generated, GeneratedStep
from carousel_client.core.retries import Pace
from carousel_client.errors import ConnectionFailed, UnexpectedAnswer, from_problem

Outputs = Literal["all", "last", "none"]


class GenerateOptions(TypedDict, total=False):
    """`temperature`, `top_k`, `seed` and `stop` mean something to token models, `future_inputs` to forecasters.

    temperature: 0 takes the likeliest token. top_k: draw from the likeliest so many. seed: same seed, same text.
    stop: end after this text, or any of these texts and tokens. future_inputs: `steps` numbers of each feature that is
    known ahead. outputs: also those just before each step. return_state: `final_state` too, which is so without.
    """

    temperature: float | None
    top_k: int | None
    seed: int | None
    stop: str | list[str | int] | None
    future_inputs: Mapping[str, ArrayLike] | None
    outputs: Outputs | None
    return_state: bool | None


def generate_body(
    inputs: ArrayLike | str,
    steps: int,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    stop: str | list[str | int] | None = None,
    future_inputs: Mapping[str, ArrayLike] | None = None,
    outputs: Outputs | None = None,
    return_state: bool | None = None,
) -> Document:
    """Raises InvalidInput."""
    future = {name: to_lists(values, f"future_inputs.{name}") for name, values in (future_inputs or {}).items()}
    return {
        "inputs": inputs if isinstance(inputs, str) else to_lists(inputs, "inputs"),
        "steps": steps,
        "temperature": temperature,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
        "future_inputs": future or None,
        "outputs": outputs,
        "return_state": return_state,
    }


class Rollout:
    """One call of generate. `prepare` makes its body when it is sent; `settle` hears how the server tells the end."""

    def __init__(
        self,
        pace: Pace,
        path: str,
        query: Mapping[str, str],
        prepare: Callable[[], Work[Document]],
        settle: Callable[[Document], None],
    ) -> None:
        self._pace = pace
        self._path, self._query = path, query
        self._prepare, self._settle = prepare, settle
        self._events = Events()
        self._steps: list[GeneratedStep] = []
        self.result: Generated | None = None

    def whole(self) -> Work[Generated]:
        """All of it as one answer; the one that was given before, if there is one."""
        if self.result is None:
            ask = yield from self._ask()
            self.result = yield from call(self._pace, ask)
        return self.result

    def begin(self) -> Work[httpx.Response]:
        """The response whose body is to be fed, piece by piece."""
        ask = yield from self._ask()
        headers = {**ask.send.headers, "Accept": "text/event-stream"}
        send = Send("POST", self._path, ask.send.content, self._query, headers, streamed=True)
        self._events, self._steps = Events(), []
        return (yield from respond(self._pace, send, repeatable=True))

    def feed(self, piece: bytes) -> Iterator[GeneratedStep]:
        """The steps in it. Raises what the server says went wrong."""
        for name, data in self._events.feed(piece):
            try:
                document = json.loads(data)
                if name == "step":
                    self._steps.append(GeneratedStep.read(document))
                    yield self._steps[-1]
                elif name == "done":
                    self.result = self._read(self._told_by_steps() | document)
            except (ValueError, TypeError, LookupError) as error:
                raise UnexpectedAnswer(f"An event of {self._path} cannot be read: {error}") from error
            if name == "error":
                raise from_problem(document)

    def end(self) -> None:
        """The body has ended. Raises ConnectionFailed when that was too early."""
        if self.result is None:
            raise ConnectionFailed("The events broke off before the last. What came until then was not committed.")

    def _ask(self) -> Work[Ask[Generated]]:
        body = yield from self._prepare()
        return post(self._path, body, self._read, self._query)

    def _read(self, document: Document) -> Generated:
        result = Generated.read(document)
        self._settle(document)
        return result

    def _told_by_steps(self) -> Document:
        """What the last event leaves out."""
        told: dict[str, Any] = {"outputs": [step.output for step in self._steps if step.output is not None]}
        if any(step.token is not None for step in self._steps):
            return {**told, "tokens": [step.token for step in self._steps]}
        return {**told, "values": [step.value for step in self._steps]}
