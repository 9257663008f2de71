"""What a worker answers is what a server without workers answers, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.api.clients import LSTM, SUM, TOKENS
from tests.service.api.socket_server import get, post, steps_path
from tests.service.protocol.test_steps import bodies
from tests.service.workers.wires import Twins, open_twins

KEY, OTHER_KEY = b"X-API-Key: alices-key\r\n", b"Authorization: Bearer bobs-own-key\r\n"
INPUTS = {
    SUM: (b"[[1, 2]]", b"[[0.1, -7], [1e-3, 3], [5, 0]]"),
    TOKENS: (b"[4]", b"[0, 1, 1, 4]"),
    LSTM: (b"[[0.5, -1, 2]]", b"[[1, 2, 3], [0, 0, 0], [-1e-4, 9, 1]]"),
}
SHAPES = {"numbers": SUM, "tokens": TOKENS, "two axes": LSTM}
"""Which model a body is made for; the LSTM is sent the wrong shape only."""
NUMBERS = count()


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def twins(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Twins]:
    folder = tmp_path_factory.mktemp("states") if request.param == "sqlite" else None
    keys = ("alice:alices-key", "bob:bobs-own-key")
    with open_twins(repository, folder, api_keys=keys, max_steps=1000, max_body_bytes=100_000) as opened:
        yield opened


def new_name() -> str:
    return f"s-{next(NUMBERS)}"


def state_of(twins: Twins, path: str) -> tuple[int, object]:
    """Where the sequence stands at both servers, and its state."""
    states = [
        wire.connect().call(get(path.replace("/steps", "/state"), KEY)).document
        for wire in (twins.fronted, twins.plain)
    ]
    assert states[0]["step"] == states[1]["step"]
    assert states[0]["state"] == states[1]["state"]
    return states[0]["step"], states[0]["state"]


@pytest.mark.parametrize("model", INPUTS)
def test_steps_in_all_their_ways(twins: Twins, model: str) -> None:
    callers, path, step = twins.connect(KEY, model=model), steps_path(model, new_name()), 0
    taken = twins.fronted.steps.taken
    ways = product(INPUTS[model], (b"all", b"last", b"none"), (b"false", b"true"), (b"true", b"false"), (True, False))
    for inputs, outputs, with_state, commit, named in ways:
        fields = b'"outputs": "%b", "return_state": %b, "commit": %b, "start": true' % (outputs, with_state, commit)
        body = b'{"inputs": %b, %b%b}' % (inputs, fields, b', "step": %d' % step if named else b"")
        answer = callers.step(path, body)
        assert (answer.status, answer.document["replayed"]) == (200, False)
        if commit == b"true":
            step = answer.document["step"]
            if named:
                again = callers.step(path, body)
                assert (again.document["replayed"], again.document["step"]) == (True, step)
        assert callers.is_away, body
    assert state_of(twins, path)[0] == step > 0
    assert twins.fronted.steps.taken == taken, "the engine's process answered none of them"


def test_steps_that_are_repeated_late_are_answered_as_they_were_first(twins: Twins) -> None:
    callers, path = twins.connect(KEY), steps_path(SUM, new_name())
    asked = [
        b'{"inputs": [[%d, 1]], "step": %d, "start": true, "outputs": "%b"}' % (n, n, outputs)
        for n, outputs in enumerate((b"all", b"last", b"none") * 5)
    ]
    answers = [callers.step(path, body) for body in asked]
    for body, answer in zip(asked, answers, strict=True):
        again = callers.step(path, body.replace(b"none", b"all")).document
        assert again["replayed"]
        assert (again["step"], again["outputs"]) == (answer.document["step"], answer.document["outputs"])
    assert callers.is_away


def test_a_tenant_never_sees_the_sequence_of_another(twins: Twins) -> None:
    alice, bob, path = twins.connect(KEY), twins.connect(OTHER_KEY), steps_path(SUM, new_name())
    for n in range(1, 4):
        assert alice.step(path, b'{"inputs": [[1, 2]], "start": true}').document["outputs"] == [[n, 2 * n]]
        if n == 1:
            assert bob.step(path, b'{"inputs": [[9, 9]], "step": 1}').status == 404
            bob = twins.connect(OTHER_KEY)
        assert bob.step(path, b'{"inputs": [[5, 5]], "start": true}').document["outputs"] == [[5 * n, 5 * n]]
        assert alice.is_away
        assert bob.is_away
    assert alice.call(post(path, b'{"inputs": [[0, 0]]}', OTHER_KEY)).document["outputs"] == [[15, 15]]
    assert alice.call(post(path, b'{"inputs": [[0, 0]]}', KEY)).document["outputs"] == [[3, 6]]
    for wrong in (b"", b"X-API-Key: alices-kez\r\n", b"X-API-Key:\r\n"):
        assert alice.call(post(path, b'{"inputs": [[1, 2]]}', wrong)).status == 401
        alice.settle()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=st.lists(bodies(), min_size=3, max_size=6))
def test_any_bodies_lead_to_the_same_answers_and_states(twins: Twins, made: list[tuple[str, bytes]]) -> None:
    paths = {model: steps_path(model, new_name()) for model in SHAPES.values()}
    for path in paths.values():
        name = path.split("/")[-2].encode()
        for wire in (twins.fronted, twins.plain):
            begun = wire.connect().call(post(path.rsplit("/", 2)[0], b'{"sequence_id": "%b"}' % name, KEY))
            assert begun.status == 201
    for which, body in made:
        callers = twins.connect(KEY, model=SHAPES[which])
        callers.step(paths[SHAPES[which]], body)
        callers.close()
    for path in paths.values():
        state_of(twins, path)
    for wire in (twins.fronted, twins.plain):
        for caller in wire.callers:
            caller.close()
        wire.callers.clear()
