"""The contestants: each opens a model and gives the loop a competent user of that runtime would write.

They are opened in worker processes; the coordinator reads only the table at the end.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgelstm.bench.job import Job
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array, Frame


@dataclass(frozen=True)
class Opened:
    """A model ready to be stepped; its state lives inside and starts at the initial value.

    ``prepare`` turns a frame of all streams, input name -> [streams, ...], into the form the runtime likes best, ahead
    of time. ``step`` advances all streams by one prepared frame; that alone is timed. ``outputs`` gives the step's
    outputs by name, [streams, ...], from what it returned; good until the next step.
    """

    prepare: Callable[[Frame], Any]
    step: Callable[[Any], Any]
    outputs: Callable[[Any], Mapping[str, Array]]


def open_edgelstm(job: Job, native: bool | None = None) -> Opened:
    """Our Runner, the way its documentation says to use it."""
    from edgelstm.runtime import Runner

    runner = Runner.open(job.model, streams=job.streams, threads=job.threads, native=native)
    if job.streams == 1:
        return Opened(
            lambda frame: frame_of(frame, 0) if len(frame) > 1 else next(iter(frame.values()))[0],
            partial(runner.stream("0").step, copy=False),
            lambda outputs: {name: y[None] for name, y in outputs.items()},
        )
    for i in range(job.streams):
        runner.stream(str(i))
    return Opened(
        lambda frame: tuple(frame.values()) if len(frame) > 1 else next(iter(frame.values())),
        partial(runner.step_all, copy=False),
        lambda outputs: outputs,
    )


def open_plain(job: Job) -> Opened:
    """Our Runner without our own operators, which it takes where their library is built."""
    return open_edgelstm(job, native=False)


def open_bare(job: Job) -> Opened:
    """The session under our Runner and nothing else: two bindings for every frame, made ahead of time."""
    import onnxruntime as ort

    from edgelstm.runtime.session import open_session

    return bound(open_session(job.model, job.threads), job, ort.OrtValue.ortvalue_from_numpy)


def bound(session: Any, job: Job, place: Callable[[Array], Any]) -> Opened:
    """A session of ONNX Runtime with two bindings for every frame, made ahead of time; states lie in buffers that swap.

    place: an OrtValue of an array, on the device where it is wanted.
    """
    signature = Signature.loads(job.signature)
    sides = [{s.name: place(state) for s, state in initial_states(job)} for _ in range(2)]
    shared = {s.output for s in signature.states}
    results = {
        t.name: place(np.zeros((job.streams, *t.frame_shape), t.dtype))
        for t in signature.outputs
        if t.name not in shared
    }
    turn = 0

    def prepare(frame: Frame) -> list[Any]:
        bindings = []
        for before, after in ((0, 1), (1, 0)):
            binding = session.io_binding()
            for name, x in frame.items():
                binding.bind_ortvalue_input(name, place(x))
            for s in signature.states:
                binding.bind_ortvalue_input(s.input, sides[before][s.name])
                binding.bind_ortvalue_output(s.output, sides[after][s.name])
            for name, value in results.items():
                binding.bind_ortvalue_output(name, value)
            bindings.append(binding)
        return bindings

    def step(bindings: list[Any]) -> None:
        nonlocal turn
        session.run_with_iobinding(bindings[turn])
        turn ^= 1

    def outputs(_: None) -> dict[str, Array]:
        current = results | {s.output: sides[turn][s.name] for s in signature.states}
        return {t.name: current[t.name].numpy() for t in signature.outputs}

    return Opened(prepare, step, outputs)


def open_onnxruntime(job: Job) -> Opened:
    """ONNX Runtime by hand: the plain graph, ``session.run``, a dictionary of states fed back by name."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    # As docs/quantisation.md tells whoever opens one by hand: without it int8 products saturate on x86 without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(job.plain, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    pairs = [(s.input, s.output) for s in Signature.loads(job.signature).states]
    states = {s.input: state for s, state in initial_states(job)}

    def step(frame: Frame) -> dict[str, Array]:
        nonlocal states
        outputs = dict(zip(names, session.run(None, {**frame, **states}), strict=True))
        states = {before: outputs[after] for before, after in pairs}
        return outputs

    return Opened(lambda frame: frame, step, lambda outputs: outputs)


def open_openvino(job: Job) -> Opened:
    """OpenVINO by hand: the plain graph at fixed shapes and in float32, two requests that share state tensors."""
    import openvino as ov

    signature = Signature.loads(job.signature)
    core = ov.Core()
    model = core.read_model(job.plain)
    model.reshape(
        {t.name: [job.streams, *t.frame_shape] for t in signature.inputs}
        | {s.input: [job.streams, *s.frame_shape] for s in signature.states}
    )
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(model, "CPU", config)
    sides = [{s.name: ov.Tensor(state) for s, state in initial_states(job)} for _ in range(2)]
    requests = []
    for before, after in ((0, 1), (1, 0)):
        request = compiled.create_infer_request()
        for s in signature.states:
            request.set_tensor(s.input, sides[before][s.name])
            request.set_tensor(s.output, sides[after][s.name])
        requests.append(request)
    turn = 0

    def step(frame: dict[str, Any]) -> Any:
        nonlocal turn
        request = requests[turn]
        for name, x in frame.items():
            request.set_tensor(name, x)
        request.infer()
        turn ^= 1
        return request

    return Opened(
        lambda frame: {name: ov.Tensor(x, shared_memory=True) for name, x in frame.items()},
        step,
        lambda request: {t.name: request.get_tensor(t.name).data for t in signature.outputs},
    )


def open_torch(job: Job) -> Opened:
    """The model's torch module, called frame by frame in inference mode."""
    return _open_torch(job, compiled=False)


def open_torch_compile(job: Job) -> Opened:
    """The same after ``torch.compile``."""
    return _open_torch(job, compiled=True)


def _open_torch(job: Job, *, compiled: bool) -> Opened:
    from edgelstm.frontends.torch.eager_loop import load_module, torch_loop

    module = load_module(job.module, job.weights) if job.module else load_module(job.source or "")
    signature = Signature.loads(job.signature)
    loop = torch_loop(module, signature, streams=job.streams, threads=job.threads, compiled=compiled)
    return Opened(*loop)


def initial_states(job: Job) -> list[tuple[Any, Array]]:
    """Every StateSpec with a fresh array [streams, ...] of its initial value."""
    return [
        (s, np.repeat(s.initial_value()[None], job.streams, axis=0))
        for s in Signature.loads(job.signature).states
    ]


def frame_of(frame: Frame, stream: int) -> Frame:
    """One stream's part of a frame of all streams."""
    return {name: x[stream] for name, x in frame.items()}


@dataclass(frozen=True)
class Contestant:
    """How a contestant is opened, and the package it stands on."""

    open: Callable[[Job], Opened]
    package: str
    extra: str
    #: Whether it runs the torch module behind the model, not a graph.
    needs_module: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None


OURS = "edgelstm"
PLAIN = "edgelstm-plain"
CONTESTANTS = {
    OURS: Contestant(open_edgelstm, "onnxruntime", "cpu"),
    PLAIN: Contestant(open_plain, "onnxruntime", "cpu"),
    "edgelstm-bare": Contestant(open_bare, "onnxruntime", "cpu"),
    "onnxruntime": Contestant(open_onnxruntime, "onnxruntime", "cpu"),
    "openvino": Contestant(open_openvino, "openvino", "bench"),
    "torch": Contestant(open_torch, "torch", "torch", needs_module=True),
    "torch-compile": Contestant(open_torch_compile, "torch", "torch", needs_module=True),
}
