"""Runs inside ModelOpt's environment: ``python modelopt_quantise.py FOLDER OUT OPTIONS``.

FOLDER holds plain.onnx and, for each of its inputs, NAME.raw: float32 numbers of all calibration frames, one after the
other. OPTIONS: keyword arguments of ``quantize``, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize


def main(folder: Path, out: str, options: dict[str, Any]) -> None:
    """Quantise FOLDER/plain.onnx."""
    path = folder / "plain.onnx"
    data = {}
    for value in onnx.load(path).graph.input:
        frame = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        data[value.name] = np.memmap(folder / f"{value.name}.raw", np.float32, "r").reshape(-1, *frame)
    quantize(
        str(path),
        quantize_mode="int8",
        calibration_data=data,
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=out,
        **options,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
