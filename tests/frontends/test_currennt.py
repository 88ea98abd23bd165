"""CURRENNT networks: files written here in its layout, exported, streamed, and refused when they are broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.currennt.file import load_currennt
from edgelstm.frontends.currennt.graph import to_step
from edgelstm.frontends.currennt.program import CurrenntProgram
from edgelstm.runtime.onnxruntime import OrtProgram
from tolerances import assert_close

Array = npt.NDArray[Any]
KINDS = (
    *("lstm", "blstm", "softmax", "feedforward_tanh", "feedforward_logistic"),
    *("feedforward_identity", "feedforward_relu"),
)


def written(
    inputs: int, layers: Sequence[tuple[str, int]], seed: int = 0, scale: float = 1.0
) -> dict[str, Any]:
    """A network as CURRENNT saves it, with random weights: layers of (type, size), and a post-output layer."""
    random = np.random.default_rng(seed)
    listed: list[dict[str, Any]] = [{"name": "input", "type": "input", "size": inputs}]
    weights = {}
    below = inputs
    for k, (kind, size) in enumerate(layers):
        cell = kind.endswith("lstm")
        blocks, inner = (4, size // 2 if kind == "blstm" else size) if cell else (1, 0)
        counts = {
            "input": blocks * size * below,
            "bias": blocks * size,
            "internal": size * (4 * inner + 3) if cell else 0,
        }
        listed.append({"name": f"level_{k}", "type": kind, "size": size, "bias": scale, "learningRate": 1e-4})
        weights[f"level_{k}"] = {
            part: random.normal(scale=0.6, size=n).astype(np.float32).tolist() for part, n in counts.items()
        }
        below = size
    listed.append({"name": "postoutput", "type": "sse", "size": below})
    return {"layers": listed, "weights": weights}


def saved(data: Any, folder: Path) -> Path:
    path = folder / "net.jsn"
    path.write_text(json.dumps(data))
    return path


def frames(path: Path, length: int, seed: int = 0) -> Array:
    """[T, inputs] for the network at ``path``."""
    size = load_currennt(path).inputs
    return np.random.default_rng(seed).normal(size=(length, size)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.integers(1, 4),
    layers=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from((2, 4, 6))), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    scale=st.sampled_from((1.0, 0.0, 0.1)),
)
def test_graph_equals_reference(
    tmp_path_factory: Any, inputs: int, layers: list[tuple[str, int]], seed: int, scale: float
) -> None:
    """Any stack, as a step over 7 frames or as a window of 7: what NumPy computes over the sequence."""
    path = saved(written(inputs, layers, seed, scale), tmp_path_factory.mktemp("c"))
    network, x = load_currennt(path), frames(path, 7, seed)
    window = 7 if network.backwards else None
    step = to_step(network, window)
    step.check()
    program, reference = OrtProgram(step.to_bytes()), CurrenntProgram(network, step.signature)
    state, held = program.new_state(), reference.new_state()
    for frame in [x] if window else list(x):
        (made,) = program.step([{"x": frame}], state, [0])
        (expected,) = reference.step([{"x": frame}], held, [0])
        assert_close(made["y"], expected["y"], "float32", atol=1e-5)
    for name, value in reference.read_state(held, 0).items():
        assert_close(program.read_state(state, 0)[name], value, "float32", atol=1e-5)


def test_layout_by_hand(tmp_path: Path) -> None:
    """One cell of CURRENNT's equations, its numbers laid out by their names: 2 units, 1 input."""
    names = "nifo"  # cell input, input gate, forget gate, output gate
    w = {g: np.array([0.3 + k, -0.2 * k]) for k, g in enumerate(names)}
    b = {g: np.array([0.1 * k, 0.5]) for k, g in enumerate(names)}
    r = {g: np.array([[0.1, 0.7], [-0.4 * k, 0.2]]) for k, g in enumerate(names)}  # [unit, from]
    p = {"i": np.array([0.9, -0.3]), "f": np.array([0.2, 0.6]), "o": np.array([-0.8, 0.4])}

    def flat(parts: dict[str, Array]) -> list[float]:
        return [float(v) for part in parts.values() for v in part.reshape(-1)]

    data = written(1, [("lstm", 2)], scale=0.5)
    data["weights"]["level_0"] = {"input": flat(w), "bias": flat(b), "internal": flat(r) + flat(p)}

    def sigma(z: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-z)))

    h = c = np.zeros(2)
    expected = []
    x = [0.7, -1.1, 0.4]
    for value in x:
        z = {g: w[g] * value + 0.5 * b[g] + r[g] @ h for g in names}
        c = sigma(z["f"] + p["f"] * c) * c + sigma(z["i"] + p["i"] * c) * np.tanh(z["n"])
        h = sigma(z["o"] + p["o"] * c) * np.tanh(c)
        expected.append(h)

    step = to_step(load_currennt(saved(data, tmp_path)))
    program = OrtProgram(step.to_bytes())
    state = program.new_state()
    made = [program.step([{"x": np.array([v], np.float32)}], state, [0])[0]["y"].copy() for v in x]
    assert_close(np.stack(made), np.stack(expected), "float32")


