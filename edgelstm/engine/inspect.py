"""inspect_engine: what a plan's sidecar tells, and on a GPU what the engine itself does."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelstm import machine
from edgelstm.engine import versions
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.runtime.plugin_library import find_plugin_library, register
from edgelstm.runtime.sidecar import Sidecar, load_sidecar

#: Layers that only change how a tensor lies in memory.
_REFORMATS = ("reformat", "reformatcopy", "copy")


@dataclass(frozen=True)
class Layer:
    """A layer of an engine as TensorRT's inspector tells it: kernel or kind, and the types it reads."""

    name: str
    kind: str
    kernel: str
    reads: tuple[str, ...]


@dataclass(frozen=True)
class EngineInspection:
    """What :func:`inspect_engine` found. ``layers`` is None where the engine could not be opened; ``note`` says why."""

    plan: Path
    bytes: int
    sidecar: Sidecar
    layers: tuple[Layer, ...] | None = None
    note: str | None = None

    @property
    def reformats(self) -> int | None:
        """Layers that only reformat."""
        if self.layers is None:
            return None
        return sum(any(word in layer.kind.lower() for word in _REFORMATS) for layer in self.layers)

    @property
    def kinds(self) -> dict[str, int]:
        """How many layers of each kind."""
        return dict(Counter(layer.kind for layer in self.layers or ()).most_common())

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        layers = (
            None
            if self.layers is None
            else [vars(layer) | {"reads": list(layer.reads)} for layer in self.layers]
        )
        return {
            "plan": str(self.plan),
            "bytes": self.bytes,
            "engine": self.sidecar.to_json(),
            "layers": layers,
            "reformats": self.reformats,
            "note": self.note,
        }


def inspect_engine(plan: PathLike) -> EngineInspection:
    """Read the sidecar of ``plan``, check that they belong together, and on a GPU list the engine's layers.

    Raises EdgeLstmError for files that are missing or do not belong together; never for a missing GPU.
    """
    sidecar = load_sidecar(plan)
    path = Path(plan)
    layers, note = None, None
    cuda = machine.cuda()
    if not cuda or not cuda.gpus:
        note = "No NVIDIA GPU here: the engine's layers can only be read on one"
    else:
        try:
            layers = _layers(path, sidecar)
        except EdgeLstmError as error:
            note = str(error)
    return EngineInspection(path, path.stat().st_size, sidecar, layers, note)


def _layers(plan: Path, sidecar: Sidecar) -> tuple[Layer, ...]:
    trt = versions.load(sidecar.runtime)
    if sidecar.gates == "plugin":
        register(trt.get_plugin_registry(), find_plugin_library(tensorrt=str(trt.__version__)))
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise EdgeLstmError(
            f"{plan} does not open here",
            found=f"{sidecar.runtime} {trt.__version__}",
            expected=f"{sidecar.runtime} {sidecar.version}" + (f" on {sidecar.gpu}" if sidecar.gpu else ""),
        )
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return tuple(read_layer(entry) for entry in json.loads(text).get("Layers", []))


def read_layer(entry: Any) -> Layer:
    """One entry of the inspector's "Layers": an object in plans built with detailed profiling, else a bare name."""
    if not isinstance(entry, dict):
        return Layer(str(entry), "unknown", "", ())
    reads = tuple(str(t.get("Format/Datatype", "")) for t in entry.get("Inputs", []) if isinstance(t, dict))
    kernel = str(entry.get("TacticName", ""))
    return Layer(str(entry.get("Name", "")), str(entry.get("LayerType", "unknown")), kernel, reads)
