"""Japanese Vowels: which of nine men says /ae/? 12 cepstrum coefficients, 7 to 29 steps, the official 270/370 split.

The answer is the largest probability at a series' last step. Every sixth series of each speaker's 30 in the training
file is the validation split.
"""

from __future__ import annotations

import lzma
from functools import cache
from importlib.resources import files

import numpy as np

from models.tasks.task import NO_CLASS, Arrays, DataSource, Recipe, Reference, Split, Task

NUM_SPEAKERS, NUM_CHANNELS = 9, 12
VALID_EVERY = 6


@cache
def read(name: str) -> Split:
    """`train` or `test` in the order of the file; (T, 12) float32 each, the speaker (0..8) at the last step."""
    packed = (files("models") / "data" / f"vowels_{name}.ts.xz").read_bytes()
    inputs, targets = [], []
    for line in lzma.decompress(packed).decode().splitlines():
        if line and line[0] not in "#@":
            *channels, label = line.split(":")
            x = np.array([channel.split(",") for channel in channels], dtype=np.float32).T
            target = np.full(len(x), NO_CLASS, dtype=np.int64)
            target[-1] = int(label) - 1
            inputs.append(np.ascontiguousarray(x))
            targets.append(target)
    return Split(inputs, targets)


@cache
def train_or_valid(valid: bool) -> Split:
    whole = read("train")
    chosen = [place for place in range(len(whole.inputs)) if (place % VALID_EVERY == VALID_EVERY - 1) == valid]
    return Split([whole.inputs[place] for place in chosen], [whole.targets[place] for place in chosen])


def accuracy(inputs: Arrays, outputs: Arrays, targets: Arrays) -> float:
    """Percentage of series whose last step's largest probability is the speaker's."""
    right = [int(y[-1].argmax()) == int(target[-1]) for y, target in zip(outputs, targets, strict=True)]
    return 100.0 * float(np.mean(right))


TASK = Task(
    name="vowels",
    kind="classification",
    description="Says which of nine speakers utters a Japanese vowel, surer with every step.",
    model={
        "cell": "lstm",
        "input_size": NUM_CHANNELS,
        "hidden_size": 100,
        "output_size": NUM_SPEAKERS,
        "head": "softmax",
    },
    recipe=Recipe(
        max_epochs=60,
        batch_size=27,
        learning_rate=3e-3,
        weight_decay=0.01,
        input_noise=0.7,
        patience=60,
    ),
    loss="cross_entropy",
    input={
        "description": "12 linear-prediction cepstrum coefficients of one speech frame, raw as in the data set",
        "labels": [f"coefficient {number}" for number in range(1, NUM_CHANNELS + 1)],
    },
    output={
        "description": "probability of each speaker, given the steps so far; the last step is the answer",
        "kind": "probability",
        "labels": [f"speaker {number}" for number in range(1, NUM_SPEAKERS + 1)],
    },
    data=DataSource(
        name="Japanese Vowels, 270 training and 370 test series (Kudo, Toyama, Shimbo 1999)",
        source="UCI Machine Learning Repository, as packed in the sktime 1.2.0 wheel",
        licence="CC BY 4.0",
    ),
    metric_name="accuracy",
    metric_unit="%",
    better="higher",
    metric=accuracy,
    train_split=lambda epoch: train_or_valid(False),
    valid_split=lambda: train_or_valid(True),
    test_split=lambda: read("test"),
    references=lambda: (
        Reference("BiLSTM, 100 units", 95.4, "MathWorks, Sequence Classification Using Deep Learning"),
        Reference("best ensemble", 98.9, "as published for the official split; not recomputed"),
    ),
    normalise_inputs=True,
)
