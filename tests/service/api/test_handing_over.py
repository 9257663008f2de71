"""A connection that asks for plain steps again and again is offered to a worker, between two calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.connection import Connection
from tests.service.api.clients import SUM
from tests.service.api.socket_server import open_wire, post, steps_path

STEP = b'{"inputs": [[1, 2]]}'


def test_a_connection_is_handed_over_when_all_its_answers_have_left(repository: Path) -> None:
    unsent: list[int] = []

    def hand_over(connection: Connection, data: bytes) -> bool:
        unsent.append(connection.transport.get_write_buffer_size())
        return False

    with open_wire(repository) as wire:
        ways: Any = wire.server._ways
        ways.patience, ways.hand_over = 1, hand_over
        for steps in range(4_000, 8_000, 200):  # some answers are a little more than the system takes
            caller = wire.connect(receive_buffer=4096)
            path = steps_path(SUM, f"s{steps}")
            caller.call(post(path.rsplit("/", 2)[0], b'{"sequence_id": "s%d"}' % steps))
            taken = wire.steps.taken
            caller.send(post(path, b'{"commit": false, "inputs": [%s]}' % b",".join([b"[7.1,5]"] * steps)))
            wire.wait_until(lambda taken=taken: wire.steps.taken > taken)
            wire.wait_until_done()
            caller.send(post(path, STEP))
            assert caller.receive().status == 200
            assert caller.receive().status == 200
            caller.close()
    assert unsent
    assert not any(unsent)
