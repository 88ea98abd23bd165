"""lower: a step graph in the form that another runtime reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, refuse_overwrite
from edgelstm.graph.step import StepModel
from edgelstm.renamed import renamed
from edgelstm.runtime.identity import model_identity

#: "onnxruntime" keeps FusedGates as functions; the others are in standard operators alone, which is what OpenVINO, tract, the
#: reference evaluator of onnx and every other runtime read.
#: "native" has our own operators in place of cells, for ONNX Runtime with their library registered: docs/c.md.
Form = Literal["onnxruntime", "openvino", "plain", "native"]
#: In the metadata: the hash of the file that a model with our operators was made of. Their states are one.
SOURCE_KEY = "edgelstm.source"


@dataclass(repr=False)
class Lowered:
    """What :func:`lower` made."""

    step: StepModel
    path: Path | None
    form: str
    operators: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Lowered({self.path or 'not written'}, {self.form}, {count_of(len(self.operators), 'kind')} of operators)"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": None if self.path is None else str(self.path),
            "form": self.form,
            "sha256": self.step.sha256(),
            "bytes": len(self.step.to_bytes()),
            "operators": list(self.operators),
        }


def lowered(step: StepModel, form: Form) -> StepModel:
    """``step`` in a form; the same numbers, the same Signature."""
    from edgelstm.passes.lower import lower as lower_pass

    if form not in get_args(Form):
        raise EdgeLstmError("lower", found=form, expected=" or ".join(get_args(Form)))
    if form == "native":
        from edgelstm.runtime.session import available_cpus, with_operators

        return StepModel.from_bytes(with_operators(step.to_bytes(), available_cpus(), 1))
    return lower_pass(step, "openvino" if form == "plain" else form)


@renamed(form="runtime")
def lower(model: PathLike | StepModel, output: PathLike | None = None, runtime: Form = "plain") -> Lowered:
    """Write a step graph or window for another runtime: FusedGates written out in standard operators.

    model: a step graph of ours. output: the ``.onnx`` file; None writes nothing. runtime: "plain" and "openvino": standard
    operators only; "onnxruntime": FusedGates as functions, as ``export`` writes them.
    Raises EdgeLstmError, and writes nothing, for what is no step graph.
    """
    refuse_overwrite(output, (model,))
    step = model if isinstance(model, StepModel) else StepModel.load(model)
    if output is not None and Path(output).suffix.lower() != ".onnx":
        raise EdgeLstmError(
            f"output {output}", found=Path(output).suffix or "no suffix", expected="a path ending with .onnx"
        )
    made = lowered(step, runtime)
    if runtime == "native" and not isinstance(model, StepModel):
        made.model.metadata_props.add(key=SOURCE_KEY, value=model_identity(model))
    if output is not None:
        made.save(output)
    return Lowered(
        made, None if output is None else Path(output), runtime, tuple(sorted(set(made.op_types())))
    )
