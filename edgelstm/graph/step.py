"""StepModel: an ONNX graph of one time step together with its Signature, in one valid ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from edgelstm.errors import EdgeLstmError, count_of, some
from edgelstm.files import PathLike, read_bytes, sha256, write_bytes
from edgelstm.graph.signature import Dim, Signature

METADATA_KEY = "edgelstm.signature"
#: What our own frontends emit: new enough for Split's num_outputs, old enough for TensorRT 8.6 and JetPack 6.
OPSET = 18
IR_VERSION = 9


@dataclass(frozen=True, eq=False, repr=False)
class StepModel:
    """A step graph (or an unrolled window) and its Signature. Never edited in place: passes return new ones.

    ``model`` must be treated as read-only; :meth:`copy_model` gives one to edit.
    """

    model: onnx.ModelProto
    signature: Signature

    def __repr__(self) -> str:
        return f"StepModel({count_of(len(self.model.graph.node), 'node')}, {self.signature})"

    @classmethod
    def load(cls, path: PathLike) -> StepModel:
        """Read an ONNX file whose metadata holds a Signature, and check that the two agree.

        Raises EdgeLstmError for a file that is missing, is no ONNX, is truncated, has no Signature, or
        whose graph and Signature disagree.
        """
        return cls.from_bytes(read_bytes(path), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "model") -> StepModel:
        """Like :meth:`load`, from the file's bytes; ``where`` names it in messages."""
        model = parse_onnx(data, where)
        text = {p.key: p.value for p in model.metadata_props}.get(METADATA_KEY)
        if text is None:
            inputs = ", ".join(v.name for v in model.graph.input)
            outputs = ", ".join(v.name for v in model.graph.output)
            raise EdgeLstmError(
                f"{where} has no Signature: nothing tells which of its tensors are states",
                found=f"inputs {inputs}; outputs {outputs}",
                hint=f"Declare the state pairs: edgelstm export {where} --state INPUT=OUTPUT -o step.onnx",
            )
        step = cls(model, Signature.loads(text, where))
        step.check(where)
        return step

    def to_bytes(self) -> bytes:
        """The ONNX file: deterministic, the Signature in its metadata."""
        model = self.copy_model()
        kept = [p for p in model.metadata_props if p.key != METADATA_KEY]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        model.metadata_props.add(key=METADATA_KEY, value=self.signature.dumps())
        return bytes(model.SerializeToString(deterministic=True))

    def save(self, path: PathLike) -> None:
        """Check, then write the file whole or not at all."""
        self.check(str(path))
        write_bytes(path, self.to_bytes())

    def copy_model(self) -> onnx.ModelProto:
        """A deep copy of the ONNX model, to edit."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return model

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return int(next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")))

    def sha256(self) -> str:
        """Hash of the file this model would be saved as."""
        return sha256(self.to_bytes())

    def op_types(self) -> list[str]:
        """The main graph's operators in order, for tests and ``inspect``."""
        return [node.op_type for node in self.model.graph.node]

    def graph_hash(self) -> str:
        """SHA-256 of the graph, its functions and its states' initial values: what the model computes, and nothing else."""
        model = onnx.ModelProto()
        model.graph.CopyFrom(self.model.graph)
        model.functions.extend(self.model.functions)
        model.opset_import.extend(self.model.opset_import)
        initial = b"".join(s.initial or b"-" for s in self.signature.states)
        return sha256(model.SerializeToString(deterministic=True) + initial)

    def check(self, where: str = "model") -> None:
        """Raise EdgeLstmError unless the model is valid ONNX and agrees with the Signature."""
        try:
            onnx.checker.check_model(self.model)
        except Exception as error:  # the checker raises several unrelated classes
            raise EdgeLstmError(f"{where}: not valid ONNX", found=_first_line(error)) from error
        graph = self.model.graph
        weights = {t.name for t in graph.initializer}
        inputs = {v.name: v for v in graph.input if v.name not in weights}
        outputs = {v.name: v for v in graph.output}
        s = self.signature
        _check_names(where, "inputs", inputs, [t.name for t in s.inputs] + [x.input for x in s.states])
        _check_names(where, "outputs", outputs, [t.name for t in s.outputs] + [x.output for x in s.states])
        for spec in s.inputs:
            _check_value(where, inputs[spec.name], spec.dtype, spec.shape)
        for spec in s.outputs:
            _check_value(where, outputs[spec.name], spec.dtype, spec.shape)
        for state in s.states:
            _check_value(where, inputs[state.input], state.dtype, state.shape)
            _check_value(where, outputs[state.output], state.dtype, state.shape)


