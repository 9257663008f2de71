"""A stream steps sequences just as POST .../steps does, in text and in binary frames, many at once and in order."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from time import time
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus

from export.session import Session
from service.api import stream as stream_module
from tests.service import wire
from tests.service.api.clients import BIDIR, LSTM, SUM, TOKENS
from tests.service.api.processes import ROOT, Served, serve
from tests.service.api.streams import (
    BINARY,
    TEXT,
    UNREAD_ROWS,
    UNREAD_STEPS,
    ask,
    get,
    hear,
    hear_records,
    open_stream,
    unread_stream,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Served]:
    with serve(repository, CAROUSEL_MAX_STREAM_RECORDS="1000", CAROUSEL_MAX_STREAM_SEQUENCES="1001") as running:
        yield running


# -- text --------------------------------------------------------------------------------------------------------------


async def test_a_text_frame_is_a_call_of_steps(served: Served) -> None:
    async with open_stream(served.address) as stream:
        begun = await ask(stream, id=1, sequence_id="text", inputs=[[1, 2]], start=True)
        assert begun.pop("expires_at").endswith("Z")
        assert begun == {"id": 1, "sequence_id": "text", "step": 1, "outputs": [[1.0, 2.0]], "replayed": False}
        more = await ask(stream, sequence_id="text", inputs=[[1, 1], [2, 2]], step=1, outputs="last", return_state=True)
        assert "id" not in more
        assert (more["step"], more["outputs"], more["final_state"]) == (3, [[4.0, 5.0]], {"h": [[4.0, 5.0]]})
        tried = await ask(stream, sequence_id="text", inputs=[[9, 9]], commit=False)
        assert (tried["step"], tried["outputs"]) == (4, [[13.0, 14.0]])
        again = await ask(stream, sequence_id="text", inputs=[[1, 1], [2, 2]], step=1, outputs="last")
        assert (again["step"], again["replayed"]) == (3, True)
        assert await ask(stream, id="bye", sequence_id="text", delete=True) == {
            "id": "bye",
            "sequence_id": "text",
            "deleted": True,
        }
        assert (await ask(stream, sequence_id="text", inputs=[[1, 1]]))["error"]["status"] == 410


@pytest.mark.parametrize(
    ("frame", "status", "code"),
    [
        ({"inputs": [[1, 2]]}, 404, "sequence_not_found"),
        ({"inputs": [[1, 2]], "step": 3, "start": True}, 409, "step_conflict"),
        ({"inputs": [[1, 2, 3]], "start": True}, 422, "invalid_input"),
        ({"start": True}, 422, "invalid_input"),
        ({"inputs": [[1, 2]], "more": 1}, 400, "malformed_request"),
        ({"inputs": [[1, 2]], "sequence_id": "a/b"}, 422, "invalid_input"),
        ({"inputs": [[1, 2]], "step": "one"}, 422, "invalid_input"),
        ({"inputs": [[1, float("nan")]]}, 422, "invalid_input"),
        ({"delete": True}, 404, "sequence_not_found"),
    ],
)
async def test_an_error_is_the_problem_document_of_http_and_the_stream_stays_open(
    served: Served, frame: dict[str, Any], status: int, code: str
) -> None:
    async with open_stream(served.address) as stream:
        answer = await ask(stream, **{"id": "mine", "sequence_id": "nobody", **frame})
        assert (answer["id"], answer["error"]["status"], answer["error"]["code"]) == ("mine", status, code)
        assert answer["error"]["instance"] == f"/v1/models/{SUM}/stream"
        ids = ('{"id": {}}', f'{{"id": {10**23}}}', '{"id": "\\ud800"}', f'{{"id": "{"x" * 129}"}}')
        for nonsense in ("", "[1]", "{", *ids, "[" * 100_000):
            await stream.send(nonsense)
            answer = await hear(stream)
            assert (answer["id"], answer["error"]["status"] in (400, 422)) == (None, True)
        await ask(stream, sequence_id="after-errors", inputs=[[1, 1]], start=True)
    async with httpx.AsyncClient(base_url=served.address) as http:
        assert (await http.get(f"/v1/models/{SUM}/sequences/nobody")).status_code == 404


async def test_answers_of_a_sequence_come_in_the_order_of_its_calls(served: Served) -> None:
    """Good ones, refused ones and deletes, all sent before the first answer."""
    frames: list[dict[str, Any]] = []
    for _ in range(40):
        frames += [
            {"inputs": [[1, 1]], "step": 0, "start": True},
            {"inputs": [[1, 1, 1]]},
            {"inputs": [[1, 1], [1, 1]], "step": 1},
            {"inputs": [[1, 1]], "step": 99},
            {"inputs": [[1, 1]], "step": 3},
            {"delete": True},
        ]
    async with open_stream(served.address) as stream:
        for n, frame in enumerate(frames):
            await stream.send(json.dumps({"id": n, "sequence_id": "in-order", **frame}))
        answers = [await hear(stream) for _ in frames]
    assert [answer["id"] for answer in answers] == list(range(len(frames)))
    told = [answer["error"]["status"] if "error" in answer else answer.get("step", "gone") for answer in answers]
    assert told == [1, 422, 3, 409, 4, "gone"] * 40


def test_the_documented_client_works(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "model_repository" / "adding-lstm", tmp_path / "adding-lstm")
    program = (stream_module.__doc__ or "").split("A client, in Python:")[1].split("`{")[0]
    with serve(tmp_path) as running:
        program = dedent(program).replace("ws://127.0.0.1:8000", running.address.replace("http", "ws"))
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        outputs = [json.loads(line) for line in ran.stdout.splitlines()]
        whole = {"sequences": [{"inputs": [[value, 0] for value in (0.1, 0.2, 0.3)]}]}
        answer = httpx.post(f"{running.address}/v1/models/adding-lstm/predict", json=whole).json()
    assert [output[0] for output in outputs] == answer["sequences"][0]["outputs"]


async def test_http_and_a_stream_step_the_same_sequence(served: Served) -> None:
    async with open_stream(served.address) as stream, httpx.AsyncClient(base_url=served.address) as http:
        await ask(stream, sequence_id="both", inputs=[[1, 2]], start=True)
        url = f"/v1/models/{SUM}/sequences/both/steps"
        assert (await http.post(url, json={"inputs": [[1, 2]], "step": 1})).json()["outputs"] == [[2.0, 4.0]]
        assert (await ask(stream, sequence_id="both", inputs=[[1, 2]], step=2))["outputs"] == [[3.0, 6.0]]


# -- binary ------------------------------------------------------------------------------------------------------------


async def test_binary_frames_step_many_sequences_at_once(served: Served) -> None:
    async with open_stream(served.address, subprotocols=(TEXT, BINARY)[::-1]) as stream:
        assert stream.subprotocol == BINARY
        await stream.send(wire.message(wire.open_block([(0, "bin-0"), (7, "bin-7")])))
        assert await hear_records(stream, 2) == [wire.Answer("opened", 0, 0), wire.Answer("opened", 7, 7)]
        rows = [(0, 1, 0, (1, 2, 3, 4)), (7, 2, 0, (5, 6, 7, 8))]
        await stream.send(wire.message(wire.step_block(rows, steps=2, flags=wire.START | wire.STATE)))
        assert await hear_records(stream, 2) == [
            wire.Answer("stepped", 0, 1, 2, (1, 2, 4, 6, 4, 6)),
            wire.Answer("stepped", 7, 2, 2, (5, 6, 12, 14, 12, 14)),
        ]
        await stream.send(
            wire.message(
                wire.step_block([(0, 3, 2, (1, 1))], flags=wire.NONE),
                wire.step_block([(0, 4, None, (1, 1))], flags=wire.SCORE),
                wire.step_block([(0, 5, 9, (1, 1)), (0, 6, 3, (float("inf"), 0))]),
                wire.step_block(rows[:1], steps=2, flags=wire.LAST),
                wire.delete_block([7]),
                wire.step_block([(0, 7, 3, (1, 1)), (8, 8, 0, (1, 1))]),
                wire.open_block([(7, "bin-0"), (1001, "x"), (6, "a/b")]),
            )
        )
        answers = await hear_records(stream, 11)
        bin_0 = [answer for answer in answers if answer.handle == 0]
        assert [answer.tag for answer in bin_0] == [3, 4, 5, 6, 1, 7]
        assert [answer.step or answer.status for answer in bin_0] == [3, 4, 409, 422, 2, 4]
        assert [answer.values for answer in bin_0] == [(), (6, 8), (), (), (1, 2, 4, 6, 4, 6), (6, 8)]
        assert [answer.replayed for answer in bin_0] == [False, False, False, False, True, False]
        assert bin_0[2].problem is not None
        assert (bin_0[2].problem["code"], bin_0[2].problem["expected_step"]) == ("step_conflict", 3)
        others = {answer.handle: answer for answer in answers if answer.handle not in (0, 7)}
        assert {handle: answer.status for handle, answer in others.items()} == {8: 422, 1001: 422, 6: 422}
        assert [answer.kind for answer in answers if answer.handle == 7] == ["deleted", "opened"]
        assert (await ask(stream, sequence_id="bin-0", inputs=[[1, 1]]))["step"] == 5
        long = wire.step_block([(0, 9, 5, (1, 1) * 100)], steps=100, flags=wire.LAST)
        await stream.send(wire.message(long, wire.open_block([(1, "bin-0")])))
        heard = {answer.kind: answer.step for answer in await hear_records(stream, 2)}
        assert heard == {"stepped": 105, "opened": 105}


async def test_one_block_may_hold_good_and_bad_records_and_more_than_one_of_a_sequence(served: Served) -> None:
    count = 20
    async with open_stream(served.address, subprotocols=(BINARY,)) as stream:
        await stream.send(wire.message(wire.open_block([(n, f"block-{n}") for n in range(count)])))
        await hear_records(stream, count)
        first = [(n, 0, 0, (n, 1)) for n in range(count)]
        await stream.send(wire.message(wire.step_block(first, flags=wire.START)))
        await hear_records(stream, count)
        rows: list[tuple[int, int, int | None, tuple[float, float]]] = [(n, 1, 1, (n, 1)) for n in range(count)]
        rows[3] = (3, 1, 1, (float("nan"), 1))
        rows[4] = (4, 1, 7, (4, 1))
        rows[5] = (5, 1, 0, (5, 1))
        rows[6] = (999, 1, 0, (6, 1))
        rows[7] = (7, 1, 1, (3.4e38, 1))
        rows[8] = (8, 1, None, (8, 1))
        rows += [(7, 2, 2, (3.4e38, 1)), (9, 2, 2, (9, 1)), (9, 3, 2, (1, 1)), (9, 4, 3, (9, 1))]
        again = [(n, 5, 1, (n, 1)) for n in range(10, count)]
        await stream.send(wire.message(wire.step_block(rows), wire.step_block(again), wire.delete_block([9])))
        answers = await hear_records(stream, len(rows) + len(again) + 1)
    of_one: dict[int, list[Any]] = defaultdict(list)
    for answer in answers:
        of_one[answer.handle].append((answer.tag, answer.status or answer.values or answer.kind))
    assert [of_one[n] for n in (3, 4, 999)] == [[(1, 422)], [(1, 409)], [(1, 422)]]
    assert of_one[5] == [(1, (5, 1))], "a replay"
    assert of_one[7] == [(1, (float(np.float32(3.4e38)), 2)), (2, 422)]
    assert of_one[8] == [(1, (16, 2))]
    assert of_one[9] == [(1, (18, 2)), (2, (27, 3)), (3, 409), (4, (36, 4)), (9, "deleted")]
    for n in range(10, count):
        assert of_one[n] == [(1, (2 * n, 2)), (5, (2 * n, 2))], "a volley, then the replay of its answer"


@pytest.mark.parametrize("count", [1, 20], ids=["one by one", "as a volley"])
async def test_binary_answers_tell_until_when_the_sequence_is_kept(served: Served, count: int) -> None:
    names = [(n, f"kept-{count}-{n}") for n in range(count)]
    async with open_stream(served.address, subprotocols=(BINARY,)) as stream:
        await stream.send(wire.message(wire.open_block(names)))
        await hear_records(stream, count)
        for step in range(2):
            rows = [(n, 0, step, (1, 1)) for n in range(count)]
            before = time()
            await stream.send(wire.message(wire.step_block(rows, flags=wire.START | wire.EXPIRES)))
            answers = await hear_records(stream, count)
            kept = [answer.expires_at - 3600 for answer in answers if answer.expires_at is not None]
            assert len(kept) == count
            assert before - 0.1 <= min(kept) <= max(kept) <= time() + 0.1
            assert [answer.values for answer in answers] == [(step + 1, step + 1)] * count


async def test_frames_sent_ahead_are_answered_in_order_whichever_way_they_go(served: Served) -> None:
    """Blocks of many and of few records, text frames and deletes of the same sequences, all without waiting."""
    count, rounds = 30, 12
    async with open_stream(served.address, subprotocols=(BINARY,)) as stream:
        await stream.send(wire.message(wire.open_block([(n, f"ahead-{n}") for n in range(count)])))
        for at in range(rounds):
            rows = [(n, 3 * at, 3 * at, (1, n)) for n in range(count)]
            bad = wire.step_block([(n, 0, None, (float("nan"), n)) for n in range(3)])
            few = [(n, 3 * at + 1, 3 * at + 1, (1, n)) for n in range(count)]
            blocks = [wire.step_block(few[n : n + 3]) for n in range(0, count, 3)]
            await stream.send(wire.message(wire.step_block(rows, flags=wire.START), bad, *blocks))
            for n in range(count):
                frame = {"id": n, "sequence_id": f"ahead-{n}", "inputs": [[1, n]], "step": 3 * at + 2}
                await stream.send(json.dumps(frame))
        await stream.send(wire.message(wire.delete_block(list(range(count)))))
        heard: dict[int, list[int | str]] = defaultdict(list)
        while sum(map(len, heard.values())) < count * (3 * rounds + 2) + 3 * rounds:
            data = await stream.recv()
            if isinstance(data, str):
                answer = json.loads(data)
                heard[answer["id"]].append(answer["step"])
                continue
            for record in wire.answers(data, 2):
                heard[record.handle].append(record.step or record.kind)
    steps = range(1, 3 * rounds + 1)
    assert [heard[n] for n in range(3, count)] == [["opened", *steps, "deleted"]] * (count - 3)
    with_errors = [part for step in steps for part in ([step, "error"] if step % 3 == 1 else [step])]
    assert [heard[n] for n in range(3)] == [["opened", *with_errors, "deleted"]] * 3


async def test_a_binary_frame_that_cannot_be_read_runs_nothing(served: Served) -> None:
    async with open_stream(served.address, subprotocols=(BINARY,)) as stream:
        await stream.send(wire.message(wire.open_block([(0, "unread")])))
        await hear_records(stream, 1)
        good = wire.step_block([(0, 1, 0, (1, 2))], flags=wire.START)
        for bad, status in (
            (b"", 400),
            (wire.message(good)[:-1], 400),
            (wire.message(good, b"\x09" + bytes(7)), 400),
            (wire.message(good, wire.delete_block([0] * 1000)), 413),
        ):
            await stream.send(bad)
            (answer,) = await hear_records(stream, 1)
            assert (answer.handle, answer.status) == (wire.NO_HANDLE, status)
        await stream.send(wire.message(good))
        assert await hear_records(stream, 1) == [wire.Answer("stepped", 0, 1, 1, (1, 2))]


async def test_tokens_go_as_64_bit_integers(served: Served) -> None:
    async with open_stream(served.address, TOKENS, subprotocols=(BINARY,)) as stream:
        block = wire.step_block([(0, 0, 0, (0, 1, 1)), (0, 1, 3, (0, 5, 0))], steps=3, flags=wire.START, number="q")
        await stream.send(wire.message(wire.open_block([(0, "letters")]), block))
        opened, good, bad = await hear_records(stream, 3, output_size=5)
        assert (opened.kind, good.values) == ("opened", (1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 2, 0, 0, 0))
        assert (bad.status, bad.problem and bad.problem["place"]) == (422, "inputs[1]")


async def test_a_thousand_sequences_on_one_stream_equal_the_offline_run(served: Served, repository: Path) -> None:
    """Three chunks each, of different lengths, all in flight together; compared bit for bit."""
    count, chunks = 1000, (1, 3, 2)
    x = np.random.default_rng(0).normal(size=(count, sum(chunks), 3)).astype(np.float32)
    found: dict[int, list[float]] = defaultdict(list)
    async with open_stream(served.address, LSTM, subprotocols=(BINARY,)) as stream:
        await stream.send(wire.message(wire.open_block([(n, f"many-{n}") for n in range(count)])))
        await hear_records(stream, count)
        at = 0
        for length in chunks:
            part = x[:, at : at + length].reshape(count, -1).tolist()
            records = [(n, n, at, part[n]) for n in range(count)]
            await stream.send(wire.message(wire.step_block(records, steps=length, flags=wire.START)))
            at += length
        for answer in await hear_records(stream, 3 * count):
            assert answer.kind == "stepped", answer
            found[answer.handle] += answer.values
    session = Session((repository / LSTM / "1" / "model.onnx").read_bytes())
    for n in range(0, count, 50):
        assert found[n] == session.run(x[n : n + 1], session.zero_states(1))[0].ravel().tolist()


FRAME = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=60),
    st.builds(lambda data: b"CRB1" + (8 + len(data)).to_bytes(4, "little") + data, st.binary(max_size=60)),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(FRAME, min_size=1, max_size=20))
def test_no_frame_does_harm(served: Served, frames: list[str | bytes]) -> None:
    async def run() -> None:
        async with open_stream(served.address, subprotocols=(BINARY,)) as stream:
            for frame in frames:
                await stream.send(frame)
            await stream.send(json.dumps({"id": "last", "sequence_id": "unharmed", "delete": True}))
            while True:
                answer = await stream.recv()
                if isinstance(answer, str) and json.loads(answer)["id"] == "last":
                    break
        page = (await get(f"{served.address}/metrics")).text
        assert "internal_error" not in page

    asyncio.run(run())


# -- the connection ----------------------------------------------------------------------------------------------------


async def test_frames_of_the_wrong_kind_or_size_close_the_stream_with_the_reason(served: Served) -> None:
    async with open_stream(served.address) as stream:
        await stream.send(b"CRB1")
        with pytest.raises(ConnectionClosed, match=r"1003.*carousel\.v1\.binary"):
            await stream.recv()
    async with open_stream(served.address) as stream:
        await stream.send("x" * (2**20 + 1))
        with pytest.raises(ConnectionClosed, match=r"1009.*limit of 1048576 bytes"):
            await stream.recv()


async def test_a_reader_that_pauses_is_waited_for_and_gets_every_answer(served: Served) -> None:
    """What it sends meanwhile, and what it would be answered, is far more than is ever held for it."""
    memory = psutil.Process(served.process.pid).memory_info
    async with unread_stream(served.address, num_frames=120) as (stream, frames, sender, read):
        before = memory().rss
        assert not sender.done()
        assert 1 <= read < frames
        answers = await hear_records(stream, frames * UNREAD_ROWS)
        await sender
        assert memory().rss - before < 20 * 2**20
    of_one = [(answer.step, answer.values[-1]) for answer in answers if answer.handle == 17]
    assert of_one == [(at, float(at)) for at in range(UNREAD_STEPS, frames * UNREAD_STEPS + 1, UNREAD_STEPS)]


async def refusal(served: Served, model: str = SUM, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        async with open_stream(served.address, model, **options):
            pass
    response = caught.value.response
    problem = json.loads(response.body or b"")
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"]


async def test_a_handshake_is_refused_as_a_call_is(served: Served) -> None:
    assert await refusal(served, "no-such-model") == (404, "model_not_found")
    assert await refusal(served, query="?version=9") == (404, "version_not_found")
    assert await refusal(served, query="?version=x") == (422, "invalid_input")
    assert await refusal(served, BIDIR) == (422, "not_streamable")
    assert await refusal(served, f"{SUM}/more") == (404, "route_not_found")
    assert (await get(f"{served.address}/v1/models/{SUM}/stream")).status_code == 404


async def test_pages_of_other_sites_are_refused(served: Served, repository: Path) -> None:
    for origin in ("https://evil.example", "null", served.address + ".evil.example"):
        assert await refusal(served, origin=origin) == (403, "forbidden")
    async with open_stream(served.address, origin=served.address):
        pass
    with serve(repository, CAROUSEL_ALLOWED_ORIGINS="https://a.example, https://b.example") as other:
        async with open_stream(other.address, origin="https://B.example"):
            pass
        assert await refusal(other, origin="https://c.example") == (403, "forbidden")


async def test_keys_come_by_header_or_as_a_subprotocol(repository: Path) -> None:
    key, encoded = "alices-key?", "carousel.key.YWxpY2VzLWtleT8"
    with serve(repository, CAROUSEL_API_KEYS=f"alice:{key},bob:bobs-key", CAROUSEL_MAX_STREAMS="2") as keyed:
        for protocols in ((TEXT,), (TEXT, "carousel.key.x"), (TEXT, "carousel.key."), (TEXT, "carousel.key.%%%%")):
            assert await refusal(keyed, subprotocols=protocols) == (401, "unauthenticated")
        async with open_stream(keyed.address, subprotocols=(encoded, TEXT)) as stream:
            assert stream.subprotocol == TEXT
            await ask(stream, sequence_id="alices", inputs=[[1, 1]], start=True)
            async with open_stream(keyed.address, additional_headers={"Authorization": "Bearer bobs-key"}) as other:
                assert (await ask(other, sequence_id="alices", inputs=[[1, 1]]))["error"]["status"] == 404
                assert await refusal(keyed, additional_headers={"X-API-Key": "bobs-key"}) == (503, "no_room")


async def test_streams_are_counted_and_told_of_once(repository: Path) -> None:
    with serve(repository, CAROUSEL_LOG_LEVEL="info", CAROUSEL_LOG_FORMAT="json") as counted:
        async with open_stream(counted.address, subprotocols=(BINARY,)) as stream:
            await stream.send(wire.message(wire.open_block([(0, "a"), (1, "b")])))
            await hear_records(stream, 2)
            await ask(stream, sequence_id="a", inputs=[[1, 1]], step=5, start=True)
            page = (await get(f"{counted.address}/metrics")).text
        for line in (
            "carousel_streams 1.0",
            'carousel_stream_frames_total{form="binary"} 1.0',
            'carousel_stream_records_total{form="binary"} 2.0',
            'carousel_stream_records_total{form="text"} 1.0',
            'carousel_errors_total{code="step_conflict"} 1.0',
        ):
            assert line in page.splitlines()
        counted.process.terminate()
        _, logs = counted.process.communicate(timeout=30)
    (line,) = [line for line in logs.splitlines() if '"event": "stream"' in line]
    told = json.loads(line)
    assert (told["frames"], told["records"], told["errors"], told["tenant"]) == (2, 3, 1, "anonymous")
