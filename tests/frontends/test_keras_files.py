"""Files that are no models, broken, or made to harm: one clear error each, nothing run, nothing large read."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_zoo import (
    Streamed,
    by_numpy,
    fill,
    hdf5_in_process,
    keras,
    layers,
    predict,
    refused,
    run_window,
    save,
    sequential,
)

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras import hdf5, load_keras
from edgelstm.frontends.keras.hdf5 import Hdf5
from edgelstm.quantize.qdq import quantize
from recordings import all_weights, calibrated, drift
from tolerances import assert_close

FRAME = (3,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small model as model.keras and model.h5."""
    path = tmp_path_factory.mktemp("files")
    stack = [layers.LSTM(4, name="cell", return_sequences=True), layers.Dense(2, name="head")]
    model = sequential(*stack, frame=FRAME)
    for suffix in (".keras", ".h5"):
        save(model, path, suffix)
    return path


def rewritten(source: Path, target: Path, **members: bytes | None) -> Path:
    """A .keras file with some members replaced, or left out where None: config, metadata, weights."""
    names = {"config.json": "config", "metadata.json": "metadata", "model.weights.h5": "weights"}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = members.get(names[name], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def configured(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A .keras file whose configuration ``change`` edited."""
    config = json.loads(zipfile.ZipFile(source).read("config.json"))
    change(config)
    return rewritten(source, target, config=json.dumps(config).encode())


def layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in config["config"]["layers"] if item["config"]["name"] == name)


def reweighted(source: Path, target: Path, change: Callable[[h5py.File], object]) -> Path:
    """A .keras file whose weights ``change`` edited."""
    data = io.BytesIO(zipfile.ZipFile(source).read("model.weights.h5"))
    with h5py.File(data, "r+") as file:
        change(file)
    return rewritten(source, target, weights=data.getvalue())


def test_both_files_load_without_keras_torch_or_h5py_in_this_process(folder: Path) -> None:
    import subprocess

    for name in ("model.keras", "model.h5"):
        code = (
            "import sys; from edgelstm.frontends.keras import load_keras\n"
            f"print(load_keras({str(folder / name)!r}).step.op_types())\n"
            "assert not {'keras', 'tensorflow', 'torch', 'h5py'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "['Concat', 'Gemm', 'FusedGates_lstm', 'Gemm']"


class Boom:
    """Leaves a file behind if it is ever unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("open('boom', 'w')",))


def test_files_that_are_no_models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.keras"
    assert "does not exist" in refused(path)
    path.write_bytes(b"")
    assert "is no Keras model: found an empty file; expected a .keras archive or an HDF5 file" in refused(
        path
    )
    path.write_bytes(pickle.dumps(Boom()))
    assert "it looks like a pickle, which can run any code" in refused(path)
    assert not (tmp_path / "boom").exists()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Boom()))
    assert "is a zip archive, but no Keras model: found data.pkl" in refused(path)
    saved = tmp_path / "saved.keras"
    saved.mkdir()
    assert "A SavedModel holds no Keras configuration" in refused(saved)
    good = (folder / "model.keras").read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert "damaged or truncated" in refused(path)
    legacy = (folder / "model.h5").read_bytes()
    path.write_bytes(legacy[: len(legacy) // 2])
    assert "its HDF5 part is damaged or truncated" in refused(path)
    assert "the configuration is not as Keras writes it" in refused(
        configured(folder / "model.keras", path, lambda c: c["config"].update(layers=[1]))
    )
    assert "config.json is not JSON" in refused(rewritten(folder / "model.keras", path, config=b"[" * 60_000))
    assert "no weights in one HDF5 file" in refused(rewritten(folder / "model.keras", path, weights=None))


def test_weights_alone(folder: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as new, h5py.File(folder / "model.h5") as old:
        for name in old["model_weights"]:
            old["model_weights"].copy(name, new)
        new.attrs["layer_names"] = [b"cell", b"head"]
    text = refused(tmp_path / "w.h5")
    assert "holds no model: there is no configuration in it: found weights alone" in text
    assert "then model.save('model.keras')" in text


def test_archives_that_unpack_to_far_more_than_they_hold(folder: Path, tmp_path: Path) -> None:
    path = rewritten(folder / "model.keras", tmp_path / "bomb.keras", config=b" " * 50_000_000)
    tracemalloc.start()
    try:
        text = refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "config.json unpacks to far more than is stored: found 50000000 bytes from" in text
    assert peak < 5_000_000
    rewritten(folder / "model.keras", path, weights=b"\0" * 50_000_000)
    assert "model.weights.h5 unpacks to far more than is stored" in refused(path)
    # The table of the archive says little, the data goes on: no more than the table says is read.
    data = rewritten(folder / "model.keras", path, config=b"{}" + b" " * 60_000).read_bytes()
    path.write_bytes(data.replace((60_002).to_bytes(4, "little"), (7).to_bytes(4, "little")))
    assert "damaged or truncated" in refused(path)


def test_archives_that_hold_a_part_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("config.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"{}")
    assert "config.json is in the archive twice" in refused(tmp_path / "m.keras")


LIES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "a shape far beyond what is stored": (
        lambda f: f.create_dataset("layers/x", (2**20, 2**20), "f4", chunks=(64, 64), compression="gzip"),
        "layers/x claims more numbers than the file holds: found shape [1048576, 1048576]",
    ),
    "a soft link": (
        lambda f: f.__setitem__("layers/dense", h5py.SoftLink("/layers/lstm")),
        "layers/dense is a link to elsewhere: found SoftLink",
    ),
    "a link into another file": (
        lambda f: f.__setitem__("layers/dense", h5py.ExternalLink("/etc/passwd", "/")),
        "layers/dense is a link to elsewhere: found ExternalLink; expected weights inside the file",
    ),
    "numbers in another file": (
        lambda f: f["layers/dense/vars"].create_dataset("0", (4, 2), "f4", external=[("/etc/passwd", 0, 32)]),
        "keeps its numbers in another file",
    ),
    "numbers that lie elsewhere": (
        lambda f: f["layers/dense/vars"].create_virtual_dataset("0", _virtual()),
        "keeps its numbers in another file",
    ),
    "objects instead of numbers": (
        lambda f: f["layers/dense/vars"].create_dataset("0", data=np.array([b"x"], "S9")),
        "expected an array of numbers",
    ),
    "another shape": (
        lambda f: f["layers/dense/vars"].create_dataset("0", data=np.zeros((2, 4), "f4")),
        "layer 'head' (Dense): weight 'kernel': found shape [2, 4]; expected shape [4, 2]",
    ),
    "not a number": (
        lambda f: f["layers/dense/vars"].create_dataset("0", data=np.full((4, 2), np.nan, "f4")),
        "layer 'head' (Dense): weight 'kernel': found NaN or infinity; expected finite numbers",
    ),
    "nothing": (lambda f: f["layers/dense"].__delitem__("vars"), "layer 'head' (Dense): weights are missing"),
}


def _virtual() -> Any:
    layout = h5py.VirtualLayout((4, 2), "f4")
    layout[...] = h5py.VirtualSource("/tmp/other.h5", "x", (4, 2))
    return layout


@pytest.mark.parametrize("name", LIES)
def test_weights_that_lie(name: str, folder: Path, tmp_path: Path) -> None:
    change, message = LIES[name]

    def lie(file: h5py.File) -> None:
        if name.startswith(("a soft", "a link")):
            del file["layers/dense"]
        elif "layers/x" not in message and name != "nothing":
            del file["layers/dense/vars/0"]
        change(file)

    assert message in refused(reweighted(folder / "model.keras", tmp_path / "m.keras", lie))


def test_a_file_on_which_the_hdf5_library_never_ends(tmp_path: Path) -> None:
    """The length of a string in the global heap: HDF5 2.0.0 goes round and round in it."""
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}" * 300
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 17 : heap + 25] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(EdgeLstmError, match=r"its HDF5 part is damaged or truncated"):
        Hdf5(path, "m.h5", seconds=1.5)


def test_without_h5py_the_extra_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h5py.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "h5py is not installed. pip install 'edgelstm[keras]'" in refused(folder / "model.h5")


def head_is(kind: str, **more: Any) -> Callable[[dict[str, Any]], object]:
    return lambda c: layer(c, "head").update(class_name=kind, **more)


def cell_has(**options: Any) -> Callable[[dict[str, Any]], object]:
    return lambda c: layer(c, "cell")["config"].update(options)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown layer": (head_is("Dance"), "layer 'head' is unknown: found Dance; expected one of Activation,"),
    "registered layer": (
        head_is("Dense", module=None, registered_name="mine>Dense"),
        "layer 'head' is unknown: found Dense of None",
    ),
    "layer of a module": (
        head_is("Dense", module="os.path"),
        "layer 'head' is unknown: found Dense of os.path",
    ),
    "unknown option": (
        cell_has(shuffle=7),
        "layer 'cell' (LSTM): unknown option 'shuffle': found 7; expected activation, go_backwards",
    ),
    "unknown activation": (
        cell_has(activation="wiggle"),
        "layer 'cell' (LSTM): option 'activation': found wiggle",
    ),
    "function": (
        cell_has(activation={"class_name": "function", "config": "f", "registered_name": "mine>f"}),
        "layer 'cell' (LSTM): option 'activation'",
    ),
    "lambda": (
        cell_has(activation={"class_name": "__lambda__", "config": {"value": "print"}}),
        "option 'activation' is code of its own (a lambda), which is never run",
    ),
    "backwards": (
        cell_has(go_backwards=True),
        "layer 'cell' (LSTM): option 'go_backwards': found True; expected False. A stream has no end to begin at",
    ),
    "time major": (
        cell_has(time_major=True),
        "layer 'cell' (LSTM): option 'time_major': found True; expected sequences [N, T, ...]",
    ),
    "size": (cell_has(units=-3), "option 'units': found -3; expected a whole number from 1 to 16777216"),
    "huge": (cell_has(units=2**24), "layer 'cell' (LSTM): weight 'kernel': found shape [3, 16]; expected"),
    "flag": (cell_has(use_bias="yes"), "option 'use_bias': found yes; expected true or false"),
    "precision": (cell_has(dtype="float64"), "option 'dtype': found float64; expected one of float32"),
    "quantised": (
        lambda c: layer(c, "head")["config"].update(quantization_config={"a": 1}),
        "option 'quantization_config': found {'a': 1}; expected float weights",
    ),
    "own class": (
        lambda c: c.update(class_name="MyModel"),
        "the model is a class of its own: found MyModel; expected Sequential or Functional",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configurations_that_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    path = configured(folder / "model.keras", tmp_path / "m.keras", change)
    with hdf5_in_process():
        text = refused(path)
    assert text.startswith(str(path))
    assert message in text


def test_lambda_layers_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inner = keras.Sequential(
        [keras.Input((3,)), layers.Lambda(lambda x: (Path("boom").touch(), x)[1], name="trick")], name="inner"
    )
    model = sequential(layers.TimeDistributed(inner, name="each"), layers.LSTM(2), frame=FRAME)
    path = save(model, tmp_path)
    Path("boom").unlink(missing_ok=True)
    assert "layer 'each/layer/trick' is a Lambda: code inside the file, which is never run" in refused(path)
    assert not Path("boom").exists()


def test_export_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    path = configured(folder / "model.keras", tmp_path / "m.keras", head_is("Dance"))
    with pytest.raises(EdgeLstmError, match="unknown"):
        edgelstm.export(str(path), tmp_path / "m.onnx")
    with pytest.raises(EdgeLstmError, match="states given for"):
        edgelstm.export(str(folder / "model.h5"), tmp_path / "m.onnx", states={"a": "b"})
    assert [p.name for p in tmp_path.iterdir()] == ["m.keras"]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(("model.keras", "model.h5")))
def test_any_changed_bytes_give_an_error_or_a_model(folder: Path, seed: int, name: str) -> None:
    """No crash, no hang, no other error."""
    rng = random.Random(seed)
    data = bytearray((folder / name).read_bytes())
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((1, 4, 8))] = rng.randbytes(rng.choice((0, 1, 4, 8)))
    path = folder / f"changed{Path(name).suffix}"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "_SECONDS", 3.0)  # one file in about a hundred makes the library spin
        assert str(path) in _problem(path)


