"""The step graph of a Keras model under construction: its nodes, weights and states, and what is known of each value.

A value is either a *frame* of a sequence that the stream brings bit by bit (``time`` is set: the tensor is [N, ...] and
the time axis is the stream itself), or a whole tensor [N, ...] with all its axes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import OPSET, StepModel, make_step
from edgelstm.passes.graph import fresh, renamed

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
STREAM_AXIS = "N"
#: Elements of one value of one stream (1 GiB of float32); a configuration that asks for more is a mistake or an attack.
MAX_ELEMENTS = 2**28
MAX_NODES = 20_000
CLOCK = "clock"


class NeedsWindow(Exception):
    """The model can't be streamed frame by frame: ``str`` says which layer needs the whole sequence, and why."""


@dataclass(frozen=True)
class Time:
    """When the elements of a sequence are there: element j comes with frame ``delay + j * every`` of the stream.

    length: how many elements Keras's sequence has, None where any number. open_end: Keras pads behind the last element,
    which a stream does not have.
    """

    delay: int = 0
    every: int = 1
    length: int | None = None
    open_end: bool = False


@dataclass(frozen=True)
class Value:
    """A value in the graph.

    shape: without the stream axis (and without time, for a frame), the axes in Keras's order.
    perm: physical axis k of the tensor holds axis perm[k] of Keras's order, axis 0 being the streams.
    mask: name of a bool tensor, [N, 1] for a frame, [N, T] otherwise: False where a step is to be passed over.
    sequence: a whole tensor's axis 1 is the time of the window.
    ready: frames that must have come before the value means anything.
    dtype: float32, int32, int64, uint8 or bool.
    """

    name: str
    shape: Shape
    time: Time | None = None
    perm: tuple[int, ...] = ()
    mask: str | None = None
    sequence: bool = False
    ready: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if math.prod(self.shape) > MAX_ELEMENTS:
            raise EdgeLstmError(
                f"a value of the model, {self.name!r}, is too large",
                found=f"shape {list(self.shape)}",
                expected=f"at most {MAX_ELEMENTS} numbers a stream",
            )
        if not self.perm:
            object.__setattr__(self, "perm", tuple(range(len(self.shape) + 1)))

    @property
    def rank(self) -> int:
        """Axes of Keras's tensor: streams and time included."""
        return len(self.shape) + (2 if self.time else 1)

    def axis(self, axis: int, what: str) -> int:
        """Axis ``axis`` of Keras's tensor as an axis of Keras's order here; NeedsWindow for the time of a stream."""
        found = axis + self.rank if axis < 0 else axis
        if found == 0:
            raise mixes_rows(what, f"axis {axis}: the batch")
        if not 0 < found < self.rank:
            raise EdgeLstmError(f"{what}: axis", found=axis, expected=f"an axis of a tensor of {self.rank}")
        if self.time is None:
            return found
        if found == 1:
            raise NeedsWindow(f"{what} works along time")
        return found - 1

    def physical(self, axis: int) -> int:
        """Where the tensor holds axis ``axis`` of Keras's order."""
        return self.perm.index(axis)


def mixes_rows(what: str, found: object) -> EdgeLstmError:
    """The refusal of a layer whose result for one row of the batch depends on the others: rows are streams here."""
    return EdgeLstmError(
        f"{what} works along the batch, whose rows are streams: each would see the others",
        found=found,
        expected="layers that compute every row alone",
        hint="Do it to the model's outputs, outside the model",
    )


def channels_first(shape: Sequence[int], lead: int = 0) -> tuple[int, ...]:
    """The permutation that brings the last of ``shape``'s axes before the others, behind ``lead`` axes and the streams."""
    axes = list(range(len(shape) + 1))
    return (*axes[: lead + 1], axes[-1], *axes[lead + 1 : -1])


@dataclass
class _State:
    spec: StateSpec
    next: str | None = None


