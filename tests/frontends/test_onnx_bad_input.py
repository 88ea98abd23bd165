"""ONNX files nothing can be made of: one EdgeLstmError each that names what is wrong, whatever the bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_zoo as zoo
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper

import edgelstm
from edgelstm import EdgeLstmError
from edgelstm.frontends.onnx.importer import import_onnx

PAIRS = {"h_in": "h_out", "c_in": "c_out"}


def refused(tmp_path: Path, data: bytes, **options: Any) -> str:
    """The message of the export, which leaves nothing behind."""
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(data)
    with pytest.raises(EdgeLstmError) as caught:
        edgelstm.export(str(path), out, limit=3, threads=1, **options)
    assert not out.exists()
    return str(caught.value).replace(str(tmp_path), "DIR")


BRANCH = """s2 = Add (s, x) top = ReduceMax <keepdims = 0> (x) hot = Greater (top, limit)
n = If (hot) <then_branch = a () => (float[1, 3] o) { o = Neg (s2) },
              else_branch = b () => (float[1, 3] o) { o = Tanh (s2) }>"""
ONE = "float[1, 3] x, float[1, 3] s"


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"not a model", {}, "is not an ONNX file"),
        (
            zoo.text("float[1, 3] x", "float[1, 3] y", "y = Neg (x)"),
            {},
            "no recurrence found: found inputs x; outputs y",
        ),
        (
            zoo.forgetful(time=5, last_only=True),
            {},
            "LSTM over a whole sequence in each call: a window",
        ),
        (zoo.forgetful(), {}, "'x' is dynamic on axis 1: found ['batch', 'time', 3]"),
        (zoo.forgetful(), {}, "--fix time=1 -o step.onnx; time=1 is one frame in a call"),
        (
            zoo.forgetful(direction="reverse"),
            {"fix": {"time": 1}},
            "LSTM 'rnn_0' is reverse, and starts anew in each call",
        ),
        (
            zoo.stateful(),
            {"states": {"h_in": "nothing"}},
            "no such output: found nothing; expected one of y, h_out",
        ),
        (zoo.stateful(), {"states": {"nothing": "h_out"}}, "no such input: found nothing"),
        (zoo.stateful(), {"states": {"x": "h_out"}}, "output 'h_out' can't feed state input 'x'"),
        (
            zoo.stateful(),
            {"fix": {"rate": 1}},
            "nothing to fix is called rate: expected an input (x, h_in, c_in)",
        ),
        (zoo.stateful(), {"fix": {"batch": 0}}, "size of dimension 'batch': found 0"),
        (zoo.stateful(), {"fix": {"batch": 1.5}}, "size of dimension 'batch': found 1.5"),
        (
            zoo.text("int64[1, 3] x, float[1, 3] s", "float[1, 3] n", "f = Cast <to = 1> (x) n = Add (s, f)"),
            {"fix": {"x": 0.5}, "states": {"s": "n"}},
            "value of input 'x': found 0.5; expected a int64",
        ),
        (
            zoo.text(ONE, "float[1, 3] n", BRANCH, "<float limit = {0.5}>"),
            {"states": {"s": "n"}},
            "can't be resolved: found a course that depends on x",
        ),
        (
            zoo.text(ONE, "float[1, 3] n", "n = Add (x, s)", opset=6),
            {"states": {"s": "n"}},
            "found 6; expected opset 7",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, options: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, data, **options)


@pytest.mark.parametrize(("domain", "op"), [("com.somebody", "Cell"), ("", "Cel")])
def test_custom_operators(tmp_path: Path, domain: str, op: str) -> None:
    model = onnx.load_from_string(zoo.stateful())
    model.graph.node[-1].op_type, model.graph.node[-1].domain = op, domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    message = refused(tmp_path, model.SerializeToString(), states=PAIRS)
    assert "operators that are not ONNX's own" in message
    assert op in message


# -- weights in other files -------------------------------------------------------------------------------------------


def outside(folder: Path, **changes: str) -> bytes:
    """A model whose weights lie in ``w.bin`` beside it; ``changes`` to where the first of them says it lies."""
    model = onnx.load_from_string(zoo.stateful())
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, folder / "saved.onnx")
    model = onnx.load(folder / "saved.onnx", load_external_data=False)
    weight = next(t for t in model.graph.initializer if t.name.endswith("_W"))
    for key, value in changes.items():
        found = [e for e in weight.external_data if e.key == key]
        entry = found[0] if found else weight.external_data.add(key=key)
        entry.value = value
    return bytes(model.SerializeToString())


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(outside(tmp_path))
    result = edgelstm.export(str(path), tmp_path / "out.onnx", states=PAIRS, limit=5, threads=1)
    assert result.comparison.worst.worst <= 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "../w.bin"}, "points outside the model's folder: found '../w.bin'"),
        ({"location": "/etc/passwd"}, "points outside the model's folder"),
        ({"location": ""}, "points outside the model's folder"),
        ({"location": "link.bin"}, "points outside the model's folder"),
        ({"location": "none.bin"}, "the file of external weight 'l0_W' is missing: found no none.bin"),
        ({"offset": "999999"}, "bytes 999999 to"),
        ({"offset": "-4"}, "offset: found '-4'"),
        ({"length": "4"}, "found 4 bytes; expected 192 bytes for its shape"),
        ({"length": "99999999999999"}, "expected 192 bytes for its shape"),
    ],
)
def test_weights_that_are_not_where_they_should_be(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    data = outside(folder, **changes)
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert message in refused(folder, data, states=PAIRS)


def test_a_lying_shape_is_not_allocated(tmp_path: Path) -> None:
    model = onnx.load_from_string(outside(tmp_path))
    weight = next(t for t in model.graph.initializer if t.name == "l0_W")
    weight.dims[:] = [1 << 30, 1 << 30, 4]
    assert "external weight 'l0_W'" in refused(tmp_path, model.SerializeToString(), states=PAIRS)


def test_a_spread_of_absurd_size_is_not_made(tmp_path: Path) -> None:
    """An initial state spread to 2^40 elements: nothing is folded, and the file is refused, not computed."""
    model = onnx.load_from_string(zoo.forgetful(initial="zeros"))
    width = next(t for t in model.graph.initializer if t.name == "width")
    width.CopyFrom(onnx.numpy_helper.from_array(np.array([1 << 40]), "width"))
    refused(tmp_path, model.SerializeToString(), fix={"time": 1})


# -- any bytes --------------------------------------------------------------------------------------------------------

BASES = [
    (zoo.stateful(), {}),
    (zoo.forgetful(initial="zeros"), {"time": 1}),
    (zoo.looping("Loop", named=True), {"T": 1}),
    (zoo.text(ONE, "float[1, 3] n", BRANCH, "<float limit = {0.5}>"), {}),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, lost or added: a step graph or one clear error, nothing else."""
    base, fix = data.draw(st.sampled_from(BASES))
    mutated = bytearray(base)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "add"]))
        if change == "set":
            mutated[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del mutated[place : place + data.draw(st.integers(1, 8))]
        else:
            mutated[place:place] = data.draw(st.binary(min_size=1, max_size=4))
    path = tmp_path / "model.onnx"
    path.write_bytes(mutated)
    with suppress(EdgeLstmError):
        import_onnx(path, None, fix=fix, confirm=lambda pairs: True)


def test_types_that_no_signature_holds(tmp_path: Path) -> None:
    model = onnx.load_from_string(zoo.stateful())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.COMPLEX64
    assert "x" in refused(tmp_path, model.SerializeToString(), states=PAIRS)
