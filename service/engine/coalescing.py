"""Calls of one sequence that wait one behind the other run as one piece: sixteen calls of one step cost one run.

The joined request stands in for its members. When it ends well each member gets its part; when it does not, for
whatever reason, the members go back to the queue and run one by one, so that each has just the fate it would have had.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import numpy as np

from service.engine.request import Request, Result, nobody


def join(queue: list[Request], most_steps: int) -> Request:
    """Replace the requests at the head of `queue` that may run as one by one that stands for them; the new head."""
    members: list[Request] = []
    num_steps = 0
    for request in takewhile(_may_join, queue):
        if members and num_steps + len(request.inputs) > most_steps:
            break
        if request.at is not None and members and (members[0].at is None or request.at != members[0].at + num_steps):
            break  # whether it is its turn will be known when those before it are done
        members.append(request)
        num_steps += len(request.inputs)
    if len(members) < 2:
        return queue[0]
    first = members[0]
    joined = Request(
        first.slot,
        np.concatenate([member.inputs for member in members]),
        first.arrived_at,
        nobody,
        outputs="none" if all(member.outputs == "none" for member in members) else "all",
        deadline=min((m.deadline for m in members if m.deadline is not None), default=None),
        tenant=first.tenant,
        at=first.at,
        owner=first.owner,
        members=tuple(members),
    )
    queue[: len(members)] = [joined]
    return joined


def split(queue: list[Request]) -> None:
    """Put the members of the joined request at the head of `queue` back in its place, to run one by one."""
    members = queue[0].members
    for member in members:
        member.alone = True
    queue[:1] = members


def shares(joined: Request, result: Result) -> Iterator[tuple[Request, Result]]:
    """Each member with its part of the `result` of all."""
    begun_at, at = result.position - result.steps, 0
    for member in joined.members:
        steps = len(member.inputs)
        part = result.outputs[at : at + steps]
        at += steps
        asked = {"all": part, "last": part[-1:], "none": part[:0]}[member.outputs]
        yield member, Result(asked, steps, begun_at + at, None)


def _may_join(request: Request) -> bool:
    plain = request.commit and not request.return_state and not request.members
    return plain and not request.alone and not request.steps_done and not request.gone
