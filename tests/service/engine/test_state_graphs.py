"""The graphs that move states are written without `onnx`: it must read them and find nothing wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.sessions import open_helper
from service.engine.state_graphs import (
    ROWS,
    SLOTS,
    arena,
    arena_after,
    batch,
    check_graph,
    gather_graph,
    scatter_graph,
)
from service.model_spec import StateSpec

GRAPHS = {"gather": gather_graph, "scatter": scatter_graph, "check": check_graph}


@st.composite
def some_states(draw: st.DrawFn) -> list[StateSpec]:
    states = []
    for n in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.integers(1, 200), max_size=4))
        shape.insert(draw(st.integers(0, len(shape))), "batch")  # type: ignore[arg-type]
        states.append(StateSpec(name=f"s{n}", input=f"s{n}", output=f"s{n}_next", shape=tuple(shape)))
    return states


@pytest.mark.parametrize("name", GRAPHS)
@given(states=some_states())
def test_onnx_finds_every_type_and_shape_right(name: str, states: list[StateSpec]) -> None:
    model = onnx.load_from_string(GRAPHS[name](states))
    onnx.checker.check_model(model, full_check=True)
    inputs = {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    if name != "gather":
        assert [tuple(inputs[batch(n)]) for n in range(len(states))] == [state.shape for state in states]
    else:
        outputs = [tuple(d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim) for o in model.graph.output]
        assert outputs == [state.shape for state in states]


def test_the_batch_axis_goes_where_the_model_has_it() -> None:
    state = StateSpec(name="s", input="s", output="t", shape=(2, "batch", 3))
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    (states,) = open_helper(gather_graph([state]), "cpu").run(None, {SLOTS: np.array([3, 1]), arena(0): rows})
    assert np.array_equal(states, rows[[3, 1]].reshape(2, 2, 3).transpose(1, 0, 2))
    fed = {SLOTS: np.array([[0]]), ROWS: np.array([1]), arena(0): rows, batch(0): states}
    (after,) = open_helper(scatter_graph([state]), "cpu").run([arena_after(0)], fed)
    assert np.array_equal(after, rows[[1, 1, 2, 3]]), "slot 0 got the second row of the batch, which was slot 1's"
