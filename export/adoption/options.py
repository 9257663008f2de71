"""Words of the command line -> what they mean: `sr=16000`, `input:64`, `x=batch,time,40`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.adoption.plan import BATCH, TIME, AdoptionError, Array, Axis


def texts(option: str, words: list[str] | None) -> dict[str, str]:
    """`in=out`."""
    return dict(_parted(option, words, "=", "IN=OUT"))


def values(option: str, words: list[str] | None) -> dict[str, Array]:
    """`sr=16000`, `flag=true`, `weights=@weights.npy`."""
    return {name: _value(option, name, text) for name, text in _parted(option, words, "=", "IN=VALUE")}


def counts(option: str, words: list[str] | None) -> dict[str, int]:
    """`input:64` or `input=64`."""
    return {name: _count(option, name, text) for name, text in _parted(option, words, ":=", "IN:COUNT")}


def axes(option: str, words: list[str] | None) -> dict[str, int | None]:
    """`x=1`; `x=none` for an input that has no such axis."""
    parted = _parted(option, words, ":=", "IN=AXIS")
    return {name: None if text == "none" else _count(option, name, text) for name, text in parted}


def shapes(option: str, words: list[str] | None) -> dict[str, tuple[Axis, ...]]:
    """`x=batch,time,40`."""
    return {name: _shape(option, name, text) for name, text in _parted(option, words, "=", "IN=AXES")}


def read(path: Path) -> bytes:
    """Raises AdoptionError for what is no readable file."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise AdoptionError(f"{path}: there is no such file")
        return path.read_bytes()
    except OSError as error:
        raise AdoptionError(f"{path} cannot be read: {error.strerror}") from error


def load(path: Path) -> Array:
    """An array from a .npy file. Raises AdoptionError for any other file."""
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AdoptionError(f"{path} is no .npy file of numbers: {error}") from error
    return array


def _parted(option: str, words: list[str] | None, marks: str, form: str) -> Iterator[tuple[str, str]]:
    """At the last of the marks: a tensor may be called `lstm/state:0`."""
    for word in words or ():
        at = max(word.rfind(mark) for mark in marks)
        if at <= 0 or at == len(word) - 1:
            raise AdoptionError(f"{option} {word}: expected {form}")
        yield word[:at], word[at + 1 :]


def _value(option: str, name: str, text: str) -> Array:
    if text.startswith("@"):
        return load(Path(text[1:]))
    if text in ("true", "false"):
        return np.array(text == "true")
    try:
        return np.array(int(text))
    except ValueError:
        pass
    try:
        return np.array(float(text))
    except ValueError:
        raise AdoptionError(f"{option} {name}={text}: expected a number, true, false, or @FILE.npy") from None


def _count(option: str, name: str, text: str) -> int:
    if not text.isdecimal():
        raise AdoptionError(f"{option} {name}: expected a count, got {text!r}")
    return int(text)


def _shape(option: str, name: str, text: str) -> tuple[Axis, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part in (BATCH, TIME) or (part.isdecimal() and int(part) > 0) for part in parts):
        raise AdoptionError(f"{option} {name}={text}: expected `batch`, `time` and sizes, as in batch,time,40")
    return tuple(part if part in (BATCH, TIME) else int(part) for part in parts)