@dataclass
class Builder:
    """Nodes, weights and states. Values are named after the layer that makes them."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._states: dict[str, _State] = {}
        self._taken: set[str] = set()
        self._shared: dict[tuple[str, Shape, bytes], str] = {}
        self._laid: dict[tuple[str, tuple[int, ...]], str] = {}
        self._gates: dict[tuple[Any, ...], str] = {}
        self._longest, self._period = 0, 1
        #: Whether axis 0 is the streams just now; inside TimeDistributed it may be streams and time.
        self.rows_are_streams = True
        self._shapes: dict[str, Shape] = {}

    # -- nodes ----------------------------------------------------------------------------------------------------

    def reserve(self, names: Iterable[str]) -> None:
        """Keep ``names`` for the graph's inputs and outputs."""
        self._taken.update(names)

    def name(self, base: str) -> str:
        """A name nothing has yet."""
        return fresh(base, self._taken)

    def op(self, op_type: str, inputs: Iterable[str], base: str, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        return self.ops(op_type, inputs, [base], **attributes)[0]

    def ops(
        self, op_type: str, inputs: Iterable[str], bases: Sequence[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node; returns the names of its outputs."""
        if len(self.nodes) >= MAX_NODES:
            raise EdgeLstmError(
                "the model's graph is too large",
                found=f"more than {MAX_NODES} nodes",
                expected="a shorter window or fewer layers",
            )
        outputs = [self.name(base) for base in bases]
        self.nodes.append(
            helper.make_node(op_type, list(inputs), outputs, outputs[0], domain=domain, **attributes)
        )
        return outputs

    def gates(self, variant: GateVariant, z: str, c: str, base: str) -> tuple[str, str]:
        """FusedGates: h and c."""
        self.functions.setdefault(variant.op_type, variant.function(OPSET))
        h, c_next = self.ops(variant.op_type, [z, c], [f"{base}/h", f"{base}/c"], domain=DOMAIN)
        return h, c_next

    def constant(self, value: Array, base: str) -> str:
        """A weight; equal ones are stored once."""
        array = np.ascontiguousarray(value).reshape(value.shape)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.data).digest())
        if key not in self._shared:
            name = self.name(base)
            self.weights[name] = numpy_helper.from_array(array, name)
            self._shared[key] = name
        return self._shared[key]

    def integers(self, values: Sequence[int], base: str = "ints") -> str:
        """A constant of int64: shapes, axes, bounds."""
        return self.constant(np.array(values, np.int64), f"{base}_{'_'.join(map(str, values))}"[:60])

    def number(self, value: float) -> str:
        """A float32 constant without axes."""
        return self.constant(np.array(value, np.float32), f"value_{value:g}")

    def reshape(self, name: str, shape: Sequence[int], base: str) -> str:
        """[N, ...] in another shape; ``shape`` without the streams."""
        return self.op("Reshape", [name, self.integers([-1, *shape], "shape")], base)

    def cast(self, value: Value, dtype: str) -> Value:
        """The value as another type; numbers that lose their fraction are cut, as Keras cuts them."""
        if value.dtype == dtype:
            return value
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return replace(
            value, name=self.op("Cast", [value.name], f"{value.name}/{dtype}", to=kind), dtype=dtype
        )

    def noted(self, name: str, shape: Shape) -> str:
        """Say that ``name`` is float32 [N, *shape], where ONNX's rules don't tell.

        ONNX Runtime looks among all tensors of sizes it does not know for one to reuse: a window of 512 steps took
        26 s to open, and takes 1 s with their sizes.
        """
        if self.rows_are_streams:
            self._shapes[name] = shape
        return name

    def layout(self, value: Value, perm: Sequence[int]) -> str:
        """The value's tensor with its axes as ``perm`` says; a Transpose where it is not so already."""
        wanted = tuple(perm)
        if wanted == value.perm:
            return value.name
        key = (value.name, wanted)
        if key not in self._laid:
            order = [value.perm.index(axis) for axis in wanted]
            self._laid[key] = self.op("Transpose", [value.name], f"{value.name}/turned", perm=order)
        return self._laid[key]

    def plain(self, value: Value) -> str:
        """The tensor with Keras's order of axes."""
        return self.layout(value, range(len(value.shape) + 1))

    # -- states ---------------------------------------------------------------------------------------------------

    def state(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        """A new state, zero at first; returns the name under which it comes in."""
        if name in self._states:
            raise EdgeLstmError(
                f"two layers have a state {name!r}", expected="layers with names of their own"
            )
        output = self.name(f"{name}_next")
        self._taken.add(name)
        self._states[name] = _State(StateSpec(name, name, output, dtype, (STREAM_AXIS, *shape)))
        return name

    def carry(self, name: str, value: str, gate: str | None = None) -> str:
        """What state ``name`` becomes; where ``gate`` is False it stays. Returns the value that is carried."""
        if gate is not None:
            value = self.op("Where", [gate, value, name], f"{name}/kept")
        self._states[name].next = value
        return value

    def gate(self, time: Time | None, mask: str | None, rank: int) -> str | None:
        """Bool [N, 1, ...] of ``rank`` axes: whether an element came with this frame; None where one always does."""
        delay, every = (time.delay, time.every) if time else (0, 1)
        key = (delay, every, mask, rank)
        if key in self._gates:
            return self._gates[key]
        found = [name for name in (self._due(delay, every), mask) if name]
        if not found:
            return None
        gate = found[0] if len(found) == 1 else self.op("And", found, "due_and_unmasked")
        if rank != 2:
            gate = self.reshape(gate, [1] * (rank - 1), f"{gate}_r{rank}")
        self._gates[key] = gate
        return gate

    def due(self, delay: int, every: int = 1) -> str | None:
        """Bool [N, 1]: whether an element with this delay and period came with this frame."""
        return self._due(delay, every)

    def _due(self, delay: int, every: int) -> str | None:
        if not delay and every == 1:
            return None
        key = ("due", delay, every)
        if key not in self._gates:
            if CLOCK not in self._states:
                self.state(CLOCK, (1,), "int32")
            self._longest = max(self._longest, delay)
            self._period = math.lcm(self._period, every)
            start = self.constant(np.array(delay, np.int32), f"frame_{delay}")
            name = self.op("GreaterOrEqual", [CLOCK, start], f"since_{delay}")
            if every > 1:
                since = self.op("Sub", [CLOCK, start], f"frames_since_{delay}")
                period = self.constant(np.array(every, np.int32), f"period_{every}")
                zero = self.constant(np.array(0, np.int32), "frame_0")
                phase = self.op("Mod", [since, period], f"phase_{delay}_{every}")
                name = self.op(
                    "And", [name, self.op("Equal", [phase, zero], f"in_phase_{delay}_{every}")], "due"
                )
            self._gates[key] = name
        return self._gates[key]

    def _tick(self) -> None:
        """The clock counts frames, and turns back by whole periods once every sequence has begun: it never overflows."""
        if CLOCK not in self._states:
            return
        one = self.constant(np.array(1, np.int32), "one_frame")
        period = self.constant(np.array(self._period, np.int32), f"period_{self._period}")
        last = self.constant(np.array(self._longest + self._period, np.int32), "turn")
        after = self.op("Add", [CLOCK, one], "clock/after")
        back = self.op("Sub", [after, period], "clock/back")
        turn = self.op("GreaterOrEqual", [after, last], "clock/turns")
        self.carry(CLOCK, self.op("Where", [turn, back, after], "clock/next"))

    # -- finishing ------------------------------------------------------------------------------------------------

    def finish(
        self, inputs: Sequence[TensorSpec], outputs: Mapping[str, Value], window: int | None, name: str
    ) -> StepModel:
        """The model: every output in Keras's order of axes, those that are not there from the start zero until they are.

        Such an output has another beside it, ``<name>_ready``, bool [N]: whether this frame brought it.
        """
        specs: list[TensorSpec] = []
        names: dict[str, str] = {}
        for output, value in outputs.items():
            made = self.plain(value)
            delay, every = (value.time.delay, value.time.every) if value.time else (value.ready, 1)
            if due := self.due(delay, every):
                zero = self.constant(np.array(0, value.dtype), f"zero_{value.dtype}")
                gate = self.gate(Time(delay, every), None, len(value.shape) + 1) or due
                made = self.op("Where", [gate, made, zero], f"{output}/shown")
                ready = f"{output}_ready"
                specs.append(TensorSpec(ready, "bool", (STREAM_AXIS,)))
                names[ready] = self.op("Reshape", [due, self.integers([-1], "shape")], f"{output}/ready")
            specs.append(TensorSpec(output, value.dtype, (STREAM_AXIS, *value.shape)))
            names[output] = made
        self._tick()
        return self._assemble(inputs, specs, names, window, name)

    def _assemble(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        names: Mapping[str, str],
        window: int | None,
        name: str,
    ) -> StepModel:
        self._prune([*names.values(), *(state.next or "" for state in self._states.values())])
        made = {o for node in self.nodes for o in node.output}
        final: dict[str, str] = {}
        extra: list[onnx.NodeProto] = []
        for target, value in names.items():
            self._name(final, extra, made, value, target)
        states: list[StateSpec] = []
        for state in self._states.values():
            value = state.next or state.spec.input
            # An output that is the state itself is not copied: the two share a name.
            if value in final and all(s.output != final[value] for s in states):
                states.append(replace(state.spec, output=final[value]))
                continue
            self._name(final, extra, made, value, state.spec.output)
            states.append(state.spec)
        signature = Signature(tuple(inputs), tuple(outputs), tuple(states), window)
        nodes = [
            renamed(n, lambda x: final.get(x, x), [final.get(o, o) for o in n.output]) for n in self.nodes
        ]
        nodes += extra
        used = {i for node in nodes for i in node.input}
        weights = [t for key, t in self.weights.items() if key in used]
        bodies = [f for f in self.functions.values() if any(n.op_type == f.name for n in nodes)]
        step = make_step(nodes, signature, weights, bodies, name=name)
        step.model.graph.value_info.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [STREAM_AXIS, *shape])
            for name, shape in self._shapes.items()
            if name in made and name not in final
        )
        return step

    def _prune(self, wanted: Iterable[str]) -> None:
        """Drop nodes whose results nobody takes."""
        needed = set(wanted)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]

    def _name(
        self, final: dict[str, str], extra: list[onnx.NodeProto], made: set[str], value: str, target: str
    ) -> None:
        if value in made and value not in final:
            final[value] = target
        else:
            extra.append(helper.make_node("Identity", [final.get(value, value)], [target], target))
