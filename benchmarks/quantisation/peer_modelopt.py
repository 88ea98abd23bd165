"""The peer NVIDIA ModelOpt: INT8 post-training quantisation of an ONNX file, in an environment of its own.

It asks for other versions of onnx and onnxruntime than ours, so it is never installed beside us: :func:`environment`
makes ``build/modelopt-venv`` out of ``modelopt-requirements.txt``. The extra ``nvidia-modelopt[onnx]`` would also bring
onnxruntime-gpu and CuPy, which INT8 on the processor does not need; the list leaves them out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from cases import HERE, ROOT
from feeds import Feed, as_step, plain_step
from peer_onnxruntime import WEIGHTED

from edgelstm.errors import EdgeLstmError

REQUIREMENTS = HERE / "modelopt-requirements.txt"
VENV = ROOT / "build" / "modelopt-venv"
#: Options of its ``quantize``. By default it places Q/DQ for TensorRT's fusions. The second setting confines it to the
#: operators with weights, and takes back two defaults that hurt here: at batch 1 it leaves every Gemm and MatMul in
#: float (TensorRT would run them as matrix times vector), so that of an LSTM nothing is quantised; and it stores a
#: weight once for every operator that shares it, which makes the forecasters five times as large.
SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8-weighted": {
        "op_types_to_quantize": WEIGHTED,
        "enable_gemv_detection_for_trt": False,
        "enable_shared_constants_duplication": False,
    },
}


def environment() -> Path:
    """The Python of the environment, which is made at the first call.

    torch (ModelOpt imports it) is installed as ``TORCH`` in the process environment says, as the Makefile has it; by
    default what PyPI has, which on Linux brings CUDA along. Raises EdgeLstmError when it can't be installed.
    """
    made = _environment()
    if isinstance(made, EdgeLstmError):
        raise made
    return made


@cache
def _environment() -> Path | EdgeLstmError:
    """What can't be installed is tried once, not for every model."""
    try:
        return _install()
    except EdgeLstmError as error:
        return error


def _install() -> Path:
    python, stamp = VENV / "bin" / "python", VENV / ".installed"
    if stamp.exists() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return python
    torch = os.environ.get("TORCH", "torch==2.13.0").split()
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([sys.executable, "-m", "venv", str(VENV)])
    _run([*pip, *torch])
    _run([*pip, "--no-deps", "-r", str(REQUIREMENTS)])
    _run([str(python), "-c", "import modelopt.onnx.quantization"])
    stamp.write_bytes(REQUIREMENTS.read_bytes())
    return python


def modelopt(
    step_path: Path, feeds: Iterable[Feed], out: Path, options: Mapping[str, Any] | None = None
) -> None:
    """Quantise a step graph of ours with ``modelopt.onnx.quantization.quantize``; ``out`` has the same Signature.

    INT8, ranges by "max", everything else left in float32; ``options`` as in :data:`SETTINGS`.
    """
    python = environment()
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        plain, result = Path(folder, "plain.onnx"), Path(folder, "result.onnx")
        plain_step(step_path, plain)
        _write(feeds, Path(folder))
        script = str(HERE / "modelopt_quantise.py")
        _run([str(python), script, folder, str(result), json.dumps(options or {})])
        as_step(result, step_path).save(out)


def _write(feeds: Iterable[Feed], folder: Path) -> None:
    """Every input as raw float32 numbers in ``NAME.raw``, [frames, ...]: more than fits in memory may pass through."""
    feeds = iter(feeds)
    first = next(feeds)
    files = {name: (folder / f"{name}.raw").open("wb") for name in first}
    for feed in chain([first], feeds):
        for name, value in feed.items():
            files[name].write(np.ascontiguousarray(value, np.float32).tobytes())
    for file in files.values():
        file.close()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise EdgeLstmError(
            f"ModelOpt: {' '.join(command[:4])} ... failed", found=lines[-1] if lines else "no message"
        )
