"""The King James Bible, character by character.

Every 20th of the 1,189 chapters (the 20th, 40th, ...) is the test split; of the others, every 40th (the 10th, 50th,
...) is the validation split. A chapter is its verses, each ended by a newline. Evaluation goes chapter by chapter: the
state begins at zero, the first input is a newline, and every character of the chapter is predicted and counted.
"""

from __future__ import annotations

import lzma
from functools import cache
from importlib.resources import files

import numpy as np

from models.tasks.task import Arrays, DataSource, Recipe, Reference, Split, Task

VOCABULARY = tuple("\n !'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWYZabcdefghijklmnopqrstuvwxyz")
"""All 63 characters of the text; there is no X."""
NEWLINE = VOCABULARY.index("\n")

PPMD_SOURCE = "measured once in the same way with pyppmd (variant H, 256 MB)"


@cache
def chapters() -> tuple[str, ...]:
    """The 1,189 chapters from Genesis 1 to Revelation 22."""
    packed = (files("models") / "data" / "kjv.txt.xz").read_bytes()
    text = lzma.decompress(packed).decode("ascii")
    return tuple(chapter.rstrip("\n") + "\n" for chapter in text.split("\n\n"))


def part(index: int) -> str:
    """The split of chapter `index`, counted from 0."""
    if index % 20 == 19:
        return "test"
    return "valid" if index % 40 == 9 else "train"


def encode(text: str) -> np.ndarray:
    """Characters -> token numbers, (T,) int64; KeyError for a character outside the vocabulary."""
    numbers = {character: token for token, character in enumerate(VOCABULARY)}
    return np.array([numbers[character] for character in text], dtype=np.int64)


@cache
def split(name: str) -> Split:
    """One series a chapter: the inputs are the targets, one step late."""
    targets = [encode(chapter) for index, chapter in enumerate(chapters()) if part(index) == name]
    inputs = [np.concatenate(([NEWLINE], target[:-1])) for target in targets]
    return Split(inputs, targets)


def bits_per_character(inputs: Arrays, outputs: Arrays, targets: Arrays) -> float:
    """Mean of -log2 p(character | those before), from logits (T, V)."""
    bits, count = 0.0, 0
    for logits, target in zip(outputs, targets, strict=True):
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        log_p = wide[np.arange(len(target)), target] - np.log(np.exp(wide).sum(axis=-1))
        bits -= float(log_p.sum()) / np.log(2.0)
        count += len(target)
    return bits / count


def references() -> tuple[Reference, ...]:
    """Compressors on the same split; xz is recomputed: what the test chapters add to the training chapters' size."""
    rest = "".join(chapter for index, chapter in enumerate(chapters()) if part(index) != "test").encode()
    test = "".join(chapter for index, chapter in enumerate(chapters()) if part(index) == "test").encode()
    added = _xz_bytes(rest + test) - _xz_bytes(rest)
    return (
        Reference("xz -9e", 8 * added / len(test), "recomputed: size(train + test) - size(train), Python's lzma"),
        Reference("PPMd, order 4", 1.697, PPMD_SOURCE),
        Reference("PPMd, order 8", 1.379, PPMD_SOURCE),
    )


def _xz_bytes(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


TASK = Task(
    name="kjv",
    kind="language-model",
    description="Continues English of 1611, character by character; learned from the King James Bible.",
    model={
        "cell": "lstm",
        "input_size": len(VOCABULARY),
        "hidden_size": 256,
        "output_size": len(VOCABULARY),
        "embedding_size": 64,
    },
    recipe=Recipe(
        max_epochs=12,
        batch_size=32,
        bptt_steps=128,
        learning_rate=4e-3,
        warmup_steps=300,
        patience=4,
    ),
    loss="cross_entropy",
    input={
        "description": "one character a step; a text begins after a newline",
        "vocabulary": list(VOCABULARY),
    },
    output={
        "description": "logits of the next character",
        "kind": "logit",
        "vocabulary": list(VOCABULARY),
    },
    data=DataSource(
        name="King James Bible, 4.1 million characters",
        source="Debian packages bible-kjv and bible-kjv-text 4.38; text of 1611/1769, digitised by Chip Chapin",
        licence="public domain (text); free to use, modify and distribute with its legend (files)",
    ),
    metric_name="bits_per_character",
    metric_unit="bits",
    better="lower",
    metric=bits_per_character,
    train_split=lambda epoch: split("train"),
    valid_split=lambda: split("valid"),
    test_split=lambda: split("test"),
    references=references,
)
