"""Names that real models give to states, and names that are no states."""

import numpy as np
import pytest

from export.adoption.pairs import find_pair, fits
from export.adoption.plan import Tensor


@pytest.mark.parametrize(
    ("name", "output", "others"),
    [
        ("state", "stateN", ["output"]),
        ("h", "hn", ["output", "cn"]),
        ("c", "cn", ["output", "hn"]),
        ("h0", "hN", ["y", "cN"]),
        ("h_0", "h_n", ["y"]),
        ("x_in", "x_out", ["y_out"]),
        ("cache_0", "new_cache_0", ["out", "new_cache_1", "new_cache_10"]),
        ("hidden_in", "hidden_out", ["y"]),
        ("prev_state", "next_state", ["logits"]),
        ("prev_state", "state", ["logits"]),
        ("past.0.key", "present.0.key", ["present.0.value"]),
        ("lstm_1_h_in:0", "lstm_1_h_out:0", ["lstm_2_h_out:0", "lstm_1_c_out:0"]),
        ("in_state", "out_state", []),
        ("initial_h", "final_h", ["y"]),
        ("input_states", "output_states", ["logits"]),
        ("h1_in", "h1_out", ["h2_out"]),
        ("conv_cache", "conv_cache_out", []),
        ("encoder_h0", "encoder_hn", ["decoder_hn"]),
        ("hiddenState", "hiddenStateNext", []),
        ("cell", "cell", ["y"]),
    ],
)
def test_a_state_is_found_by_its_name(name: str, output: str, others: list[str]):
    found = find_pair(name, [*others, output])
    assert found
    assert found[0] == output
    assert found[1].startswith("names: ")


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("input", ["output", "stateN"]),
        ("input_1", ["output_1"]),
        ("x", ["y"]),
        ("features", ["logits", "hn"]),
        ("h", ["hn", "h_next"]),
        ("h0", ["hn_0", "hn_1"]),
        ("input_2", ["Identity", "Identity_1"]),
    ],
)
def test_what_names_do_not_tell_is_not_guessed(name: str, outputs: list[str]):
    assert find_pair(name, outputs) is None


def test_types_and_sizes_speak_against_a_pair_and_never_for_one():
    def tensor(axes, dtype=np.float32):
        return Tensor("t", np.dtype(dtype), axes)

    assert fits(tensor((2, "batch", 64)), tensor((2, "N", 64)))
    assert fits(tensor((2, None, 64)), tensor((None, None, None)))
    assert not fits(tensor((2, "batch", 64)), tensor((2, "batch", 65)))
    assert not fits(tensor((2, "batch", 64)), tensor((2, "batch")))
    assert not fits(tensor((2, 3)), tensor((2, 3), np.int64))
