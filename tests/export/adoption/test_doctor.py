"""What would stream wrong answers is not published; what cannot stream is served whole."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.adoption.plan import AdoptionError
from export.quantize import quantize
from tests.export.adoption.adopted import Served, adopt_as
from tests.export.adoption.foreign import content, forgetful, node, one_step, sums, two_cells

X = np.arange(1, 9, dtype=np.float32).reshape(4, 2)


def test_states_of_one_shape_that_are_right_stream(tmp_path: Path):
    served = Served(tmp_path, adopt_as(two_cells()))
    assert served.spec.streaming
    np.testing.assert_allclose(served.stream(X), served.whole(X), rtol=1e-6)


def test_crossed_states_are_refused_with_the_pairs_that_would_be_right():
    with pytest.raises(AdoptionError, match=r"states are crossed.* --state a=b_out --state b=a_out"):
        adopt_as(two_cells(crossed=True))


def test_pairs_that_the_caller_says_win_over_names(tmp_path: Path):
    adopted = adopt_as(two_cells(crossed=True), states={"a": "b_out", "b": "a_out"})
    assert Served(tmp_path, adopted).spec.streaming


def test_where_a_call_is_a_step_pairs_against_the_names_need_a_proof():
    nodes = [
        node("Add", "x h", "hn"),
        node("Add", "hn c", "cn"),
        node("Add", "hn cn", "y"),
    ]
    state = "f batch,2"
    inputs = ["x f batch,2", f"h {state}", f"c {state}"]
    data = content(nodes, inputs, ["y f batch,2", f"hn {state}", f"cn {state}"])
    wrong = {"h": "cn", "c": "hn"}
    with pytest.raises(AdoptionError, match=r"against the names, which say h=hn.*--expect"):
        adopt_as(data, states=wrong)
    h = X.cumsum(axis=0)
    right = h + h.cumsum(axis=0)
    with pytest.raises(AdoptionError, match="differs from the expected outputs"):
        adopt_as(data, states=wrong, sample=X, expected=right)
    checks = [finding["check"] for finding in adopt_as(data, sample=X, expected=right).report["findings"]]
    assert "stream == expected" in checks


def test_a_state_without_effect_is_refused():
    nodes = [node("Add", "x h", "hn"), node("Identity", "x", "y")]
    data = content(nodes, ["x f batch,2", "h f batch,2"], ["y f batch,2", "hn f batch,2"])
    with pytest.raises(AdoptionError, match="the same without state 'h'"):
        adopt_as(data)


def test_states_that_are_added_up_cannot_be_told_apart():
    nodes = [node("Sum", "x a b", "y"), node("Identity", "y", "a_next"), node("Identity", "y", "b_next")]
    state = "f batch,2"
    data = content(
        nodes, ["x f batch,2", f"a {state}", f"b {state}"], ["y f batch,2", f"a_next {state}", f"b_next {state}"]
    )
    with pytest.raises(AdoptionError, match="the same with a, b crossed"):
        adopt_as(data)


def test_what_looks_into_the_future_is_served_whole(tmp_path: Path):
    served = Served(tmp_path, adopt_as(forgetful("GRU", direction="bidirectional")))
    assert not served.spec.streaming
    verdicts = [finding["verdict"] for finding in served.report["findings"]]
    assert "it looks into the future" in verdicts
    assert served.report["served"].startswith("whole sequences only")


def test_what_forgets_between_calls_is_served_whole_and_says_what_may_help(tmp_path: Path):
    served = Served(tmp_path, adopt_as(forgetful()))
    assert not served.spec.streaming
    assert any("--lift" in finding["verdict"] for finding in served.report["findings"])


@pytest.fixture(scope="module")
def int8() -> bytes:
    """The bundled English model in int8, as anyone might have made it: without a manifest."""
    file = Path(__file__).parents[3] / "model_repository" / "kjv" / "1" / "model.onnx"
    proto = onnx.load_from_string(quantize(file.read_bytes()))
    del proto.metadata_props[:]
    data: bytes = proto.SerializeToString()
    return data


def test_int8_streams_one_by_one_and_step_by_step(tmp_path: Path, int8: bytes):
    served = Served(tmp_path, adopt_as(int8))
    spec = served.spec
    assert (spec.streaming, spec.batch_invariant, spec.max_batch_size, spec.max_chunk_size) == (True, False, 1, 1)
    assert spec.input.token_counts == (63,)
    assert "one by one, bit for bit" in served.report["served"]


def test_a_model_that_draws_random_numbers_is_refused():
    nodes = [node("RandomNormalLike", "x", "noise"), node("Add", "noise h", "hn"), node("Identity", "hn", "y")]
    data = content(nodes, ["x f batch,2", "h f batch,2"], ["y f batch,2", "hn f batch,2"])
    with pytest.raises(AdoptionError, match="draws random numbers"):
        adopt_as(data)


def test_a_state_that_grows_is_refused():
    nodes = [node("Concat", "h x", "hn", axis=1), node("ReduceSum", "hn one", "y", keepdims=1)]
    inputs = ["x f batch,1,2", "h f batch,past,2"]
    data = content(nodes, inputs, ["y f batch,1,2", "hn f batch,now,2"], one=np.array([1]))
    with pytest.raises(AdoptionError, match="size of past is not in the file"):
        adopt_as(data)
    with pytest.raises(AdoptionError, match="grows with every call"):
        adopt_as(data, shapes={"h": ("batch", 3, 2)})


def test_answers_that_are_not_finite_ask_for_a_sample(tmp_path: Path):
    nodes = [node("Log", "x", "logs"), node("Add", "logs h", "hn"), node("Identity", "hn", "y")]
    data = content(nodes, ["x f batch,2", "h f batch,2"], ["y f batch,2", "hn f batch,2"])
    with pytest.raises(AdoptionError, match=r"not finite.*--sample"):
        adopt_as(data)
    assert Served(tmp_path, adopt_as(data, sample=X)).spec.streaming


@pytest.mark.parametrize(
    ("inputs", "outputs", "wishes", "words"),
    [
        (["x f batch,2", "s f batch,2"], ["y f batch,2", "t f batch,2"], {}, r"Names do not tell.*--state s=y"),
        (["a_in f batch,2"], ["a_out f batch,2"], {}, r"all inputs or outputs would be states: a_in -> a_out"),
        (["x f batch,2", "h f batch,2"], ["hn f batch,2"], {"states": {"h": "hn"}}, "would be states"),
        (["x s batch,2"], ["y f batch,2"], {}, "'x' has elements of type"),
        (
            ["x f batch,2", "h f batch,2"],
            ["y f batch,3", "h_out f batch,2"],
            {"states": {"h": "y"}},
            "cannot be the next",
        ),
        (
            ["x f batch,2", "h f batch,2"],
            ["y f batch,2"],
            {"states": {"z": "y"}},
            "there is no input 'z'; the file has 'x', 'h'",
        ),
        (
            ["x f batch,2", "h f batch,2"],
            ["y f batch,2", "hn f batch,2"],
            {"contexts": {"h": 3}},
            "h: it is no data input",
        ),
    ],
)
def test_what_cannot_be_told_is_asked_for(inputs: list[str], outputs: list[str], wishes: dict, words: str):
    nodes = [node("Identity", inputs[0].split()[0], text.split()[0]) for text in outputs]
    with pytest.raises(AdoptionError, match=words):
        adopt_as(content(nodes, inputs, outputs), **wishes)


def test_what_onnxruntime_does_not_load_is_told():
    nodes = [onnx.helper.make_node("Nonsense", ["x"], ["y"])]
    with pytest.raises(AdoptionError, match=r"onnxruntime cannot load it.*Nonsense"):
        adopt_as(content(nodes, ["x f batch,2"], ["y f batch,2"]))


def test_the_same_file_gives_the_same_findings():
    first, second = (adopt_as(one_step()).report for _ in range(2))
    assert first == second
    assert adopt_as(sums("f batch,time,2", "f batch,1,2", 1)).report["findings"]


def test_int8_runs_one_by_one_even_where_its_answers_hide_what_it_shares(tmp_path: Path, int8: bytes):
    """The most likely letter instead of the scores: beside other rows it is nearly always the same."""
    proto = onnx.load_from_string(int8)
    y = next(info for info in proto.graph.output if info.name == "y")
    proto.graph.node.append(node("ArgMax", "y", "letter", axis=2, keepdims=1))
    y.CopyFrom(onnx.helper.make_tensor_value_info("letter", onnx.TensorProto.INT64, ["batch", "time", 1]))
    spec = Served(tmp_path, adopt_as(proto.SerializeToString())).spec
    assert (spec.max_batch_size, spec.batch_invariant) == (1, False)
