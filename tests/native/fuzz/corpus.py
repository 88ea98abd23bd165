"""What the fuzz targets begin with: Signatures, models and snapshots as edgelstm writes them, of several kinds of models.

    PYTHONPATH=.:tests python tests/native/fuzz/corpus.py FOLDER

writes FOLDER/{signature,model,sidecar,snapshot}/, FOLDER/graph.onnx and FOLDER/{signature,sidecar,snapshot}.dict.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import onnx

import zoo
from edgelstm.graph.step import StepModel
from edgelstm.passes.unroll import unroll
from edgelstm.runtime.sidecar import Sidecar
from edgelstm.runtime.snapshot import Snapshot

#: As snapshot.cpp has them: (dtype, shape) by name.
STATES = {"h": ("<f4", (2, 3)), "c": ("<f2", (4,)), "n": ("<i8", ()), "größe": ("?", (1,))}
MODEL = "a" * 64


def models() -> dict[str, StepModel]:
    """By name; the first is the one whose graph the fuzzed Signatures are put into."""
    return {
        "lstm": zoo.lstm(), "conv_lstm": zoo.conv_lstm(), "two_inputs": zoo.two_inputs(), "running_sum": zoo.running_sum(),
        "five_rows": zoo.lstm(axis=5), "no_outputs": zoo.running_sum(outputs=()), "window": unroll(zoo.lstm(), 3),
    }  # fmt: skip


def sidecars() -> dict[str, Sidecar]:
    """Of the same models, as engines of several kinds have them."""
    hashes = {"onnx": "1" * 64, "plan": "2" * 64}
    options: list[dict[str, object]] = [
        {},
        {"profiles": [[1, 1, 1], [2, 4, 8]], "version_compatible": True},
        {"hardware_compatible": True, "in_place": False, "workspace": 0.5, "größe": None},
    ]
    found = {}
    for k, (name, step) in enumerate(models().items()):
        found[name] = Sidecar(
            step.signature, "tensorrt", "10.3.0", gpu="8.7" if k % 2 else None, streams=(1, 2 + k, 9), hashes=hashes,
            options=options[k % 3], plan_bytes=k * 1000,
        )  # fmt: skip
    return found


def snapshots(folder: Path) -> dict[str, bytes]:
    """Of the states that the target expects, and of others; ``folder`` is for what is in between."""
    rng = np.random.default_rng(1)
    values = {n: (rng.normal(size=s) * 9).astype(d) for n, (d, s) in STATES.items()}
    found: dict[str, bytes] = {}
    for name, model in (("whole", MODEL), ("other", "b" * 64)):
        path = folder / f"{name}.npz"
        Snapshot(values, model=model).save(path)
        found[name] = path.read_bytes()
    for name, save, changed in (
        ("plain", np.savez, {}),
        ("compressed", np.savez_compressed, {}),
        ("shape", np.savez, {"h": np.zeros((3, 2), np.float32)}),
        ("fortran", np.savez, {"h": np.asfortranarray(values["h"])}),
        ("dtype", np.savez, {"c": np.zeros(4, np.float32)}),
        ("nan", np.savez, {"h": np.full((2, 3), np.nan, np.float32)}),
    ):
        held = io.BytesIO()
        save(held, **{**values, **changed})
        found[name] = held.getvalue()
    return found


def write(folder: Path) -> None:
    """All of it. Small files, so that the fuzzers are fast."""
    for part in ("signature", "model", "sidecar", "snapshot"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, step in models().items():
        text = step.signature.dumps().encode()
        (folder / "signature" / name).write_bytes(text)
        (folder / "model" / name).write_bytes(text)
        (folder / "model" / f"raw_{name}").write_bytes(b"raw\n" + step.to_bytes())
    first = next(iter(models().values())).model
    bare = onnx.ModelProto()
    bare.CopyFrom(first)
    del bare.metadata_props[:]
    (folder / "graph.onnx").write_bytes(bare.SerializeToString())
    outside = folder / "outside.onnx"
    onnx.save_model(first, outside, save_as_external_data=True, location="outside.bin", size_threshold=0)
    (folder / "model" / "raw_outside").write_bytes(b"raw\n" + outside.read_bytes())
    for name, data in snapshots(folder).items():
        (folder / "snapshot" / name).write_bytes(data)
    words = [
        "schema", "inputs", "outputs", "states", "name", "dtype", "shape", "input", "output", "initial", "zeros", "repeated", "base64", "\\\\u",
        "float32", "float16", "bfloat16", "float8e4m3fn", "float64", "int64", "bool", "N", "2147483647", "9223372036854775807", "AACAPw==", "true", "null",
    ]  # fmt: skip
    (folder / "signature.dict").write_text("".join(f'"{word}"\n' for word in words))
    for name, sidecar in sidecars().items():
        (folder / "sidecar" / name).write_text(sidecar.dumps())
    words += [
        "runtime", "version", "gpu", "gates", "targets", "precision", "streams", "plan_bytes", "options", "profiles", "version_compatible",
        "hardware_compatible", "in_place", "hashes", "plan", "signature", "tensorrt", "16777216", "1e3", "-0", "\\\\ud83d\\\\ude00",
    ]  # fmt: skip
    (folder / "sidecar.dict").write_text("".join(f'"{word}"\n' for word in words))
    parts = [
        r"PK\x03\x04", r"PK\x01\x02", r"PK\x05\x06", r"PK\x06\x06", r"PK\x06\x07", r"\x93NUMPY\x01\x00", r"\x93NUMPY\x02\x00", "descr",
        "fortran_order", "shape", "False", "True", "<f4", "<f2", "|b1", "<i8", ".npy", "edgelstm.snapshot", r"\xff\xff\xff\xff", r"\x01\x00\x10\x00",
    ]  # fmt: skip
    (folder / "snapshot.dict").write_text("".join(f'"{part}"\n' for part in parts))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
