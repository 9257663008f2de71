import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sequence_model import CELLS, ModelConfig, SequenceModel

STACKS = [(1, False), (2, False), (2, True)]


def make_model(cell="lstm", seed=0, **fields):
    torch.manual_seed(seed)
    fields = {"input_size": 3, "hidden_size": 6, "output_size": 2, **fields}
    return SequenceModel(ModelConfig(cell, **fields)).eval()


def random_state(model, B):
    return tuple(torch.tanh(torch.randn_like(state)) for state in model.zero_state(B))


def assert_close(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("layers", "bidirectional"), STACKS)
def test_shapes_are_those_of_the_docstring(cell, layers, bidirectional):
    model = make_model(cell, layers=layers, bidirectional=bidirectional)
    y, *state = model(torch.randn(4, 7, 3))
    assert y.shape == (4, 7, 2)
    assert len(state) == len(model.state_names) == (2 if cell == "lstm" else 1)
    assert all(s.shape == (layers * (2 if bidirectional else 1), 4, 6) for s in state)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_carried_state_makes_chunks_equal_the_whole(cell, layers):
    model = make_model(cell, layers=layers)
    x, state = torch.randn(4, 9, 3), random_state(model, 4)
    whole = model(x, *state)
    y1, *between = model(x[:, :4], *state)
    y2, *final = model(x[:, 4:], *between)
    assert_close([torch.cat([y1, y2], dim=1), *final], whole)


@pytest.mark.parametrize("cell", CELLS)
def test_state_left_out_is_zero_and_state_given_matters(cell):
    model = make_model(cell)
    x = torch.randn(2, 5, 3)
    assert torch.equal(model(x)[0], model(x, *model.zero_state(2))[0])
    assert not torch.equal(model(x)[0], model(x, *random_state(model, 2))[0])


def test_half_a_state_is_refused():
    model = make_model("lstm")
    with pytest.raises(ValueError, match="all of"):
        model(torch.randn(1, 2, 3), torch.zeros(1, 1, 6))


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 1000))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("layers", "bidirectional"), STACKS)
def test_a_padded_row_is_the_row_alone(cell, layers, bidirectional, lengths, seed):
    model = make_model(cell, seed, layers=layers, bidirectional=bidirectional)
    x, state = torch.randn(len(lengths), 7, 3), random_state(model, len(lengths))
    y, *final = model(x, *state, lengths=torch.tensor(lengths))
    assert y.shape[1] == 7
    for b, length in enumerate(lengths):
        y_alone, *final_alone = model(x[b : b + 1, :length], *(s[:, b : b + 1] for s in state))
        assert_close([y[b : b + 1, :length], *(s[:, b : b + 1] for s in final)], [y_alone, *final_alone])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nothing_in_the_padding_reaches_state_or_gradient(cell, bidirectional):
    model = make_model(cell, layers=2, bidirectional=bidirectional)
    lengths = torch.tensor([2, 5, 3])
    results = []
    for padding in (0.0, 1e6):
        x = torch.ones(3, 5, 3)
        for b, length in enumerate(lengths):
            x[b, length:] = padding
        y, *state = model(x, lengths=lengths)
        valid = [y[b, :length] for b, length in enumerate(lengths)]
        model.zero_grad()
        torch.cat([part.flatten() for part in [*valid, *state]]).sum().backward()
        results.append([*valid, *state, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for zero_padded, noisy in zip(*results, strict=True):
        assert torch.equal(zero_padded, noisy)


@pytest.mark.parametrize("cell", CELLS)
def test_padded_steps_are_answered_as_zeros_are(cell):
    model = make_model(cell)
    y = model(torch.randn(2, 5, 3), lengths=torch.tensor([2, 5]))[0]
    assert_close([y[0, 2:]], [model.head.bias.expand(3, 2)])


def test_normalisation_happens_inside():
    plain, normalising = make_model(), make_model()
    mean, std = torch.tensor([100.0, -3.0, 0.0]), torch.tensor([10.0, 0.1, 1.0])
    normalising.set_input_normalisation(mean, std)
    x = torch.randn(2, 4, 3)
    assert_close(normalising(x * std + mean), plain(x))


def test_output_scale_gives_real_units_and_leaves_the_state():
    plain, scaled = make_model(), make_model()
    scaled.set_output_scale([55.0, 1.0], [18.0, 2.0])
    x = torch.randn(2, 4, 3)
    y, *state = plain(x)
    expected = y * torch.tensor([18.0, 2.0]) + torch.tensor([55.0, 1.0])
    torch.testing.assert_close(scaled(x)[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(scaled(x)[1:], state, strict=True))


@pytest.mark.parametrize(
    ("mean", "std"), [([0.0] * 3, [1.0, 0.0, 1.0]), ([0.0] * 2, [1.0] * 2), ([float("nan")] * 3, [1.0] * 3)]
)
def test_a_scale_that_would_poison_the_model_is_refused(mean, std):
    with pytest.raises(ValueError, match="mean"):
        make_model().set_input_normalisation(mean, std)


def test_a_softmax_head_gives_probabilities_and_logits_their_logarithms():
    model = make_model(head="softmax", output_size=4)
    x = torch.randn(2, 3, 3)
    y, logits = model(x)[0], model.logits(x)[0]
    torch.testing.assert_close(y.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(y, torch.softmax(logits, -1))


def test_a_token_model_takes_tokens():
    model = make_model("gru", input_size=11, embedding_size=4, output_size=11)
    y, h = model(torch.tensor([[0, 10, 3]]))
    assert (y.shape, h.shape) == ((1, 3, 11), (1, 1, 6))
    with pytest.raises(ValueError, match="token model"):
        model.set_input_normalisation([0.0] * 11, [1.0] * 11)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_works_between_layers_and_only_while_training(cell):
    model = make_model(cell, layers=2, dropout=0.5)
    x = torch.randn(2, 5, 3)
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    first, second = model(x)[1], model(x)[1]
    assert torch.equal(first[0], second[0])  # the first layer's state: nothing is dropped below it
    assert not torch.equal(first[1], second[1])


def test_lstm_forget_gates_start_open():
    lstm = make_model("lstm", layers=2).recurrent
    for layer in range(2):
        total = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
        assert torch.equal(total[6:12], torch.ones(6))


@pytest.mark.parametrize(
    "fields",
    [{"cell": "lstn"}, {"head": "sofmax"}, {"layers": 0}, {"hidden_size": 0}, {"dropout": 1.0}, {"embedding_size": 0}],
)
def test_a_config_that_cannot_be_built_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        ModelConfig(**{"cell": "lstm", "input_size": 3, "hidden_size": 4, "output_size": 2, **fields})


def test_the_same_seed_gives_the_same_model():
    x = torch.from_numpy(np.ones((1, 2, 3), np.float32))
    for cell in CELLS:
        assert torch.equal(make_model(cell)(x)[0], make_model(cell)(x)[0])
