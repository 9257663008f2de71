"""Calls in any order, over HTTP, leave in each kind of store what they leave in plain NumPy."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.service.api.clients import open_client
from tests.torture.conftest import SEED, SUM, TOLD
from tests.torture.plain import TOMBSTONE_SECONDS, Array, Ended, Plain

T = TypeVar("T")
ALL = f"/v1/models/{SUM}/sequences"
NAMES = st.sampled_from(["a", "b", "c", "d"])
INPUTS = st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(lambda x: np.array(x, np.float32).reshape(-1, 1))
LONG_INPUTS = st.integers(257, 300).map(lambda steps: np.ones((steps, 1), np.float32))
"""Their answers are too large to be kept as they are."""
TTL, NOW = 100.0, 1_000_000.0


class LoopThread:
    """An event loop that goes on while hypothesis thinks: what the server waits for must not grow old meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Machine(RuleBasedStateMachine):
    """`setting` and `rows` say where states are kept."""

    setting: str
    rows: int
    repository: Path
    fresh: Callable[[], None]
    statuses: Counter[int]

    def __init__(self) -> None:
        super().__init__()
        type(self).fresh()
        self.now = NOW
        self.live: dict[str, Plain] = {}
        self.ended: dict[str, Ended] = {}
        self.loop = LoopThread()
        self.opened: AbstractAsyncContextManager[httpx.AsyncClient] | None = None
        self.open()

    def open(self) -> None:
        fields = {"state_store": self.setting, "max_resident_sequences": self.rows, "max_rows": 4, "max_chunk": 4}
        usual = {"sequence_ttl_seconds": TTL, "log_level": "error"}
        self.opened = open_client(self.repository, clock=lambda: self.now, **fields, **usual)
        self.client = self.run(self.opened.__aenter__())

    def close(self) -> None:
        if self.opened:
            self.run(self.opened.__aexit__(None, None, None))
            self.opened = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    def teardown(self) -> None:
        try:
            for name in list(self.live):
                self.read_state(name)
        finally:
            self.close()
            self.loop.close()

    # -- calls -------------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, document: Any = None, **headers: str) -> httpx.Response:
        answer = self.run(self.client.request(method, path, json=document, headers=headers))
        type(self).statuses[answer.status_code] += 1
        return answer

    def steps(self, name: str, inputs: Array, **fields: Any) -> httpx.Response:
        return self.call("POST", f"{ALL}/{name}/steps", {"inputs": inputs.tolist(), **fields})

    def alive(self, name: str) -> Plain | None:
        """None if its lease is over; what may be either is looked at."""
        plain = self.live.get(name)
        if plain and plain.least <= self.now < plain.most:
            found = self.call("GET", f"{ALL}/{name}")
            plain.least, plain.most = (plain.most, plain.most) if found.status_code == 200 else (plain.least, self.now)
        if plain and plain.most <= self.now:
            self.ended[name] = Ended("expired", plain.most)
            del self.live[name]
            return None
        return plain

    def is_missing(self, name: str, answer: httpx.Response) -> None:
        document, ended = answer.json(), self.ended.get(name)
        if ended is None:
            assert (answer.status_code, document["code"]) == (404, "sequence_not_found"), document
        elif self.now < ended.at + TOMBSTONE_SECONDS or answer.status_code == 410:
            assert (answer.status_code, document["reason"]) == (410, ended.reason), (document, ended)
        else:
            assert answer.status_code == 404, document

    def is_answer(self, plain: Plain, answer: httpx.Response, outputs: Array, *, replayed: bool, step: int) -> None:
        document = answer.json()
        assert answer.status_code == 200, document
        assert (document["replayed"], document["step"]) == (replayed, step), (document, plain)
        assert np.array_equal(np.array(document["outputs"], np.float32), outputs), (document, outputs)
        plain.renew(self.now)
        self.told(plain, document)

    def told(self, plain: Plain, document: dict[str, Any]) -> None:
        plain.tell(datetime.fromisoformat(document["expires_at"]).timestamp())

    # -- rules -------------------------------------------------------------------------------------------------------

    @initialize()
    def begin_some(self) -> None:
        for name in ("a", "b", "c"):
            self.create(name, 10.0 if name == "b" else None, None)
            self.step(name, np.ones((2, 1), np.float32), names_step=True, start=False, commit=True)

    @rule(name=NAMES, ttl=st.sampled_from([None, 10.0]), total=st.none() | st.integers(-5, 5))
    def create(self, name: str, ttl: float | None, total: int | None) -> None:
        state = {} if total is None else {"initial_state": {"h": [[float(total)]]}}
        lease = {} if ttl is None else {"ttl_seconds": ttl}
        plain = self.alive(name)
        answer = self.call("POST", ALL, {"sequence_id": name, **state, **lease})
        if plain:
            assert (answer.status_code, answer.json()["code"]) == (409, "sequence_exists")
            plain.may_renew(self.now)
            return
        assert (answer.status_code, answer.json()["step"]) == (201, 0), answer.json()
        self.begin(name, Plain(ttl or TTL, self.now, np.array([total or 0], np.float32)), answer)

    def begin(self, name: str, plain: Plain, answer: httpx.Response) -> None:
        self.live[name] = plain
        self.ended.pop(name, None)
        self.told(plain, answer.json())

    @rule(name=NAMES, inputs=INPUTS | LONG_INPUTS, names_step=st.booleans(), start=st.booleans(), commit=st.booleans())
    def step(self, name: str, inputs: Array, names_step: bool, start: bool, commit: bool) -> None:
        plain = self.alive(name)
        at = plain.step if plain else 0
        answer = self.steps(name, inputs, start=start, commit=commit, **({"step": at} if names_step else {}))
        if plain is None and not start:
            self.is_missing(name, answer)
            return
        if plain is None:
            plain = Plain(TTL, self.now, np.zeros(1, np.float32))
            self.begin(name, plain, answer)
        outputs = plain.run(inputs) if commit else plain.outputs(inputs)
        self.is_answer(plain, answer, outputs, replayed=False, step=at + len(inputs))

    @rule(name=NAMES, inputs=INPUTS, off=st.sampled_from([-2, -1, 1, 7]), start=st.booleans())
    def step_from_elsewhere(self, name: str, inputs: Array, off: int, start: bool) -> None:
        plain = self.alive(name)
        at = max(0, (plain.step if plain else 0) + off)
        if plain is None and at == 0:
            return
        answer = self.steps(name, inputs, start=start, step=at)
        if plain is None and not start:
            self.is_missing(name, answer)
        elif plain and (outputs := plain.replay(at, inputs)) is not None:
            self.is_answer(plain, answer, outputs, replayed=True, step=at + len(inputs))
        elif plain is None or at != plain.step:
            assert (answer.status_code, answer.json()["code"]) == (409, "step_conflict"), answer.json()
            assert answer.json()["expected_step"] == (plain.step if plain else 0)
            if plain:
                plain.may_renew(self.now)
        else:
            self.is_answer(plain, answer, plain.run(inputs), replayed=False, step=at + len(inputs))

    @rule(name=NAMES, back=st.integers(1, 20))
    def repeat(self, name: str, back: int) -> None:
        plain = self.alive(name)
        if plain and len(plain.answers) >= back:
            step, inputs, outputs = plain.answers[-back]
            answer = self.steps(name, inputs, step=step, start=True)
            self.is_answer(plain, answer, outputs, replayed=True, step=step + len(inputs))

    @rule(name=NAMES, inputs=INPUTS, start=st.booleans())
    def step_twice_at_once(self, name: str, inputs: Array, start: bool) -> None:
        plain = self.alive(name)
        at = plain.step if plain else 0
        body = {"inputs": inputs.tolist(), "step": at, "start": start}

        async def both() -> list[httpx.Response]:
            calls = (self.client.post(f"{ALL}/{name}/steps", json=body) for _ in range(2))
            return list(await asyncio.gather(*calls))

        answers = self.run(both())
        if plain is None and not start:
            for answer in answers:
                self.is_missing(name, answer)
            return
        if plain is None:
            plain = Plain(TTL, self.now, np.zeros(1, np.float32))
            self.begin(name, plain, answers[0])
        outputs = plain.run(inputs)
        assert sorted(answer.json()["replayed"] for answer in answers) == [False, True]
        for answer in answers:
            self.is_answer(plain, answer, outputs, replayed=answer.json()["replayed"], step=at + len(inputs))

    @rule(name=NAMES, wrong=st.sampled_from([[["x"]], [[1.0, 2.0]], [], [[3e38], [3e38]]]), start=st.booleans())
    def fail(self, name: str, wrong: list[Any], start: bool) -> None:
        """What does not fit, and what is not finite: nothing is moved, and nothing begun."""
        plain = self.alive(name)
        answer = self.call("POST", f"{ALL}/{name}/steps", {"inputs": wrong, "start": start})
        if plain is None and not start:
            if answer.status_code != 422:
                self.is_missing(name, answer)
            return
        assert answer.status_code == 422, answer.json()
        if plain:
            plain.may_renew(self.now)

    @rule(name=NAMES)
    def read(self, name: str) -> None:
        plain = self.alive(name)
        answer = self.call("GET", f"{ALL}/{name}")
        if plain is None:
            self.is_missing(name, answer)
            return
        assert (answer.status_code, answer.json()["step"]) == (200, plain.step), answer.json()
        self.told(plain, answer.json())

    @rule(name=NAMES)
    def read_state(self, name: str) -> None:
        plain = self.alive(name)
        answer = self.call("GET", f"{ALL}/{name}/state")
        if plain is None:
            self.is_missing(name, answer)
            return
        document = answer.json()
        assert (answer.status_code, document["step"], answer.headers["etag"]) == (200, plain.step, f'"{plain.step}"')
        assert document["state"]["h"] == [plain.total.tolist()]
        plain.renew(self.now)

    @rule(name=NAMES, other=NAMES)
    def carry(self, name: str, other: str) -> None:
        """Take the sealed state elsewhere."""
        plain, there = self.alive(name), self.alive(other)
        if plain and not there:
            token = self.call("GET", f"{ALL}/{name}/state").json()["state_token"]
            plain.renew(self.now)
            answer = self.call("POST", ALL, {"sequence_id": other, "state_token": token})
            assert (answer.status_code, answer.json()["step"]) == (201, plain.step), answer.json()
            self.begin(other, Plain(TTL, self.now, plain.total, plain.step), answer)

    @rule(name=NAMES, other=NAMES)
    def fork(self, name: str, other: str) -> None:
        plain, there = self.alive(name), self.alive(other)
        answer = self.call("POST", f"{ALL}/{name}/fork", {"sequence_id": other})
        if plain is None:
            self.is_missing(name, answer)
            return
        plain.may_renew(self.now)
        if there:
            assert (answer.status_code, answer.json()["code"]) == (409, "sequence_exists"), answer.json()
            return
        assert (answer.status_code, answer.json()["step"]) == (201, plain.step), answer.json()
        plain.renew(self.now)
        self.begin(other, Plain(plain.ttl, self.now, plain.total, plain.step), answer)

    @rule(name=NAMES, total=st.integers(-5, 5), step=st.integers(0, 50), match=st.sampled_from([None, 0, 1]))
    def put(self, name: str, total: int, step: int, match: int | None) -> None:
        """`match`: how far off the step is that If-Match names."""
        plain = self.alive(name)
        headers = {} if match is None else {"If-Match": f'"{(plain.step if plain else 0) + match}"'}
        body = {"state": {"h": [[float(total)]]}, "step": step}
        answer = self.call("PUT", f"{ALL}/{name}/state", body, **headers)
        if plain is None and headers:
            self.is_missing(name, answer)
        elif plain and match:
            assert (answer.status_code, answer.json()["code"]) == (409, "state_moved"), answer.json()
            plain.may_renew(self.now)
        else:
            assert (answer.status_code, answer.json()["step"]) == (200, step), answer.json()
            there = plain or Plain(TTL, self.now, np.zeros(1, np.float32))
            there.put(np.array([total], np.float32), step)
            there.renew(self.now)
            self.begin(name, there, answer)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        plain = self.alive(name)
        answer = self.call("DELETE", f"{ALL}/{name}")
        if plain is None:
            self.is_missing(name, answer)
            return
        assert answer.status_code == 204, answer.text
        del self.live[name]
        self.ended[name] = Ended("deleted", self.now)

    @rule()
    def list_all(self) -> None:
        found = {line["sequence_id"]: line["step"] for line in self.call("GET", ALL).json()["sequences"]}
        must = {name: plain.step for name, plain in self.live.items() if self.now < plain.least}
        may = {name: plain.step for name, plain in self.live.items() if self.now < plain.most}
        assert must.items() <= found.items() <= may.items(), (must, found, may)

    @rule(seconds=st.sampled_from([0.5, 4.0, 9.5, 60.0, 101.0, 3700.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        self.close()
        if self.setting == "memory":
            self.live, self.ended = {}, {}
        self.open()


WAYS = {"memory": ("memory", 0), "memory, two rows": ("memory", 2), "sqlite": ("sqlite", 0)}
WAYS |= {"sqlite, two rows": ("sqlite", 2), "redis": ("redis", 0), "redis, two rows": ("redis", 2)}


@pytest.fixture(params=WAYS)
def machine(request: pytest.FixtureRequest, sums: Path) -> Iterator[type[Machine]]:
    kind, num_rows = WAYS[request.param]
    server = request.getfixturevalue("redis") if kind == "redis" else None
    with tempfile.TemporaryDirectory() as folder:

        def empty() -> None:
            if server:
                server.empty()
            for file in Path(folder).glob("state.db*"):
                file.unlink()

        class OfOneKind(Machine):
            setting = server.url if server else {"sqlite": f"sqlite:///{folder}/state.db"}.get(kind, kind)
            rows = num_rows
            fresh = staticmethod(empty)

        OfOneKind.repository = sums
        OfOneKind.statuses = Counter()
        yield OfOneKind


def test_any_order_of_calls_leaves_what_it_leaves_in_numpy(
    machine: type[Machine], full: bool, request: pytest.FixtureRequest
) -> None:
    most, steps = (300, 50) if full else (16, 30)
    one_course = settings(
        max_examples=most,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # to make a failure short takes longer than all the rest
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(SEED)(machine), settings=one_course)
    TOLD.append(f"{request.node.name}: {most} orders, answered {dict(sorted(machine.statuses.items()))}")
