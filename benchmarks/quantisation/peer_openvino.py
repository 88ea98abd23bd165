"""The peer OpenVINO: bfloat16 by its precision hint, or INT8 by its reading of a Q/DQ graph; state in and out, or inside.

Our Runner can't stream it, so it brings a loop of its own: the one a competent user of OpenVINO would write.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.graph.signature import Signature
from edgelstm.graph.step import StepModel
from edgelstm.runtime.protocol import Array, Frame


class OpenVinoLoop:
    """One stream through a step graph of standard operators, from the initial state.

    ``precision``: INFERENCE_PRECISION_HINT, "f32" or "bf16". ``stateful``: the states become OpenVINO's variables;
    otherwise they are inputs and outputs, and two requests share two sets of state tensors, so that none is copied.
    """

    def __init__(self, model: Path, *, precision: str, stateful: bool, threads: int) -> None:
        import openvino as ov

        self.signature = StepModel.load(model).signature
        graph = ov.Core().read_model(str(model))
        graph.reshape(
            {t.name: [1, *t.frame_shape] for t in self.signature.inputs}
            | {s.input: [1, *s.frame_shape] for s in self.signature.states}
        )
        if stateful:
            _make_stateful(graph, self.signature)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        self._compiled = ov.Core().compile_model(graph, "CPU", config)
        self._tensor = ov.Tensor
        self._requests: list[Any] = []
        self._sides: list[dict[str, Any]] = []
        self._turn = 0
        if stateful:
            self._requests = [self._compiled.create_infer_request()]
        else:
            self._bind()

    def prepare(self, frame: Frame) -> Any:
        """Tensors of one frame, without a copy; ahead of time."""
        return {
            name: self._tensor(np.ascontiguousarray(x[None]), shared_memory=True) for name, x in frame.items()
        }

    def step(self, frame: Any) -> None:
        """Advance by one prepared frame."""
        request = self._requests[self._turn]
        for name, x in frame.items():
            request.set_tensor(name, x)
        request.infer()
        self._turn = (self._turn + 1) % len(self._requests)

    def outputs(self) -> dict[str, Array]:
        """The last step's outputs."""
        request = self._requests[self._turn - 1]
        return {t.name: request.get_tensor(t.name).data[0] for t in self.signature.outputs}

    def states(self) -> dict[str, Array]:
        """The current states."""
        if self._sides:
            return {name: tensor.data[0] for name, tensor in self._sides[self._turn].items()}
        return {state.name: state.state.data[0] for state in self._requests[0].query_state()}

    def _bind(self) -> None:
        states = self.signature.states
        self._sides = [
            {s.name: self._tensor(np.ascontiguousarray(s.initial_value()[None])) for s in states}
            for _ in range(2)
        ]
        for before, after in ((0, 1), (1, 0)):
            request = self._compiled.create_infer_request()
            for s in states:
                request.set_tensor(s.input, self._sides[before][s.name])
                request.set_tensor(s.output, self._sides[after][s.name])
            self._requests.append(request)


def _make_stateful(graph: Any, signature: Signature) -> None:
    """Turn every state input and output into a variable called after the state.

    OpenVINO's own ``apply_make_stateful_transformation`` is not used: it gives variables no initial value, with which
    the INT8 passes of 2026.4 fail ("AssignAndReadValueTransformation ... index '0' out of range"), and takes away an
    output that is a state as well.
    """
    import openvino as ov
    from openvino import opset13 as operators

    outputs = {t.name for t in signature.outputs}
    find: Callable[[Any, str], Any] = lambda ports, name: next(p for p in ports if name in p[1].get_names())  # noqa: E731
    sinks = []
    for s in signature.states:
        parameter, entry = find([(p, p.output(0)) for p in graph.get_parameters()], s.input)
        result, source = find([(r, r.input_value(0)) for r in graph.get_results()], s.output)
        initial = operators.constant(s.initial_value()[None])
        read = operators.read_value(initial, s.name, ov.Type.f32, [1, *s.frame_shape])
        for target in entry.get_target_inputs():
            target.replace_source_output(read.output(0))
        sinks.append(operators.assign(source.get_node(), s.name))
        graph.remove_parameter(parameter)
        if s.output not in outputs:
            graph.remove_result(result)
    graph.add_sinks(sinks)
