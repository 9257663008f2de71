"""Files that were made to do harm, or are no models at all; each is built when it is asked for."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.export.adoption.foreign import build, content, forgetful, info, node

HUGE = 2**40
IO = (["x f batch,2", "h f batch,2"], ["y f batch,2", "hn f batch,2"])
SUM = [node("Add", "x h", "hn"), node("Identity", "hn", "y")]

HOSTILE: dict[str, Callable[[], bytes]] = {}


def hostile(build_file: Callable[[], bytes]) -> Callable[[], bytes]:
    HOSTILE[build_file.__name__] = build_file
    return build_file


def model(*nodes: onnx.NodeProto, opset: int = 17, **constants: Any) -> bytes:
    """A sum that would be fine, behind nodes that are not."""
    return content([*nodes, *SUM], *IO, opset, **constants)


def giant(*nodes: onnx.NodeProto, **constants: Any) -> bytes:
    """y begins with what the nodes leave in `much`."""
    taken = [node("ReduceSum", "much", "sum", keepdims=0), node("Add", "sum hn", "y"), node("Add", "x h", "hn")]
    return content([*nodes, *taken[1:][::-1][:1], taken[0], taken[1]], *IO, **constants)


def changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    proto = build(SUM, *IO)
    change(proto)
    data: bytes = proto.SerializeToString()
    return data


def external(tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def weights(name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(64, np.float32), name)


def nested(depth: int) -> bytes:
    graph = helper.make_graph([node("Identity", "x", "z")], "deepest", [], [info("z f batch,2")])
    for level in range(depth):
        inside = helper.make_node("If", ["yes"], ["z"], then_branch=graph, else_branch=graph if level < 3 else None)
        if level >= 3:
            inside = helper.make_node("If", ["yes"], ["z"], then_branch=graph)
        graph = helper.make_graph([inside], "level", [], [info("z f batch,2")])
    return content([*graph.node, *SUM], *IO, yes=np.bool_(True))


def loop(trips: int, *inside: onnx.NodeProto) -> bytes:
    body_nodes = [node("Identity", "going", "on"), *inside, node("Add", "sum one", "more")]
    infos = [info("i i"), info("going b"), info("sum f")], [info("on b"), info("more f")]
    body = helper.make_graph(body_nodes, "body", *infos)
    nodes = [helper.make_node("Loop", ["trips", "yes", "zero"], ["much"], body=body)]
    return giant(*nodes, trips=np.int64(trips), yes=np.bool_(True), zero=np.float32(0), one=np.float32(1))


# -- no models -------------------------------------------------------------------------------------------------------


for name, raw in {
    "empty": b"",
    "text": b"import os; os.system('true')\n" * 100,
    "zeros": bytes(2**20),
    "ones": b"\xff" * 2**20,
    "noise": np.random.default_rng(0).bytes(2**16),
    "zip": b"PK\x03\x04" + bytes(2**10),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "length_beyond_end": b"\x3a\xff\xff\xff\xff\x0f" + bytes(100),
    "endless_varint": b"\x08" + b"\x80" * 2**20,
    "million_empty_graphs": b"\x3a\x00" * 2**20,
}.items():
    HOSTILE[name] = lambda raw=raw: raw  # type: ignore[misc]


@hostile
def zipped() -> bytes:
    return gzip.compress(model())


@hostile
def cut_off() -> bytes:
    return model()[:-7]


@hostile
def no_graph() -> bytes:
    return changed(lambda proto: proto.ClearField("graph"))


@hostile
def no_nodes() -> bytes:
    return changed(lambda proto: proto.graph.ClearField("node"))


@hostile
def no_inputs() -> bytes:
    return changed(lambda proto: proto.graph.ClearField("input"))


@hostile
def no_outputs() -> bytes:
    return changed(lambda proto: proto.graph.ClearField("output"))


# -- too much of everything ------------------------------------------------------------------------------------------


@hostile
def nested_twenty_deep() -> bytes:
    return nested(20)


@hostile
def nested_beyond_protobuf() -> bytes:
    """If in If in If ..., 400 deep, as bytes: protobuf itself would not build it."""
    inside = b"\x0a\x02" + b"\x22\x00"
    for _ in range(400):
        attribute = b"\x32" + _varint(len(inside)) + inside  # AttributeProto.g
        of_node = b"\x2a" + _varint(len(attribute)) + attribute
        inside = b"\x0a" + _varint(len(of_node)) + of_node
    return b"\x08\x08\x3a" + _varint(len(inside)) + inside


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


@hostile
def million_nodes() -> bytes:
    graph = b"\x0a\x02\x22\x00" * 2**20
    return b"\x08\x08\x3a" + _varint(len(graph)) + graph


@hostile
def chain_of_nodes() -> bytes:
    nodes = [node("Identity", f"n{n}", f"n{n + 1}") for n in range(60_000)]
    return model(node("Identity", "x", "n0"), *nodes)


@hostile
def many_inputs() -> bytes:
    return content(SUM, [*IO[0], *(f"i{n} f batch,1" for n in range(300))], IO[1])


@hostile
def long_name() -> bytes:
    return model(node("Identity", "x", "z" * 2**20))


@hostile
def function_that_calls_itself() -> bytes:
    return with_functions({"f": ["f"]}, "f")


@hostile
def functions_in_a_circle() -> bytes:
    return with_functions({"f": ["g"], "g": ["f"]}, "f")


@hostile
def tower_of_functions() -> bytes:
    """Eight functions that each call the next one a hundred times."""
    return with_functions({f"f{n}": [f"f{n + 1}"] * 100 for n in range(7)} | {"f7": ["Identity"]}, "f0")


def with_functions(calls: dict[str, list[str]], first: str) -> bytes:
    proto = build([*SUM[:1], helper.make_node(first, ["hn"], ["y"], domain="own")], *IO)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    imports = list(proto.opset_import)
    for name, called in calls.items():
        chain = [f"v{n}" for n in range(len(called))] + ["out"]
        nodes = [
            helper.make_node(
                call,
                [chain[n - 1] if n else "in"],
                [chain[n] if n + 1 < len(called) else "out"],
                domain="own" if call in calls else "",
            )
            for n, call in enumerate(called)
        ]
        proto.functions.append(helper.make_function("own", name, ["in"], ["out"], nodes, imports))
    data: bytes = proto.SerializeToString()
    return data


# -- data in other files ---------------------------------------------------------------------------------------------


@hostile
def external_absolute() -> bytes:
    return changed(lambda proto: proto.graph.initializer.append(external(weights(), "/etc/passwd")))


@hostile
def external_beside() -> bytes:
    return changed(lambda proto: proto.graph.initializer.append(external(weights(), "pyproject.toml")))


@hostile
def external_above() -> bytes:
    return changed(lambda proto: proto.graph.initializer.append(external(weights(), "../../../../etc/shadow")))


@hostile
def external_constant() -> bytes:
    return model(helper.make_node("Constant", [], ["w"], value=external(weights(), "/dev/zero")))


@hostile
def external_in_body() -> bytes:
    body = helper.make_graph(
        [node("Identity", "w", "z")], "body", [], [info("z f 64")], [external(weights(), "/etc/passwd")]
    )
    return model(helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body), yes=np.bool_(True))


@hostile
def external_sparse() -> bytes:
    def change(proto: onnx.ModelProto) -> None:
        indices = numpy_helper.from_array(np.arange(64), "at")
        proto.graph.sparse_initializer.append(
            helper.make_sparse_tensor(external(weights(), "/etc/passwd"), indices, [64])
        )

    return changed(change)


# -- tensors that are not what they say ------------------------------------------------------------------------------


def tensor(dims: list[int], kind: int = TensorProto.FLOAT, raw: bytes = b"") -> bytes:
    odd = TensorProto(name="w", dims=dims, data_type=kind, raw_data=raw)
    return changed(lambda proto: proto.graph.initializer.append(odd))


for name, arguments in {
    "negative_size": ([-1, 4],),
    "sizes_that_overflow": ([2**62, 2**62],),
    "size_beyond_memory": ([HUGE],),
    "too_few_bytes": ([1000], TensorProto.FLOAT, bytes(4)),
    "too_many_bytes": ([1], TensorProto.FLOAT, bytes(4096)),
    "unknown_type": ([1], 999, bytes(4)),
    "thousand_axes": ([1] * 1000, TensorProto.FLOAT, bytes(3)),
}.items():
    HOSTILE[name] = lambda arguments=arguments: tensor(*arguments)  # type: ignore[misc]


@hostile
def input_of_texts() -> bytes:
    return content(SUM, ["x s batch,2", "h f batch,2"], IO[1])


@hostile
def input_of_a_huge_size() -> bytes:
    return content([node("ReduceSum", "x", "y", keepdims=1)], [f"x f 1,{HUGE}"], ["y f 1,1"])


@hostile
def state_of_a_huge_size() -> bytes:
    return content(SUM, ["x f batch,2", f"h f batch,{HUGE}"], ["y f batch,2", f"hn f batch,{HUGE}"])


# -- graphs that are no graphs ---------------------------------------------------------------------------------------


@hostile
def circle() -> bytes:
    return model(node("Add", "x b", "a"), node("Add", "x a", "b"))


@hostile
def nobody_gives_it() -> bytes:
    return model(node("Add", "x nowhere", "z"))


@hostile
def given_twice() -> bytes:
    return model(node("Neg", "x", "hn"))


@hostile
def unknown_operator() -> bytes:
    return model(helper.make_node("Format", ["x"], ["z"]))


@hostile
def unknown_domain() -> bytes:
    return model(helper.make_node("System", ["x"], ["z"], domain="com.example"))


@hostile
def opset_of_the_future() -> bytes:
    return model(opset=9999)


@hostile
def ir_of_the_future() -> bytes:
    return changed(lambda proto: setattr(proto, "ir_version", 9999))


@hostile
def recurrent_weights_of_another_shape() -> bytes:
    proto = onnx.load_from_string(forgetful())
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((1, 3, 1), np.float32), "W"))
    data: bytes = proto.SerializeToString()
    return data


# -- work without end, memory without end ----------------------------------------------------------------------------


@hostile
def endless_loop() -> bytes:
    return loop(2**62)


@hostile
def loop_in_a_loop() -> bytes:
    inner = helper.make_graph(
        [node("Identity", "inner_going", "inner_on"), node("Add", "inner one", "inner_more")],
        "inner",
        [info("j i"), info("inner_going b"), info("inner f")],
        [info("inner_on b"), info("inner_more f")],
    )
    return loop(2**31, helper.make_node("Loop", ["trips", "yes", "zero"], ["deep"], body=inner))


@hostile
def products_that_take_minutes() -> bytes:
    nodes = [node("ConstantOfShape", "shape", "m0")]
    nodes += [node("MatMul", f"m{n} m{n}", f"m{n + 1}") for n in range(50)]
    return giant(*nodes, node("Identity", "m50", "much"), shape=np.array([4096, 4096]))


for name, steps, values in [
    ("filled", [node("ConstantOfShape", "shape", "much")], {"shape": np.array([HUGE])}),
    ("eight_gigabytes", [node("ConstantOfShape", "shape", "much")], {"shape": np.array([2**31])}),
    ("expanded", [node("Expand", "one shape", "much")], {"one": np.float32(1), "shape": np.array([HUGE])}),
    ("tiled", [node("Tile", "ones shape", "much")], {"ones": np.ones(2, np.float32), "shape": np.array([HUGE])}),
    (
        "ranged",
        [node("Range", "zero most one", "much")],
        {"zero": np.float32(0), "most": np.float32(1e12), "one": np.float32(1)},
    ),
    ("padded", [node("Pad", "ones pads", "much")], {"ones": np.ones(2, np.float32), "pads": np.array([0, HUGE])}),
    (
        "one_hot",
        [node("OneHot", "at depth values", "much")],
        {"at": np.array([1]), "depth": np.int64(HUGE), "values": np.array([0, 1], np.float32)},
    ),
    (
        "outer_products",
        [node("MatMul", "column row", "much")],
        {"column": np.ones((2**20, 1), np.float32), "row": np.ones((1, 2**20), np.float32)},
    ),
]:
    HOSTILE[f"{name}_beyond_memory"] = lambda steps=steps, values=values: giant(*steps, **values)  # type: ignore[misc]
