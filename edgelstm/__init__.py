"""edgelstm: trained recurrent models, live.

The public names below are loaded when first used, so ``import edgelstm`` costs next to nothing and needs neither a
training framework nor a runtime. What each takes and gives stands in its own docstring.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgelstm.version import __version__

if TYPE_CHECKING:
    from edgelstm.demo.own import report
    from edgelstm.engine.build import build_engine
    from edgelstm.errors import EdgeLstmError
    from edgelstm.frontends.torch import nn
    from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
    from edgelstm.graph.step import StepModel
    from edgelstm.pipeline.inputs import Inputs
    from edgelstm.pipeline.outputs import Outputs
    from edgelstm.runtime.runner import Runner, Stream
    from edgelstm.runtime.snapshot import Snapshot
    from edgelstm.verify.anomaly import Detector
    from edgelstm.workflows.calibrate import calibrate
    from edgelstm.workflows.detect import detect, fit_detector
    from edgelstm.workflows.export import export
    from edgelstm.workflows.inspect import inspect
    from edgelstm.workflows.lower import lower
    from edgelstm.workflows.quantize import quantize
    from edgelstm.workflows.run import run
    from edgelstm.workflows.score import score
    from edgelstm.workflows.serve import Pipeline
    from edgelstm.workflows.verify import verify


__all__ = [
    "Detector",
    "EdgeLstmError",
    "Inputs",
    "Outputs",
    "Pipeline",
    "Runner",
    "Signature",
    "Snapshot",
    "StateSpec",
    "StepModel",
    "Stream",
    "TensorSpec",
    "__version__",
    "build_engine",
    "calibrate",
    "detect",
    "export",
    "fit_detector",
    "inspect",
    "lower",
    "nn",
    "quantize",
    "report",
    "run",
    "score",
    "verify",
]

#: Where each public name lives.
_HOME = {
    "Detector": "edgelstm.verify.anomaly",
    "detect": "edgelstm.workflows.detect",
    "fit_detector": "edgelstm.workflows.detect",
    "EdgeLstmError": "edgelstm.errors",
    "Inputs": "edgelstm.pipeline.inputs",
    "Outputs": "edgelstm.pipeline.outputs",
    "Pipeline": "edgelstm.workflows.serve",
    "Runner": "edgelstm.runtime.runner",
    "Signature": "edgelstm.graph.signature",
    "Snapshot": "edgelstm.runtime.snapshot",
    "StateSpec": "edgelstm.graph.signature",
    "StepModel": "edgelstm.graph.step",
    "Stream": "edgelstm.runtime.runner",
    "TensorSpec": "edgelstm.graph.signature",
    "build_engine": "edgelstm.engine.build",
    "calibrate": "edgelstm.workflows.calibrate",
    "export": "edgelstm.workflows.export",
    "inspect": "edgelstm.workflows.inspect",
    "lower": "edgelstm.workflows.lower",
    "nn": "edgelstm.frontends.torch.nn",
    "quantize": "edgelstm.workflows.quantize",
    "report": "edgelstm.demo.own",
    "run": "edgelstm.workflows.run",
    "score": "edgelstm.workflows.score",
    "verify": "edgelstm.workflows.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "nn":
        from edgelstm.frontends.torch.package import import_torch

        import_torch()  # says which extra is missing
    home = import_module(_HOME[name])
    value = home if name == "nn" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing a submodule sets it on the package; ``edgelstm.verify.compare`` has to stay the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
