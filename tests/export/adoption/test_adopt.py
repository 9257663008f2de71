"""Models of every form come out as one that the server runs, with the answers that they had."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.adoption.plan import AdoptionError
from tests.export.adoption.adopted import Served, adopt_as
from tests.export.adoption.foreign import content, node, one_step, sums

X = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
SUMS = X.cumsum(axis=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize(
    ("x", "state", "axis", "rows"),
    [
        ("f batch,time,2", "f batch,1,2", 1, None),
        ("f time,batch,2", "f 1,batch,2", 0, None),
        ("f N,2,T", "f N,2,1", 2, None),
        ("f time,2", "f 1,2", 0, 1),
    ],
)
def test_rows_and_steps_are_found_wherever_they_stand(root: Path, x: str, state: str, axis: int, rows: int | None):
    options = {"batch_axes": {"h": None}} if rows else {}
    served = Served(root, adopt_as(sums(x, state, axis), **options))
    assert served.spec.input.step_shape == served.spec.output.step_shape == (2,)
    assert (served.spec.streaming, served.spec.max_batch_size, served.spec.max_chunk_size) == (True, rows, None)
    assert np.array_equal(served.stream(X), SUMS)
    assert np.array_equal(served.whole(X), SUMS)


@pytest.mark.parametrize(
    ("x", "state", "rows"),
    [
        ("x f batch,2", "h f batch,2", None),
        ("x f 1,2", "h f 1,2", None),
        ("x f 2", "h f 2", 1),
        ("x f 1,1,2", "h f 1,1,2", 1),
    ],
)
@pytest.mark.parametrize("opset", [11, 13, 21])
def test_a_model_whose_call_is_a_step_takes_one_at_a_time(root: Path, x: str, state: str, rows: int | None, opset: int):
    served = Served(root, adopt_as(one_step(x, state, opset=opset)))
    assert (served.spec.max_batch_size, served.spec.max_chunk_size, served.spec.streaming) == (rows, 1, True)
    assert np.array_equal(served.stream(X).reshape(4, 2), SUMS)


def test_a_batch_that_the_file_fixes_to_one_row_is_tried_with_more(root: Path):
    fixed = [node("Reshape", "x shape", "flat"), node("Add", "flat h", "hn"), node("Identity", "hn", "y")]
    data = content(fixed, ["x f 1,2", "h f 1,2"], ["y f 1,2", "hn f 1,2"], shape=np.array([1, 2]))
    assert Served(root, adopt_as(data)).spec.max_batch_size == 1


def test_rows_that_touch_each_other_run_one_by_one(root: Path):
    nodes = [
        node("ReduceMax", "x", "largest", keepdims=1, axes=[0]),
        node("Div", "x largest", "scaled"),
        node("Add", "scaled h", "hn"),
        node("Identity", "hn", "y"),
    ]
    served = Served(root, adopt_as(content(nodes, ["x f batch,2", "h f batch,2"], ["y f batch,2", "hn f batch,2"])))
    assert (served.spec.max_batch_size, served.spec.batch_invariant) == (1, False)
    assert "one by one, bit for bit" in served.report["served"]


def test_a_constant_is_put_in(root: Path):
    nodes = [node("Mul", "x scale", "scaled"), node("Add", "scaled h", "hn"), node("Identity", "hn", "y")]
    data = content(nodes, ["x f batch,2", "scale f", "h f batch,2"], ["y f batch,2", "hn f batch,2"])
    with pytest.raises(AdoptionError, match=r"'scale' is one float32 for the whole call.*--constant scale="):
        adopt_as(data)
    served = Served(root, adopt_as(data, constants={"scale": np.array(3)}))
    assert np.array_equal(served.stream(X), 3 * SUMS)


def scaled(kind: str) -> bytes:
    nodes = [
        node("Cast", "scale", "factor", to=1),
        node("Mul", "x factor", "scaled"),
        node("Add", "scaled h", "hn"),
        node("Identity", "hn", "y"),
    ]
    return content(nodes, ["x f batch,2", f"scale {kind}", "h f batch,2"], ["y f batch,2", "hn f batch,2"])


def test_one_number_fills_a_constant_of_fixed_size(root: Path):
    served = Served(root, adopt_as(scaled("i 1"), constants={"scale": np.array(3)}))
    assert np.array_equal(served.stream(X), 3 * SUMS)
    with pytest.raises(AdoptionError, match="it has 1 axes, the value has 0"):
        adopt_as(scaled("i batch"), constants={"scale": np.array(3)})


@pytest.mark.parametrize(("kind", "value"), [("i32", 2.5), ("u8", 256), ("u8", -1), ("b", 2), ("i", float("nan"))])
def test_a_constant_that_its_type_cannot_hold_is_refused(kind: str, value: float):
    with pytest.raises(AdoptionError, match=r"--constant scale: it takes \w+, and the value does not fit"):
        adopt_as(scaled(kind), constants={"scale": np.array(value)})


def of_whole_numbers(kind: str, axes: str) -> bytes:
    nodes = [node("Cast", "x", "numbers", to=1), node("Add", "numbers h", "hn"), node("Identity", "hn", "y")]
    return content(nodes, [f"x {kind} {axes}", "h f batch,2"], ["y f batch,2", "hn f batch,2"])


@pytest.mark.parametrize(
    ("kind", "misfits"), [("u8", [-1, 256, 0.5]), ("i32", [0.5, 3e9]), ("i", [-0.5, 1e19]), ("b", [2, -1])]
)
def test_numbers_that_the_type_of_an_input_cannot_hold_have_no_finite_answer(
    root: Path, kind: str, misfits: list[float]
):
    served = Served(root, adopt_as(of_whole_numbers(kind, "batch,2"), shapes={"x": ("batch", 2)}))
    whole = X % 2 if kind == "b" else X
    assert np.array_equal(served.stream(whole), whole.cumsum(axis=0))
    for misfit in misfits:
        assert np.isnan(served.stream([[1, 0], [0, misfit]])).tolist() == [[False, False], [True, True]]


def test_whole_numbers_beside_others_are_watched_alone(root: Path):
    nodes = [
        node("Cast", "k", "numbers", to=1),
        node("Add", "x numbers", "both"),
        node("Add", "both h", "hn"),
        node("Identity", "hn", "y"),
    ]
    data = content(nodes, ["x f batch,1", "k u8 batch,1", "h f batch,1"], ["y f batch,1", "hn f batch,1"])
    served = Served(root, adopt_as(data, data=("x", "k"), shapes={"x": ("batch", 1), "k": ("batch", 1)}))
    y = served.stream([[0.5, 3], [0.5, 3.5]])
    assert (y[0].tolist(), np.isnan(y[1]).tolist()) == ([3.5], [True])


@pytest.mark.parametrize("kind", ["i", "i32"])
def test_whole_numbers_come_out_as_they_are_or_not_at_all(root: Path, kind: str):
    nodes = [
        node("Add", "x h", "hn"),
        node("Cast", "hn", "whole", to=7 if kind == "i" else 6),
        node("Add", "whole offset", "y"),
    ]
    offset = np.array(2**24 - 100, np.int64 if kind == "i" else np.int32)
    data = content(nodes, ["x f batch,1", "h f batch,1"], [f"y {kind} batch,1", "hn f batch,1"], offset=offset)
    served = Served(root, adopt_as(data, sample=np.ones((4, 1), np.float32)))
    y = served.stream([[1], [100], [1]])  # 2^24 + 2 is a float32, 2^24 + 1 is none
    assert y[0].tolist() == [2**24 - 99]
    assert np.isnan(y[1]).all()
    assert y[2].tolist() == [2**24 + 2]


def test_a_token_that_its_type_cannot_hold_has_no_finite_answer(root: Path):
    nodes = [node("Cast", "x", "numbers", to=1), node("CumSum", "numbers axis", "y")]
    data = content(nodes, ["x u8 batch,time"], ["y f batch,time"], axis=np.int64(1))
    served = Served(root, adopt_as(data))
    assert served.whole([1, 255]).ravel().tolist() == [1, 256]
    assert np.isnan(served.whole([1, 256, -1])).ravel().tolist() == [False, True, True]


def test_a_row_of_whole_numbers_may_be_one_step_or_many(root: Path):
    with pytest.raises(AdoptionError, match=r"one step, or one a step\?.*--shape x=batch,2 or --shape x=batch,time"):
        adopt_as(of_whole_numbers("u8", "batch,2"))


def overlapping() -> bytes:
    """y: the sum of what it gets in a call, 2 new values and as many as are wanted of the call before."""
    nodes = [
        node("ReduceSum", "x one", "sum", keepdims=1),
        node("Add", "sum h", "hn"),
        node("Identity", "hn", "y"),
    ]
    return content(nodes, ["x f batch,?", "h f batch,1"], ["y f batch,1", "hn f batch,1"], one=np.array([1]))


def test_the_end_of_a_call_is_carried_to_the_next(root: Path):
    served = Served(root, adopt_as(overlapping(), shapes={"x": ("batch", 2)}, contexts={"x": 3}))
    flat = np.concatenate([np.zeros(3, np.float32), X.ravel()])
    expected = np.cumsum([flat[2 * step : 2 * step + 5].sum() for step in range(4)])
    assert np.array_equal(served.stream(X).ravel(), expected)
    assert served.spec.states[0].row_shape == (3,)
    served.stream(X[:1])
    assert served.states["x_context"].tolist() == [[0, 1, 2]]


def test_a_model_that_takes_any_number_of_values_is_not_published_before_the_context_is_told(root: Path):
    with pytest.raises(AdoptionError, match=r"answers wrongly and reports no error.*--context x:0"):
        adopt_as(overlapping(), shapes={"x": ("batch", 2)})
    with pytest.raises(AdoptionError, match=r"how many values has a step of 'x'.*--shape x=batch,SIZE"):
        adopt_as(overlapping(), contexts={"x": 0})
    served = Served(root, adopt_as(overlapping(), shapes={"x": ("batch", 2)}, contexts={"x": 0}))
    assert np.array_equal(served.stream(X).ravel(), SUMS.sum(axis=1))


def test_a_context_of_steps_goes_along_the_time(root: Path):
    nodes = [
        node("Slice", "x begin end where", "before"),
        node("Slice", "x one last where", "now"),
        node("Add", "before now", "y"),
    ]
    bounds = {"begin": [0], "end": [-1], "where": [1], "one": [1], "last": [2**31]}
    constants = {name: np.array(value) for name, value in bounds.items()}
    data = content(nodes, ["x f batch,time,2"], ["y f batch,time,2"], **constants)
    served = Served(root, adopt_as(data, contexts={"x": 1}))
    assert (served.spec.streaming, served.spec.max_chunk_size) == (True, None)
    assert np.array_equal(served.stream(X), X + np.concatenate([np.zeros((1, 2)), X[:-1]]))


def test_what_is_given_once_stays(root: Path):
    nodes = [node("Add", "x voice", "spoken"), node("Add", "spoken h", "hn"), node("Identity", "hn", "y")]
    data = content(nodes, ["x f batch,2", "voice f batch,2", "h f batch,2"], ["y f batch,2", "hn f batch,2"])
    served = Served(root, adopt_as(data, once=("voice",)))
    assert [(state.name, state.required) for state in served.spec.states] == [("h", False), ("voice", True)]
    assert np.array_equal(served.stream(X, {"voice": 5}), SUMS + 5 * np.arange(1, 5)[:, None])


def test_several_outputs_stand_side_by_side_with_their_names(root: Path):
    nodes = [
        node("Add", "x h", "hn"),
        node("Identity", "hn", "sum"),
        node("Greater", "hn ten", "large"),
        node("ReduceSum", "hn one", "all", keepdims=0),
    ]
    constants = {"ten": np.float32(10), "one": np.array([1])}
    outputs = ["sum f batch,2", "large b batch,2", "all f batch", "hn f batch,2"]
    data = content(nodes, ["x f batch,2", "h f batch,2"], outputs, **constants)
    served = Served(root, adopt_as(data))
    assert served.spec.output.labels == ("sum[0]", "sum[1]", "large[0]", "large[1]", "all")
    assert np.array_equal(served.stream(X), np.column_stack([SUMS, SUMS > 10, SUMS.sum(axis=1)]))
    assert np.array_equal(Served(root, adopt_as(data, outputs=("large",))).stream(X), SUMS > 10)


def test_tokens_side_by_side_each_within_their_number(root: Path):
    nodes = [
        node("Gather", "letters a", "first"),
        node("Gather", "marks b", "second"),
        node("Add", "first second", "both"),
        node("CumSum", "both axis", "y"),
    ]
    constants = {"letters": np.arange(5, dtype=np.float32), "marks": np.arange(3, dtype=np.float32) * 10}
    inputs = ["a i batch,time", "b i batch,time", "a_lengths i batch"]
    data = content(nodes, inputs, ["y f batch,time"], axis=np.int64(1), **constants)
    served = Served(root, adopt_as(data))
    assert served.spec.input.token_counts == (5, 3)
    assert (served.spec.input.dtype, served.spec.input.labels) == ("int64", ("a", "b"))
    assert not served.spec.streaming
    assert served.whole([[1, 0], [2, 2]]).ravel().tolist() == [1, 23]


COUNT = 0x123_4567_89AB_CDEF
"""Needs all of an int64."""


def counter(kind: str, add: str) -> bytes:
    """n counts on by COUNT a step, or by a third; y is 1 where the count is what it must be."""
    cast = {"i": 7, "d": 11, "b": 9}[kind]
    nodes = [
        node("Cast", add, "more", to=cast),
        node("Xor", "n more", "n_next") if kind == "b" else node("Add", "n more", "n_next"),
        node("Cast", "n_next", "seen", to=1),
        node("Add", "x seen", "y"),
    ]
    value = {"i": np.int64(COUNT), "d": np.float64(1) / 3, "b": np.bool_(True)}[kind]
    return content(
        nodes, ["x f batch,1", f"n {kind} batch,1"], ["y f batch,1", f"n_next {kind} batch,1"], **{add: value}
    )


@pytest.mark.parametrize("kind", ["i", "d", "b"])
def test_states_of_other_types_are_carried_to_the_last_bit(root: Path, kind: str):
    served = Served(root, adopt_as(counter(kind, "step")))
    steps = 5
    served.stream(np.zeros((steps, 1)))
    carried = served.states["n"].astype(np.float64).ravel()
    if kind == "i":
        assert sum(int(place) << (16 * n) for n, place in enumerate(carried)) == steps * COUNT
    elif kind == "d":
        third, total = np.float64(1) / 3, np.float64(0)
        for _ in range(steps):
            total += third
        assert carried.sum() == total
    else:
        assert carried.tolist() == [1]


def test_negative_integers_are_carried_too(root: Path):
    nodes = [node("Sub", "n step", "n_next"), node("Cast", "n_next", "seen", to=1), node("Add", "x seen", "y")]
    data = content(nodes, ["x f batch,1", "n i batch,1"], ["y f batch,1", "n_next i batch,1"], step=np.int64(70_001))
    served = Served(root, adopt_as(data))
    assert served.stream(np.zeros((3, 1))).ravel().tolist() == [-70_001, -140_002, -210_003]


def test_names_inside_and_outside_do_not_mix(root: Path):
    """The names that the server sees are taken inside, and in the bodies of an If."""
    then = content([node("Add", "x h", "inputs")], [], ["inputs f batch,2"])
    other = content([node("Sub", "x h", "outputs")], [], ["outputs f batch,2"])
    branches = {"then_branch": onnx.load_from_string(then).graph, "else_branch": onnx.load_from_string(other).graph}
    nodes = [node("If", "yes", "hn", **branches), node("Identity", "hn", "y"), node("Neg", "hn", "outputs_")]
    data = content(
        nodes, ["x f batch,2", "h f batch,2"], ["y f batch,2", "outputs_ f batch,2", "hn f batch,2"], yes=np.bool_(True)
    )
    served = Served(root, adopt_as(data))
    assert np.array_equal(served.stream(X), np.concatenate([SUMS, -SUMS], axis=1))


def test_the_manifest_says_where_the_model_is_from(root: Path):
    about = {"file": "m.onnx", "source": "a package", "licence": "MIT", "kind": "probability"}
    served = Served(root, adopt_as(one_step(), about))
    assert served.spec.origin
    assert (served.spec.origin.file, served.spec.origin.licence, served.spec.origin.source) == (
        "m.onnx",
        "MIT",
        "a package",
    )
    assert len(served.spec.origin.sha256) == 64
    assert served.spec.output.kind == "probability"
