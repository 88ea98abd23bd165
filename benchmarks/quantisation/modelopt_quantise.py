"""Runs inside ModelOpt's environment: ``python modelopt_quantise.py FOLDER OUT [OPERATOR ...]``.

FOLDER holds plain.onnx and, for each of its inputs, NAME.raw: float32 numbers of all calibration frames, one after the
other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize


def main(folder: Path, out: str, operators: list[str]) -> None:
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
        op_types_to_quantize=operators or None,
        high_precision_dtype="fp32",
        output_path=out,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
