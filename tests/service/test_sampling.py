"""Draws go by the seed and the odds alone."""

from __future__ import annotations

import numpy as np
import pytest

from service.sampling import Sampler, Stops, log_odds

LOGITS = np.array([0.0, 2.0, 1.0, -1.0, 2.0], np.float32)


def draws(count: int, seed: int = 7, logits: np.ndarray = LOGITS, **options: float) -> list[int]:
    sampler = Sampler(seed, **options)  # type: ignore[arg-type]
    return [sampler.draw(logits) for _ in range(count)]


def test_a_seed_always_gives_the_same_tokens_and_another_seed_others() -> None:
    assert draws(12) == [4, 4, 4, 1, 1, 4, 0, 4, 4, 2, 1, 1], "a change here changes every text that a seed stands for"
    assert draws(50, seed=8) != draws(50)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-300}])
def test_the_likeliest_token_is_the_first_of_those(options: dict[str, float]) -> None:
    expected = {1} if options.get("temperature") != 1e-300 else {1, 4}
    assert set(draws(50, **options)) == expected


def test_top_k_leaves_the_likeliest_and_of_equal_ones_those_of_lower_id() -> None:
    assert set(draws(500, top_k=2)) == {1, 4}
    assert set(draws(500, logits=(np.arange(500) % 2).astype(np.float32), top_k=3)) == {1, 3, 5}
    assert draws(50, top_k=5) == draws(50, top_k=99) == draws(50)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_their_odds_say(temperature: float) -> None:
    weights = np.exp(LOGITS.astype(np.float64) / temperature)
    count, expected = 10_000, weights / weights.sum()
    for seed in (1, 2):
        seen = np.bincount(draws(count, seed, temperature=temperature), minlength=5)
        chi_square = float((((seen - count * expected) ** 2) / (count * expected)).sum())
        assert chi_square < 18.5, "1 in 1000 at 4 degrees of freedom"


def test_a_token_without_odds_is_never_drawn() -> None:
    probabilities = np.array([0.0, 0.75, 0.0, 0.25, 0.0], np.float32)
    seen = np.bincount(draws(4000, logits=log_odds(probabilities)), minlength=5) / 4000
    assert seen.tolist() == pytest.approx([0, 0.75, 0, 0.25, 0], abs=0.03)
    assert seen[[0, 2, 4]].tolist() == [0, 0, 0]


def test_a_number_that_rounds_up_to_the_whole_takes_the_last_token_with_odds() -> None:
    class Highest:
        def random(self) -> float:
            return 1 - 2**-53

    sampler = Sampler(0)
    sampler._random = Highest()  # type: ignore[assignment]
    assert sampler.draw(np.array([0, 0, -np.inf], np.float32)) == 1


@pytest.mark.parametrize(
    ("ends", "text", "stops_after"),
    [
        (["cd"], "abcd", 4),
        (["x", "b"], "abab", 2),
        ([2], "abca", 3),
        (["aab"], "aaab", 4),
        (["e", 0], "bca", 3),
        ([], "abcde", None),
        (["ba"], "ab", None),
    ],
)
def test_a_text_stops_at_its_first_end(ends: list[str | int], text: str, stops_after: int | None) -> None:
    stops = Stops(ends, "abcde")
    met = [stops.met_by("abcde".index(character)) for character in text]
    assert (met.index(True) + 1 if True in met else None) == stops_after


def test_an_end_may_lie_over_tokens_and_within_one() -> None:
    vocabulary = ["In the ", "beginning ", "God "]
    over, within = Stops(["the begin"], vocabulary), Stops(["ginn"], vocabulary)
    assert [over.met_by(token) for token in (0, 2, 0, 1)] == [False, False, False, True]
    assert [within.met_by(token) for token in (0, 2, 1)] == [False, False, True]