def test_blstm_layout(tmp_path: Path) -> None:
    """Its halves are two lstm layers: the first over the sequence, the second over the sequence turned round."""
    data = written(3, [("blstm", 4)])
    found = {part: np.array(v) for part, v in data["weights"]["level_0"].items()}
    x = frames(saved(data, tmp_path), 6)
    halves = []
    for way in (0, 1):
        half = slice(2 * way, 2 * way + 2)
        alone = written(3, [("lstm", 2)])
        recurrent, peepholes = found["internal"][:32].reshape(4, 4, 2), found["internal"][32:].reshape(3, 4)
        alone["weights"]["level_0"] = {
            "input": found["input"].reshape(4, 4, 3)[:, half].reshape(-1).tolist(),
            "bias": found["bias"].reshape(4, 4)[:, half].reshape(-1).tolist(),
            "internal": [*recurrent[:, half].reshape(-1), *peepholes[:, half].reshape(-1)],
        }
        step = to_step(load_currennt(saved(alone, tmp_path)))
        program = OrtProgram(step.to_bytes())
        state = program.new_state()
        order = x[::-1] if way else x
        made = np.stack([program.step([{"x": f}], state, [0])[0]["y"].copy() for f in order])
        halves.append(made[::-1] if way else made)
    both = OrtProgram(to_step(load_currennt(saved(data, tmp_path)), 6).to_bytes())
    (whole,) = both.step([{"x": x}], both.new_state(), [0])
    assert_close(whole["y"], np.hstack(halves), "float32")


def test_export_and_stream(tmp_path: Path) -> None:
    """Through the public door: a step that streams two streams, a window, and ``verify`` against the file itself."""
    path = saved(written(3, [("lstm", 4), ("feedforward_tanh", 3), ("lstm", 2), ("softmax", 5)]), tmp_path)
    exported = edgelstm.export(path, tmp_path / "step.onnx", limit=60)
    assert [s.name for s in exported.step.signature.states] == ["h0", "c0", "h1", "c1"]
    gates = [n for n in exported.step.model.graph.node if n.op_type == "FusedGates_peephole"]
    assert len(gates) == 2
    x = {name: frames(path, 9, seed) for seed, name in enumerate(("north", "south"))}
    window = edgelstm.export(path, tmp_path / "window.onnx", window=9, limit=18)
    program = OrtProgram(window.step.to_bytes())
    made: dict[str, list[Array]] = {name: [] for name in x}
    with edgelstm.Runner.open(tmp_path / "step.onnx", streams=2) as runner:
        for name in x:
            runner.stream(name)
        for t in range(9):
            for name, outputs in runner.step({name: x[name][t] for name in x}).items():
                made[name].append(outputs["y"].copy())
    for name, sequence in x.items():
        (whole,) = program.step([{"x": sequence}], program.new_state(), [0])
        assert_close(np.stack(made[name]), whole["y"], "float32", atol=1e-5)
        assert_close(whole["y"].sum(-1), np.ones(9), "float32")