def _problem(path: Path, **options: Any) -> str:
    """The message of the one kind of error there may be; the path where the file is a model."""
    try:
        load_keras(path, **options).step.check()
    except EdgeLstmError as error:
        return str(error)
    return str(path)


ODD = (
    None,
    True,
    0,
    -1,
    2,
    7,
    1e308,
    float("inf"),
    10**9,
    "",
    "x",
    "same",
    "LSTM",
    [],
    [0],
    [1, 2],
    {},
    {"a": 1},
)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))
def test_any_configuration_gives_an_error_or_a_model(folder: Path, seed: int) -> None:
    """Parts of it replaced by odd values, moved about, or left out."""
    rng = random.Random(seed)

    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        yield path
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in items:
            yield from places(inner, (*path, key))

    def at(value: Any, path: tuple[Any, ...]) -> Any:
        for key in path:
            value = value[key]
        return value

    def change(config: dict[str, Any]) -> None:
        whole = copy.deepcopy(config)
        for _ in range(rng.choice((1, 1, 3))):
            known = [p for p in places(config) if p and p[0] == "config"]
            *before, last = rng.choice(known)
            new = rng.choice((rng.choice(ODD), copy.deepcopy(at(whole, rng.choice([*places(whole)])))))
            at(config, tuple(before))[last] = new

    path = configured(folder / "model.keras", folder / "odd.keras", change)
    with hdf5_in_process():
        assert _problem(path, window=4)


