"""Which output gives an input's next value, told from their names.

Shapes only ever speak against a pair: on real models shape alone pairs data with data, and a cell's h with its c.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from export.adoption.plan import Tensor

_BEFORE = {"in", "input", "inputs", "prev", "previous", "past", "old", "last", "init", "initial", "0", "i"}
_AFTER = {"out", "output", "outputs", "next", "new", "present", "updated", "cur", "current", "final", "n", "1", "o"}
_GLUED_BEFORE = ("0", "in", "i")
_GLUED_AFTER = ("next", "new", "out", "n", "o", "1")


def find_pair(name: str, outputs: Sequence[str]) -> tuple[str, str] | None:
    """The output that continues the input `name`, with the reason; None where no name or several fit."""
    for rule, stems_of_input, stems_of_output in _RULES:
        wanted = stems_of_input(name)
        found = [output for output in outputs if wanted & stems_of_output(output)]
        if len(found) == 1:
            return found[0], f"names: {rule}"
        if found:
            return None
    return None


def fits(state: Tensor, output: Tensor) -> bool:
    """May `output` be the next value of `state`, by type and by the sizes that both tell?"""
    if state.dtype != output.dtype:
        return False
    if state.axes is None or output.axes is None:
        return True
    return len(state.axes) == len(output.axes) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(state.axes, output.axes, strict=True)
    )


def _words(name: str) -> tuple[str, ...]:
    """`Encoder.h0:0` -> ("encoder", "h0"); `stateN` -> ("state", "n"); the serving system's ":0" is no part of it."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub(r":\d+$", "", name))
    return tuple(word for word in re.split(r"[^A-Za-z0-9]+", parted.lower()) if word)


def _stem(words: Sequence[str]) -> set[str]:
    """A stem has a letter; without this rule `input_1` and `output_1` would be a state."""
    text = "_".join(words)
    return {text} if re.search(r"[a-z]", text) else set()


def _same(name: str) -> set[str]:
    return _stem(_words(name))


def _without(name: str, marks: set[str], glued: Sequence[str]) -> set[str]:
    """Stems of a name without one mark in front, at the end or, glued on, at the end of any word."""
    words = _words(name)
    stems: set[str] = set()
    if words and words[0] in marks:
        stems |= _stem(words[1:])
    if words and words[-1] in marks:
        stems |= _stem(words[:-1])
    for place, word in enumerate(words):
        for mark in glued:
            if word.endswith(mark) and len(word) > len(mark):
                stems |= _stem((*words[:place], word[: -len(mark)], *words[place + 1 :]))
    return stems


def _before(name: str) -> set[str]:
    return _without(name, _BEFORE, _GLUED_BEFORE)


def _after(name: str) -> set[str]:
    return _without(name, _AFTER, _GLUED_AFTER)


_RULES = (
    ("x -> x_next, xn, new_x, x_out", _same, _after),
    ("x_in -> x_out, x0 -> xn, prev_x -> next_x", _before, _after),
    ("prev_x, x0 -> x", _before, _same),
    ("x -> x", _same, _same),
)
