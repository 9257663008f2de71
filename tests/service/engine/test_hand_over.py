"""The thread beside the loop: what it returns and raises comes back, and it keeps nothing."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from service.engine.hand_over import HandOver

pytestmark = pytest.mark.anyio


async def test_calls_run_one_after_the_other_beside_the_loop():
    thread, ran, go = HandOver("beside"), [], threading.Event()

    def run(number: int) -> str:
        go.wait()
        ran.append(number)
        return threading.current_thread().name

    calls = [thread.run(run, number) for number in range(3)]
    go.set()  # which the loop could not do if they ran on it
    assert await asyncio.gather(*calls) == ["beside"] * 3
    assert ran == [0, 1, 2]
    thread.stop()


async def test_what_a_call_raises_is_raised_and_the_next_one_runs():
    thread = HandOver("beside")
    with pytest.raises(ValueError, match="base 10"):
        await thread.run(int, "x")
    assert await thread.run(int, "7") == 7
    thread.stop()


async def test_a_call_that_nobody_waits_for_ends_quietly_and_before_the_thread():
    thread, begun, go, ended = HandOver("beside"), threading.Event(), threading.Event(), []

    def run() -> None:
        begun.set()
        go.wait()
        ended.append(True)

    call = thread.run(run)
    begun.wait()
    call.cancel()
    go.set()
    thread.stop()
    assert ended == [True]
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    await asyncio.sleep(0)
    assert faults == []


async def test_it_holds_nothing_that_it_ran():
    class Model:
        def run(self) -> int:
            return 1

    thread, model = HandOver("beside"), Model()
    gone = weakref.ref(model)
    assert await thread.run(model.run) == 1
    del model
    for _ in range(1000):  # it lets go just after it has answered
        if gone() is None:
            break
        await asyncio.sleep(0.001)
    assert gone() is None
    thread.stop()


def test_a_thread_that_was_never_needed_can_be_stopped():
    HandOver("beside").stop()
