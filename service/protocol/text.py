"""Text to tokens and back, for models with a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.model_spec import TensorSpec
from service.protocol.codec import Codec, decode_part
from service.protocol.misfits import MISFITS


def read_text(codec: Codec, raw: msgspec.Raw) -> str | None:
    """A field that is a string; None for anything else."""
    try:
        text: str = decode_part(codec, str, raw)
    except MISFITS:
        return None
    return text


def least_tokens(text: str, tensor: TensorSpec) -> int:
    """As few tokens as a text of this length can be; told without reading it."""
    longest = max(map(len, tensor.token_ids), default=0)
    return math.ceil(len(text) / longest) if longest else 0


def encode_text(text: str, tensor: TensorSpec, place: str = "inputs") -> NDArray[np.int64]:
    """Tokens, `(T,)` with T >= 1; of several that fit the longest. Raises InvalidInput for what is in no token."""
    token_of = tensor.token_ids
    if not token_of:
        raise InvalidInput(f"{place}: the model has no vocabulary, so it takes token ids, no text.", place=place)
    if not text:
        raise InvalidInput(f"{place}: expected at least one character, got none.", place=place)
    longest = max(map(len, token_of))
    tokens, at = [], 0
    while at < len(text):
        piece = next((text[at:end] for end in range(at + longest, at, -1) if text[at:end] in token_of), None)
        if piece is None:
            raise InvalidInput(
                f"{place}: character {at}, {text[at]!r}, is in no token of the vocabulary. The model's card lists "
                "its tokens.",
                place=place,
                received=text[at],
            )
        tokens.append(token_of[piece])
        at += len(piece)
    return np.array(tokens, np.int64)


def decode_tokens(tokens: Iterable[int], tensor: TensorSpec) -> str | None:
    """The text of tokens; None for a model without a vocabulary."""
    return None if tensor.vocabulary is None else "".join(tensor.vocabulary[token] for token in tokens)
