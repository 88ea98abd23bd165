"""inspect: what a step graph takes, gives and remembers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.files import PathLike
from edgelstm.graph.signature import Signature


@dataclass(repr=False)
class Inspection:
    """What :func:`inspect` read."""

    path: str
    bytes: int
    sha256: str
    opset: int
    parameters: int
    operators: dict[str, int]
    signature: Signature

    def __repr__(self) -> str:
        return f"Inspection({self.path}, {self.parameters:,} parameters, {self.signature})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": self.path,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "opset": self.opset,
            "parameters": self.parameters,
            "operators": self.operators,
            "signature": self.signature.to_json(),
        }


def inspect(path: PathLike) -> Inspection:
    """Read a step graph: Signature, operators, parameters, size."""
    from edgelstm.graph.step import StepModel

    step = StepModel.load(path)
    graph = step.model.graph
    return Inspection(
        path=str(path),
        bytes=Path(path).stat().st_size,
        sha256=step.sha256(),
        opset=step.opset,
        parameters=sum(int(np.prod(t.dims)) for t in graph.initializer),
        operators=dict(Counter(step.op_types()).most_common()),
        signature=step.signature,
    )
