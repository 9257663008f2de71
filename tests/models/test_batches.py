"""Cutting splits into batches: nothing lost, nothing mixed up, padding without effect."""

import numpy as np
import torch

from models.batches import epoch_batches
from models.predict import predictor
from models.sequence_model import ModelConfig, SequenceModel
from models.tasks.task import NO_CLASS, Recipe, Split

RAGGED = Recipe(max_epochs=1, batch_size=3, learning_rate=0.1)
STREAMS = Recipe(max_epochs=1, batch_size=3, learning_rate=0.1, bptt_steps=4)


def counted(lengths):
    """Series of unique numbers; the target is the number's tenfold."""
    ends = np.cumsum(lengths)
    series = [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    return Split(series, [10 * x for x in series])


def test_every_series_is_in_one_batch_whole_and_padding_has_no_target():
    split = counted([5, 2, 7, 3])
    batches = epoch_batches(split, RAGGED, epoch=0)
    rows = []
    for batch in batches:
        lengths = batch.lengths if batch.lengths is not None else [batch.x.shape[1]] * len(batch.x)
        for x, target, length in zip(batch.x, batch.target, lengths, strict=True):
            rows.append(x[:length].tolist())
            assert target[:length].tolist() == [10 * value for value in x[:length].tolist()]
            assert (target[length:] == NO_CLASS).all()
    assert sorted(rows) == sorted(x.tolist() for x in split.inputs)
    assert [len(batch.x) for batch in batches] == [3, 1]


def test_the_order_changes_with_the_epoch_and_is_the_same_when_asked_again():
    split = counted([2] * 30)
    first, again, second = (epoch_batches(split, RAGGED, epoch) for epoch in (0, 0, 1))
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))


def test_streams_go_on_in_the_same_row_of_the_next_batch():
    split = counted([20, 11, 9])
    batches = epoch_batches(split, STREAMS, epoch=3)
    rows = torch.cat([batch.x for batch in batches], dim=1)
    assert rows.shape == (3, 13)
    assert ((rows[:, 1:] - rows[:, :-1]) % 40 == 1).all()
    assert torch.equal(torch.cat([batch.target for batch in batches], dim=1), 10 * rows)
    assert [batch.continues for batch in batches] == [False, True, True, True]
    assert len(set(rows.flatten().tolist())) == 39  # a tail of one step is left out


def test_streams_are_cut_elsewhere_in_each_epoch():
    split = counted([40])
    starts = {epoch_batches(split, STREAMS, epoch)[0].x[0, 0].item() for epoch in range(8)}
    assert len(starts) > 1


def test_predictions_of_ragged_series_are_those_of_each_alone():
    torch.manual_seed(0)
    predict = predictor(SequenceModel(ModelConfig("lstm", input_size=2, hidden_size=8, output_size=3)), max_batch=3)
    random = np.random.default_rng(0)
    series = [random.normal(size=(length, 2)).astype(np.float32) for length in (4, 9, 1, 6)]
    together, alone = predict(series), [predict([x])[0] for x in series]
    assert [y.shape for y in together] == [(4, 3), (9, 3), (1, 3), (6, 3)]
    for row, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(row, single, rtol=0, atol=1e-6)
