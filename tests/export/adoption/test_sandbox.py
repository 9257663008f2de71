"""Hostile files are refused within two seconds, whatever they do to the process that looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from export.adoption.plan import AdoptionError, Wishes
from export.adoption.sandbox import Limits, examine, read_answer
from tests.export.adoption.foreign import one_step
from tests.export.adoption.hostile import HOSTILE, loop
from tests.export.adoption.zygote import Zygote

REFUSED_SECONDS = 1.7
"""Of processor time, which a busy machine does not change; starting Python takes 0.3 more."""


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as started:
        yield started


def test_there_are_enough_hostile_files():
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_time(zygote: Zygote, name: str):
    with pytest.raises(AdoptionError) as refused:
        zygote.examine(HOSTILE[name](), Wishes(about={"name": name}))
    assert zygote.seconds <= REFUSED_SECONDS
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_harmless_files_are_not_refused(zygote: Zygote):
    _, report = zygote.examine(one_step(), Wishes(about={"name": "harmless"}))
    assert report["served"].startswith("streams")


def test_an_answer_that_was_cut_off_is_none(tmp_path: Path):
    answer = tmp_path / "answer"
    answer.write_bytes(b'{"phase": "read"}\n{"report": {}}\nhalf a model')
    with answer.open("rb") as file, pytest.raises(AdoptionError, match="far larger than the file"):
        read_answer(file, 1, Limits.of(1))


def test_a_harmless_file_comes_out_as_in_this_process():
    data, report = examine(one_step(), Wishes(about={"name": "harmless"}))
    assert report["served"] == "streams and whole sequences, batched, bit for bit"
    assert b'"name": "harmless"' in data


def test_no_file_is_read_or_written_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(bytes(256))
    with pytest.raises(AdoptionError, match=r"keeps its data in another file, 'pyproject.toml'"):
        examine(HOSTILE["external_beside"](), Wishes(about={"name": "m"}))
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


def test_what_takes_too_long_says_so():
    with pytest.raises(AdoptionError, match=r"more than 1\.\d s of processor time to be loaded and run once"):
        examine(loop(2**62), Wishes(about={"name": "m"}))
    short = loop(3_000)
    with pytest.raises(AdoptionError, match=r"more than 0\.1 s of processor time to be examined; --seconds gives"):
        examine(short, Wishes(about={"name": "m"}), doctor_seconds=0.1)


def test_a_larger_file_has_longer_and_more_memory():
    small, large = Limits.of(10**6), Limits.of(10**9)
    assert small.try_seconds < 1.3 < large.try_seconds
    assert small.address_bytes < large.address_bytes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eight_gigabytes_beyond_memory", "[Aa]lloc"),
        ("function_that_calls_itself", "calls itself"),
        ("functions_in_a_circle", "calls itself"),
        ("tower_of_functions", "unfold to more than 50,000 nodes"),
        ("nested_twenty_deep", "nested more than 8 deep"),
        ("million_nodes", "processor time to be read|nodes; expected at most"),
        ("sizes_that_overflow", "absurd shape"),
        ("too_few_bytes", r"is \[1000\], but has 4 bytes"),
        ("text", "no ONNX file, or a damaged one"),
    ],
)
def test_the_reason_is_told(zygote: Zygote, name: str, words: str):
    with pytest.raises(AdoptionError, match=words):
        zygote.examine(HOSTILE[name](), Wishes(about={"name": name}))
