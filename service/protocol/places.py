"""Words and places for what is wrong with a body."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

_TOLD = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<place>.*)`)?", re.DOTALL)
_COMPARED = re.compile(r"Expected (?P<expected>.*?)(?:, got (?P<received>.*))?", re.DOTALL)
_CHOSEN = re.compile(r"Invalid enum value (?P<received>.*)", re.DOTALL)
_ROW = re.compile(r"sequences\[(\d+)\]")


def refusal(text: str, wanted: Any, within: str = "") -> tuple[str, dict[str, Any]]:
    """What msgspec says of a part of `wanted` -> the message, and the facts: place, expected, received, index.

    `within` leads to `wanted`.
    """
    told = _TOLD.fullmatch(shorten(text))
    assert told is not None, "the pattern takes any text"
    what, place = told["what"], within + (told["place"] or "") or "body"
    facts: dict[str, Any] = {"place": place}
    if chosen := _CHOSEN.fullmatch(what):
        choices = _choices(wanted, place)
        facts |= {"expected": choices, "received": chosen["received"]}
        what = f"Expected {' or '.join(choices)}, got {chosen['received']}"
    elif compared := _COMPARED.fullmatch(what):
        facts |= {name: fact.replace("`", "") for name, fact in compared.groupdict().items() if fact is not None}
    return f"{place}: {what[:1].lower()}{what[1:]}", facts | row_of(place)


def row_of(place: str) -> dict[str, Any]:
    """`index` of the sequence that a place of a call of many is in."""
    row = _ROW.match(place)
    return {"index": int(row[1])} if row else {}


def _choices(wanted: Any, place: str) -> list[str]:
    """Of the field of `wanted` at `place`, where it is one."""
    kind = get_type_hints(wanted).get(place)
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else ["another value"]


def non_finite_place(tree: Any) -> str | None:
    """Where the first NaN or infinite number of a document stands, for example `sequences[2].inputs[17][3]`."""
    path = _path_to_non_finite(tree)
    if path is None:
        return None
    words = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in reversed(path))
    return "".join(words).removeprefix(".") or "body"


def shorten(text: str, most: int = 300) -> str:
    """What callers sent comes back in few words: a long text loses its middle."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def describe(value: Any) -> str:
    """A value in a few words for an error message, never at length."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | int):
        return "an integer" if isinstance(value, int) and abs(value) > 2**63 else repr(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "a string" if isinstance(value, str) else "an object" if isinstance(value, dict) else type(value).__name__


def _path_to_non_finite(tree: Any) -> list[str | int] | None:
    """Keys and indices, innermost first."""
    if isinstance(tree, float):
        return None if math.isfinite(tree) else []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for part, value in pairs:
        if (path := _path_to_non_finite(value)) is not None:
            path.append(part)
            return path
    return None
