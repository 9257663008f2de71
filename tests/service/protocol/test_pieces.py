from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.protocol import pieces as module
from service.protocol.pieces import pieces

NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-9, 9), min_size=1)
SPACED = {"separators": (",", ":")}, {}, {"indent": 1}, {"separators": ("\t\r\n , ", ":")}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 20)


@pytest.mark.parametrize("form", SPACED)
@settings(max_examples=200)
@given(data=st.data())
def test_pieces_are_the_list(form: dict[str, Any], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, 1))
    items: list[Any] = data.draw(st.lists(NUMBERS, min_size=1) if rank else NUMBERS)
    text = json.dumps(items, **form).encode()
    found = [json.loads(piece) for piece in pieces(text, rank)]
    assert [item for piece in found for item in piece] == items
    assert all(found)


@pytest.mark.parametrize("text", [b"[" + b"1," * 100 + b"1]", b"[" + b"[1], " * 40 + b"[1]]"])
def test_each_piece_is_short(text: bytes) -> None:
    assert max(map(len, pieces(text, text.count(b"]") > 1))) < 30


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("item", [b"[[1,2],[3]]", b'"a,b],c"', b"{}", b'{"a": [1, 2]}', b"null", b"[1,[2]]"])
def test_pieces_of_something_else_fit_no_better_than_the_whole(rank: int, item: bytes) -> None:
    fitting = b"[1,2]" if rank else b"1"
    for place in range(20):
        items = [fitting] * 20
        items[place] = item
        assert not all(fits(piece, rank) for piece in pieces(b"[" + b", ".join(items) + b"]", rank))


def fits(piece: bytes, rank: int) -> bool:
    try:
        items = json.loads(piece)
    except ValueError:
        return False
    lists = items if rank else [items]
    return all(isinstance(part, list) and all(type(number) in (int, float) for number in part) for part in lists)
