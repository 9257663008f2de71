"""A sequence whose state the server holds, seen from here: its id, and the step that it is known to stand at."""

from __future__ import annotations

import re
from datetime import datetime
from secrets import randbits
from typing import TypedDict, Unpack
from uuid import uuid4

from numpy.typing import ArrayLike

from carousel_client.core.arrays import State, state_to_lists, to_lists
from carousel_client.core.calls import Ask, Send, Work, call, get, post, to_json
from carousel_client.core.models import ModelCalls
from carousel_client.core.results import Document, Position, StateAt, Stepped
from carousel_client.core.rollouts import GenerateOptions, Outputs, Rollout, generate_body
from carousel_client.errors import (
    CarouselError,
    InvalidInput,
    NotFound,
    SequenceExists,
    SequenceGone,
    SequenceNotFound,
    StateDamaged,
    UnexpectedAnswer,
)

SEED_BITS = 53
SEQUENCE_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._~-]{1,128}")


class StepOptions(TypedDict, total=False):
    """`outputs`: of all steps (without), of the last, or none. `commit=False` scores the steps and moves nothing.

    `return_state`: `final_state` too.
    """

    outputs: Outputs
    commit: bool
    return_state: bool


class SequenceCalls:
    """Of one sequence. Every call makes sure first that the sequence is there.

    One whose id the caller named is gone on with where it stands, and begins where there is none; without an id, a
    new one is made up here, so that a call whose answer was lost can be repeated.
    """

    def __init__(
        self,
        model: ModelCalls,
        id: str | None,
        *,
        ttl: float | None = None,
        initial_state: State | None = None,
        state_token: str | None = None,
    ) -> None:
        self.model, self.is_new = model, id is None
        self.id = check_id(uuid4().hex if id is None else id)
        self.path = f"{model.path}/sequences/{self.id}"
        state = None if initial_state is None else state_to_lists(initial_state, "initial_state")
        self._start: Document = {"ttl_seconds": ttl, "initial_state": state, "state_token": state_token}
        self.position: int | None = None
        self.expires_at: datetime | None = None

    def open(self) -> Work[None]:
        if self.position is not None:
            return
        if self.is_new:
            yield from self._create()
            return
        try:
            yield from self._read()
        except StateDamaged:
            raise  # to begin from zeros would hide that something was lost
        except (SequenceNotFound, SequenceGone):
            yield from self._create()

    def step(
        self, inputs: ArrayLike, *, outputs: Outputs = "all", commit: bool = True, return_state: bool = False
    ) -> Work[Stepped]:
        """Raises InvalidInput."""
        lists = to_lists(inputs, "inputs")
        yield from self.open()
        asked = {"outputs": outputs, "commit": commit, "return_state": return_state}
        body = {"inputs": lists, "step": self.position, **asked}
        stepped = yield from call(self.model.pace, post(f"{self.path}/steps", body, Stepped.read))
        if commit:
            self.position = stepped.step
        self.expires_at = stepped.expires_at
        return stepped

    def refresh(self) -> Work[int]:
        yield from self._read()
        return self.position or 0

    def read_state(self) -> Work[StateAt]:
        yield from self.open()
        return (yield from call(self.model.pace, get(f"{self.path}/state", StateAt.read)))

    def read_token(self) -> Work[str]:
        found = yield from self.read_state()
        if found.token is None:
            raise UnexpectedAnswer("The server gives no state tokens.")
        return found.token

    def write_state(self, state: State | str, step: int | None) -> Work[None]:
        """A state needs a step, which without is the one that the sequence stands at; a token has its own.

        Raises InvalidState, and StateMoved when the sequence does not stand where it is known to stand.
        """
        given: Document = (
            {"state_token": state} if isinstance(state, str) else {"state": state_to_lists(state, "state")}
        )
        yield from self.open()
        if not isinstance(state, str) and step is None:
            step = self.position
        headers = {"Content-Type": "application/json", "If-Match": f'"{self.position}"'}
        send = Send("PUT", f"{self.path}/state", to_json({**given, "step": step}), headers=headers)
        # after any other step it would be found to have moved
        ask = Ask(send, Position.read, repeatable=step == self.position)
        self._take((yield from call(self.model.pace, ask)))

    def fork(self, id: str | None) -> Work[SequenceCalls]:
        """Of an id that the caller names it cannot be told whose copy a second answer speaks of: it is sent once."""
        forked = SequenceCalls(self.model, id)
        yield from self.open()
        body = {"sequence_id": forked.id}
        ask = post(f"{self.path}/fork", body, Position.read, repeatable=forked.is_new)
        try:
            forked._take((yield from call(self.model.pace, ask)))
        except SequenceExists:
            if not forked.is_new:
                raise
            yield from forked._read()
        return forked

    def generate(
        self, inputs: ArrayLike | str, steps: int, commit: bool, **options: Unpack[GenerateOptions]
    ) -> Rollout:
        """With a seed in any case: whichever server is asked again then tells the same. Raises InvalidInput."""
        body = generate_body(inputs, steps, **options)
        if commit and body["seed"] is None:
            body["seed"] = randbits(SEED_BITS)

        def prepare() -> Work[Document]:
            yield from self.open()
            return {**body, "step": self.position, "commit": commit}

        def settle(told: Document) -> None:
            self.expires_at = datetime.fromisoformat(told["expires_at"])
            if commit:
                self.position = told["step"]

        return Rollout(self.model.pace, f"{self.path}/generate", {}, prepare, settle)

    def delete(self) -> Work[None]:
        """That it was deleted before is no error: the answer to the first call may have been lost."""
        try:
            yield from call(self.model.pace, Ask(Send("DELETE", self.path), lambda nothing: None))
        except SequenceGone as error:
            if error.reason != "deleted":
                raise

    def leave(self, *, keep: bool, failing: bool) -> Work[None]:
        """At the end of a `with` block; if that fails already, nothing here takes its error's place."""
        if keep:
            return
        try:
            yield from self.delete()
        except (NotFound, SequenceGone):
            pass
        except CarouselError:
            if not failing:
                raise

    def _create(self) -> Work[None]:
        body = {"sequence_id": self.id, **self._start}
        ask = post(f"{self.model.path}/sequences", body, Position.read, self.model.query)
        try:
            self._take((yield from call(self.model.pace, ask)))
        except SequenceExists:  # since a moment ago: another's doing, or our own call whose answer was lost
            yield from self._read()

    def _read(self) -> Work[None]:
        self._take((yield from call(self.model.pace, get(self.path, Position.read, self.model.query))))

    def _take(self, position: Position) -> None:
        self.position, self.expires_at = position.step, position.expires_at


def check_id(id: str) -> str:
    """Raises InvalidInput: `.` and `..` would go elsewhere, and others cannot stand in an address."""
    if not SEQUENCE_ID.fullmatch(id):
        expected = "1 to 128 of A-Z a-z 0-9 . _ ~ -, not . or .."
        message = f"sequence_id: expected {expected}, got {id[:80]!r}. Nothing was sent."
        raise InvalidInput(message, {"place": "sequence_id", "expected": expected, "received": id[:80]})
    return id
