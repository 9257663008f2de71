"""What the service promises, on onnxruntime's CPU: bit for bit, or not at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.make import BIDIRECTIONAL, KINDS, make_feed, make_model, make_session


@pytest.fixture(scope="module")
def sessions():
    """Made once a kind, size and thread count."""
    made = {}

    def get(kind, hidden_size, threads):
        key = (kind, hidden_size, threads)
        if key not in made:
            model = make_model(**(KINDS | BIDIRECTIONAL)[kind], hidden_size=hidden_size)
            made[key] = (model, make_session(model, threads))
        return made[key]

    return get


def assert_same_bits(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_whole_equals_any_chunks(sessions, kind, data):
    model, session = sessions(kind, data.draw(st.sampled_from([8, 20, 100])), data.draw(st.sampled_from([1, 2])))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    x, states = make_feed(model, data.draw(st.integers(1, 12)), sum(sizes), data.draw(st.integers(0, 99)))
    assert_same_bits(session.run(x, states), session.run_chunks(x, states, sizes))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", [*KINDS, *BIDIRECTIONAL])
def test_a_row_in_a_batch_equals_the_row_alone(sessions, kind, data):
    model, session = sessions(kind, data.draw(st.sampled_from([8, 20, 100])), data.draw(st.sampled_from([1, 2])))
    B, T = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 64))
    x, states = make_feed(model, B, T, data.draw(st.integers(0, 99)))
    y, *final = session.run(x, states)
    for b in {0, B // 2, B - 1}:
        alone = session.run(x[b : b + 1], [state[:, b : b + 1] for state in states])
        assert_same_bits(alone, [y[b : b + 1], *(state[:, b : b + 1] for state in final)])


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_cho", "rnn"])
@pytest.mark.parametrize("output_size", [1, 9, 63])
def test_every_batch_up_to_33_and_heads_of_odd_sizes(cell, output_size):
    model = make_model(cell=cell, output_size=output_size, hidden_size=100)
    session = make_session(model)
    x, states = make_feed(model, 33, 2)
    whole = session.run(x, states)
    for B in range(1, 33):
        y, *final = session.run(x[:B], [state[:, :B] for state in states])
        assert_same_bits([y, *final], [whole[0][:B], *(state[:, :B] for state in whole[1:])])


def test_threads_change_no_bit():
    model = make_model(cell="lstm", layers=2, hidden_size=100)
    x, states = make_feed(model, 24, 20)
    assert_same_bits(make_session(model, 1).run(x, states), make_session(model, 2).run(x, states))