def parse_onnx(data: bytes, where: str, *, external: bool = False) -> onnx.ModelProto:
    """Parse ONNX bytes; a clear EdgeLstmError for anything else, and unless ``external`` for weights in other files."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise EdgeLstmError(
            f"{where} is not an ONNX file, or is truncated", found=_first_line(error), expected="ONNX"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise EdgeLstmError(
            f"{where} is not an ONNX file, or is truncated",
            found=f"{count_of(len(data), 'byte')} without a graph",
            expected="ONNX",
        )
    if not external and any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise EdgeLstmError(
            f"{where} keeps its weights in another file",
            expected="weights inside the ONNX file",
            hint="Merge them: onnx.save(onnx.load(path), path, save_as_external_data=False)",
        )
    return model


def make_step(
    nodes: Iterable[onnx.NodeProto],
    signature: Signature,
    weights: Iterable[onnx.TensorProto],
    functions: Iterable[onnx.FunctionProto] = (),
    *,
    opset: int = OPSET,
    name: str = "step",
    ir_version: int = IR_VERSION,
    extra_opsets: Iterable[onnx.OperatorSetIdProto] = (),
) -> StepModel:
    """Put nodes, weights and function bodies together with the graph inputs and outputs a Signature asks for."""
    from edgelstm.graph.gates import DOMAIN, DOMAIN_VERSION

    inputs = [_value(t.name, t.dtype, t.shape) for t in signature.inputs]
    inputs += [_value(s.input, s.dtype, s.shape) for s in signature.states]
    outputs = {t.name: _value(t.name, t.dtype, t.shape) for t in signature.outputs}
    for s in signature.states:
        outputs.setdefault(s.output, _value(s.output, s.dtype, s.shape))
    graph = helper.make_graph(list(nodes), name, inputs, list(outputs.values()), list(weights))
    bodies = {f.name: f for f in functions}
    opsets = [helper.make_opsetid("", opset), *extra_opsets]
    if any(f.domain == DOMAIN for f in bodies.values()) and all(o.domain != DOMAIN for o in opsets):
        opsets.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        functions=list(bodies.values()),
        producer_name="edgelstm",
        ir_version=ir_version,
    )
    return StepModel(model, signature)


def onnx_dtype(name: str) -> int:
    """ONNX element type of a Signature dtype."""
    return int(
        TensorProto.DataType.Value("FLOAT" if name == "float32" else _ONNX_NAMES.get(name, name.upper()))
    )


def dtype_name(elem_type: int) -> str:
    """Signature dtype of an ONNX element type; the ONNX name in lower case for those no Signature can hold."""
    text = str(TensorProto.DataType.Name(elem_type))
    return {v: k for k, v in _ONNX_NAMES.items()}.get(text, text.lower())


_ONNX_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}


def value_shape(value: onnx.ValueInfoProto) -> list[Any] | None:
    """Shape of a graph value: ints, names, None for unknown dimensions; None when there is no shape at all."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]


def _value(name: str, dtype: str, shape: tuple[Dim, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx_dtype(dtype), list(shape))


def _check_names(where: str, kind: str, graph: dict[str, Any], declared: list[str]) -> None:
    if set(graph) != set(declared):
        raise EdgeLstmError(
            f"{where}: the graph's {kind} and its Signature disagree",
            found=f"graph {_first(graph, declared)}",
            expected=f"{_first(declared, graph)} as the Signature says",
            hint="The file was edited after export: export it again",
        )


def _first(names: Iterable[str], others: Iterable[str]) -> str:
    """``names``, those that are not among ``others`` first."""
    known = set(others)
    return some(sorted(set(names), key=lambda name: (name in known, name)))


def _check_value(where: str, value: onnx.ValueInfoProto, dtype: str, shape: tuple[Dim, ...]) -> None:
    found = value_shape(value)
    found_dtype = dtype_name(value.type.tensor_type.elem_type)
    same = found is not None and len(found) == len(shape)
    if same and found is not None:
        same = all(
            have == want if isinstance(want, int) else not isinstance(have, int)
            for have, want in zip(found, shape, strict=True)
        )
    if found_dtype != dtype or not same:
        raise EdgeLstmError(
            f"{where}: tensor {value.name!r} of the graph and its Signature disagree",
            found=f"{found_dtype}{found}",
            expected=f"{dtype}{list(shape)} as the Signature says",
            hint="The file was edited after export: export it again",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