def keras2(path: Path, version: str = "2.3.1") -> Path:
    """The same .h5 file as Keras 2 wrote it: its version, names of shapes, and calls as lists."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for item in config["config"]["layers"]:
            options = item["config"]
            if "batch_shape" in options:
                options["batch_input_shape"] = options.pop("batch_shape")
            options["dtype"] = "float32"
            if "inbound_nodes" in item:
                item["inbound_nodes"] = [
                    [[*argument["config"]["keras_history"], {}] for argument in _flat(node["args"])]
                    for node in item["inbound_nodes"]
                ]
        if config["class_name"] == "Functional":
            config["class_name"] = "Model"
            for key in ("input_layers", "output_layers"):
                if isinstance(config["config"][key][0], str):
                    config["config"][key] = [config["config"][key]]
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["keras_version"] = version.encode()
    return path


def _flat(arguments: list[Any]) -> list[Any]:
    return [x for a in arguments for x in (_flat(a) if isinstance(a, list) else [a])]


def test_hard_sigmoid_means_what_the_file_s_keras_meant(tmp_path: Path) -> None:
    """clip(0.2 x + 0.5, 0, 1) in files of Keras 2."""

    def old(x: Any) -> Any:
        return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)

    def model(gate: Any) -> Any:
        x = keras.Input((None, 3), name="x")
        y = layers.LSTM(4, recurrent_activation=gate, return_sequences=True, name="a")(x)
        z = layers.Add(name="b")(
            [y, layers.GRU(4, recurrent_activation=gate, return_sequences=True, name="c")(y)]
        )
        return fill(keras.Model(x, z), 2)

    loaded = load_keras(keras2(save(model("hard_sigmoid"), tmp_path, ".h5")))
    x = np.random.default_rng(0).normal(0, 2, (1, 9, 3)).astype(np.float32)
    assert_close(by_numpy(loaded, x)["y"], predict(model(old), x)[0][0], "float32", k=80, atol=1e-5)
    assert "FusedGates_lstm_hard_0p2_0p5" in loaded.step.op_types()
    exported = edgelstm.export(str(tmp_path / "model.h5"), limit=30)
    assert exported.comparison.worst.worst < 1e-5


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("name", ["features", "maps", "window"])
def test_files_that_keras_2_wrote(name: str, suffix: str) -> None:
    """By Keras 2.15 on TensorFlow 2.15.1, with what it predicted: they must load for ever."""
    golden = Path(__file__).parents[1] / "golden" / "keras"
    loaded = load_keras(golden / f"{name}{suffix}")
    with np.load(golden / "keras2.npz") as told:
        x, expected = told[f"{name}_x"], told[f"{name}_y"]
    if name == "window":
        assert_close(run_window(loaded, x)["y"], expected, "float32")
        return
    found = Streamed(loaded, x).elements()
    assert found.shape[1] == {"features": 7, "maps": 6}[name]  # maps look one frame ahead
    assert_close(found, expected[:, : found.shape[1]], "float32")


def test_what_is_exported_passes_through_the_other_passes(tmp_path: Path) -> None:
    """Rings of frames and the clock in INT8 graphs and in unrolled windows."""
    stack = [
        layers.Conv1D(8, 3, padding="same", activation="relu"),
        layers.MaxPooling1D(2),
        layers.LSTM(8, return_sequences=True),
        layers.GRU(8, return_sequences=True),
        layers.Dense(2),
    ]
    exported = edgelstm.export(str(save(sequential(*stack, frame=(4,), length=16), tmp_path)), limit=60)
    step = exported.step
    assert [s.name for s in step.signature.states if s.dtype == "int32"] == ["clock"]
    window = edgelstm.export(str(tmp_path / "model.keras"), window=6, limit=60)
    assert window.step.signature.window == 6
    small = quantize(step, calibrated(step), weights=all_weights(step))
    small.check()
    assert "QuantizeLinear" in small.op_types()
    assert drift(step, small, count=90)["y"] < 0.02
