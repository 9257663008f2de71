"""States that a graph resets at every call become states that the server carries."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.adoption.plan import AdoptionError
from tests.export.adoption.adopted import Served, adopt_as
from tests.export.adoption.foreign import content, forgetful, node

X = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)


@pytest.mark.parametrize("zeros", ["none", "made"])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("layers", [1, 2])
def test_lifted_states_stream_what_the_whole_gave(tmp_path: Path, cell: str, zeros: str, layers: int):
    data = forgetful(cell, zeros, layers=layers)
    before = Served(tmp_path, adopt_as(data))
    lifted = Served(tmp_path, adopt_as(data, lift=True))
    assert not before.spec.streaming
    letters = ["h", "c"] if cell == "LSTM" else ["h"]
    expected = letters if layers == 1 else [f"{letter}{layer}" for layer in range(layers) for letter in letters]
    assert [state.name for state in lifted.spec.states] == expected
    exact = cell != "RNN"  # onnxruntime's RNN rounds otherwise for another number of rows
    assert (lifted.spec.streaming, lifted.spec.batch_invariant, lifted.spec.max_batch_size) == (True, exact, None)
    whole = before.whole(X)
    assert np.array_equal(lifted.whole(X), whole)
    np.testing.assert_allclose(lifted.stream(X), whole, rtol=0, atol=0 if exact else 1e-6)
    assert not np.array_equal(before.stream(X), whole), "it forgot"
    (check,) = [finding for finding in lifted.report["findings"] if finding["check"] == "lifted == before"]
    assert check["worst"] == 0


def test_a_last_state_that_the_file_puts_out_as_data_stays_data(tmp_path: Path):
    proto = onnx.load_from_string(forgetful("GRU"))
    gru = next(node for node in proto.graph.node if node.op_type == "GRU")
    gru.output.append("last")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, [1, "batch", 3]))
    data = proto.SerializeToString()
    served = Served(tmp_path, adopt_as(data, lift=True, outputs=("y",)))
    assert np.array_equal(served.stream(X), served.whole(X))


def body(cell: str) -> bytes:
    """The recurrent layer inside an If."""
    inside = onnx.load_from_string(forgetful(cell)).graph
    del inside.input[:]
    nodes = [node("If", "yes", "y", then_branch=inside, else_branch=inside)]
    return content(nodes, ["x f time,batch,3"], ["y f time,batch,3"], yes=np.bool_(True))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (forgetful("LSTM", "fixed"), "begins from 'fixed', a constant that is not zero"),
        (forgetful("GRU", direction="reverse"), "reads reverse, so it needs the whole sequence"),
        (forgetful("RNN", direction="bidirectional"), "reads bidirectional"),
        (body("LSTM"), r"no RNN, GRU or LSTM of its own; it has LSTM inside If, Loop or Scan"),
        (content([node("Neg", "x", "y")], ["x f batch,time,2"], ["y f batch,time,2"]), "no RNN, GRU or LSTM"),
    ],
)
def test_what_cannot_be_lifted_is_told(data: bytes, words: str):
    with pytest.raises(AdoptionError, match=words):
        adopt_as(data, lift=True)


def test_what_has_its_states_outside_already_is_told():
    proto = onnx.load_from_string(forgetful("GRU", "made"))
    gru = next(node for node in proto.graph.node if node.op_type == "GRU")
    gru.input[5] = "h"
    gru.output.append("hn")
    state = ["h", "hn"]
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, "batch", 3]) for name in state]
    proto.graph.input.append(infos[0])
    proto.graph.output.append(infos[1])
    with pytest.raises(AdoptionError, match="takes its state from outside already"):
        adopt_as(proto.SerializeToString(), lift=True)