def test_blstm_is_a_window(tmp_path: Path) -> None:
    path = saved(written(3, [("lstm", 2), ("blstm", 4), ("softmax", 3)]), tmp_path)
    with pytest.raises(EdgeLstmError, match=r"'level_1' is a blstm.*backwards.*--window") as caught:
        edgelstm.export(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists(), caught
    exported = edgelstm.export(path, tmp_path / "out.onnx", window=5, limit=20)
    assert exported.step.signature.window == 5
    assert not exported.step.signature.states
    assert "runs backwards" in " ".join(exported.notes)
    weights = [t for t in exported.step.model.graph.initializer if t.name.endswith(".weight")]
    assert len(weights) == 4  # stored once, not once a frame
    with pytest.raises(EdgeLstmError, match="window"):
        to_step(load_currennt(path), 10**9)


def test_trained_without_post_output_layer(tmp_path: Path) -> None:
    """A file whose post-output layer was cut off computes the same."""
    data = written(2, [("feedforward_relu", 3)])
    whole = to_step(load_currennt(saved(data, tmp_path)))
    data["layers"].pop()
    assert to_step(load_currennt(saved(data, tmp_path))).to_bytes() == whole.to_bytes()
    assert not whole.signature.states


def test_names_alike(tmp_path: Path) -> None:
    """Layers called like parts of others, or like the graph's own values, keep their own weights."""
    text = json.dumps(written(2, [("blstm", 2), ("lstm", 2), ("feedforward_tanh", 2)]))
    for k, name in enumerate(("a", "a.forward", "h0_next")):
        text = text.replace(f"level_{k}", name)
    network = load_currennt(saved(json.loads(text), tmp_path))
    step = to_step(network, 4)
    step.check()
    program, reference = OrtProgram(step.to_bytes()), CurrenntProgram(network, step.signature)
    frame = {"x": np.ones((4, 2), np.float32)}
    (made,), (expected,) = (p.step([frame], p.new_state(), [0]) for p in (program, reference))
    assert_close(made["y"], expected["y"], "float32")


def put(*keys: Any, value: Any) -> Any:
    """A change to a network: ``value`` at the place ``keys`` lead to."""

    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def drop(*keys: Any) -> Any:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


BROKEN: dict[str, tuple[Any, str]] = {
    "untrained": (drop("weights"), "no weights.*save_network"),
    "layer without weights": (
        drop("weights", "level_1"),
        "'level_1' has no weights: found weights of level_0",
    ),
    "part missing": (
        drop("weights", "level_0", "bias"),
        r"'level_0': weights/bias missing.*16 numbers \(4 x 4\)",
    ),
    "short": (
        drop("weights", "level_0", "input", 0),
        "'level_0': weights/input: found 47 numbers; expected 48",
    ),
    "short peepholes": (drop("weights", "level_0", "internal", -1), "found 75 numbers.*76.*3 x 4 peephole"),
    "text": (
        put("weights", "level_1", "bias", 1, value="7"),
        r"weights/bias\[1\]: found '7'; expected a finite",
    ),
    "NaN": (put("weights", "level_1", "bias", 1, value=float("nan")), r"bias\[1\]: found nan"),
    "too large": (put("weights", "level_1", "bias", 1, value=1e39), r"bias\[1\]: found 1e\+39"),
    "true": (put("weights", "level_1", "bias", 1, value=True), r"bias\[1\]: found True"),
    "overflow": (put("weights", "level_0", "bias", 0, value=3e38), "'level_0': bias.*largest"),
    "unknown type": (
        put("layers", 2, "type", value="feedforward_gelu"),
        "unknown type: found feedforward_gelu.*lstm",
    ),
    "not chained": (
        put("layers", 1, "size", value=5),
        "'level_0': weights/input: found 48 numbers; expected 60",
    ),
    "outputs": (put("layers", 3, "size", value=9), "'postoutput': size: found 9; expected 2"),
    "huge": (put("layers", 1, "size", value=10**12), "size of layer 'level_0'.*1000000000000"),
    "large": (
        put("layers", 1, "size", value=2**20),
        "'level_0': weights/input: found 48 numbers; expected 12582912",
    ),
    "no size": (drop("layers", 1, "size"), "size of layer 'level_0': found None"),
    "fraction": (put("layers", 1, "size", value=4.0), "size of layer 'level_0': found 4.0"),
    "odd blstm": (
        lambda d: (put("layers", 1, "type", value="blstm")(d), put("layers", 1, "size", value=5)(d)),
        "even",
    ),
    "no bias": (drop("layers", 1, "bias"), "'level_0': bias: found None"),
    "twins": (put("layers", 2, "name", value="level_0"), "two layers of one name: found level_0"),
    "nameless": (put("layers", 1, "name", value=""), "name of layer 1"),
    "unprintable": (put("layers", 1, "name", value="\ud800"), "name of layer 1"),
    "no input": (drop("layers", 0), "first layer: found lstm; expected a layer of type input"),
    "two inputs": (put("layers", 1, "type", value="input"), "unknown type: found input"),
    "two ends": (put("layers", 2, "type", value="sse"), "'level_1', type sse, is not the last"),
    "nothing to compute": (
        lambda d: d.update(layers=[d["layers"][0], {**d["layers"][3], "size": 3}]),
        "no layer between|size",
    ),
    "layers no list": (put("layers", value={}), "no list 'layers'"),
    "layer no object": (put("layers", 1, value=3), "layer 1: found int; expected an object"),
    "weights no object": (put("weights", value=[]), "no weights: found list"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refused(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    data = written(3, [("lstm", 4), ("softmax", 2)])
    change(data)
    with pytest.raises(EdgeLstmError, match=f"(?s){message}"):
        edgelstm.export(saved(data, tmp_path), tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.jsn"]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 9_000, b"\xff\xfe{}", b"[1]", b"null", b'{"layers": 9' + b"9" * 9000 + b"}"]
)
def test_no_network(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "net.jsn"
    path.write_bytes(text)
    with pytest.raises(EdgeLstmError, match=r"is not JSON|is no CURRENNT network"):
        load_currennt(path)


def test_many_small_parts(tmp_path: Path) -> None:
    """Counted before they are parsed: a few bytes of text each would else become 64 of memory."""
    path = tmp_path / "net.jsn"
    path.write_bytes(b'{"layers": [' + b"0," * (2**24 + 1) + b"0]}")
    with pytest.raises(
        EdgeLstmError, match=r"is too large: found 16777217 numbers; expected at most 16777216"
    ):
        load_currennt(path)
    path.write_bytes(b"[" + b"[]," * 20_000 + b"0]")
    with pytest.raises(EdgeLstmError, match=r"is too large: found 20001 lists and objects"):
        load_currennt(path)
    path.write_bytes(b"{" + b",".join(b'"%d":1' % k for k in range(100_001)) + b"}")
    with pytest.raises(EdgeLstmError, match=r"is too large: found 100001 keys"):
        load_currennt(path)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    path = saved(written(3, [("lstm", 4)]), tmp_path)
    for options in ({"frame": (3,)}, {"gate_order": "ifog"}, {"states": {"h": "h2"}}):
        with pytest.raises(EdgeLstmError, match="given for"):
            edgelstm.export(path, **options)


VALUES = st.sampled_from(
    [None, True, -1, 0, 3, 2**40, 0.5, float("inf"), "", "lstm", "sse", [], {}, [[1]], {"a": 1}]
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_mutated_files(tmp_path_factory: Any, data: st.DataObject) -> None:
    """A value anywhere replaced or removed, or the text cut or changed: a network that still runs, or one clear error."""
    network: Any = written(2, [("lstm", 2), ("blstm", 2), ("softmax", 2)])
    for _ in range(data.draw(st.integers(0, 2))):
        place: Any = network
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and data.draw(st.integers(0, 3)):
                place = place[key]
                continue
            if data.draw(st.booleans()):
                place[key] = copy.deepcopy(data.draw(VALUES))
            else:
                del place[key]
            break
    text = bytearray(json.dumps(network).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("m") / "net.jsn"
    path.write_bytes(text[: data.draw(st.sampled_from([None, None, len(text) // 2]))])
    try:
        step = to_step(load_currennt(path), 3)
    except EdgeLstmError:
        return
    onnx.checker.check_model(step.model)
