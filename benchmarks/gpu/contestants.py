"""Who races on a GPU: each opens a case in its own process and gives the loop a competent user would write.

Frames wait on the device and outputs stay there: what is timed is a step, from its call until the device is done. States
never leave the device. With ``--device cpu`` the same code runs on the processor, as far as it can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cases
import numpy as np

from edgelstm import machine
from edgelstm.bench.contestants import Contestant, Opened, bound
from edgelstm.bench.job import Job, Missing
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array, Frame

#: What a torch step gives: outputs in the order of the Signature.
Advance = Callable[..., Any]
WARM_UP = 3
#: Streams that the truth is computed for; the others are no different.
TRUE_STREAMS = 2


def case_of(job: Job) -> cases.Case:
    """The case a job names in ``module``: "cases:conv_lstm" or "quick:conv_lstm"."""
    table, _, name = (job.module or "").partition(":")
    return (cases.QUICK if table == "quick" else cases.CASES)[name]


def open_float64(job: Job) -> Opened:
    """The truth: the step module in float64 on the processor, for the first :data:`TRUE_STREAMS` streams."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    rows = min(job.streams, TRUE_STREAMS)
    opened = _loop(_module(job), replace(job, streams=rows), "cpu", torch.float64)
    return replace(
        opened, prepare=lambda frame: opened.prepare({name: x[:rows] for name, x in frame.items()})
    )


def open_torch(job: Job) -> Opened:
    """PyTorch as it is, operator by operator."""
    return _loop(_module(job), job, *_place(job))


def open_torch_graph(job: Job) -> Opened:
    """The same, captured in CUDA graphs."""
    return _captured(_module(job), job)


def open_torch_compile(job: Job) -> Opened:
    """``torch.compile(mode="max-autotune")``, its CUDA graphs captured by hand: the state is written straight to where the
    next step reads it, which the mode's own graphs would copy."""
    return _captured(_module(job), job, compiled=True)


def open_cudnn(job: Job) -> Opened:
    """torch.nn.LSTM on sequences of one frame."""
    return _loop(_CuDnn(job), job, *_place(job))


def open_cudnn_graph(job: Job) -> Opened:
    """The same, captured in CUDA graphs."""
    return _captured(_CuDnn(job), job)


def open_onnxruntime(job: Job) -> Opened:
    """ONNX Runtime by hand: the plain graph, everything bound to memory of the device, states in buffers that swap."""
    import onnxruntime as ort

    provider: Any = "CPUExecutionProvider"
    if job.device != "cpu":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise Missing(f"onnxruntime {ort.__version__} without CUDA: pip install onnxruntime-gpu")
        provider = ("CUDAExecutionProvider", {"use_tf32": 0})
        if hasattr(ort, "preload_dlls"):  # finds CUDA's libraries where pip put them
            ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    session = ort.InferenceSession(job.plain, options, providers=[provider])
    if job.device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise Missing(f"onnxruntime {ort.__version__}: its CUDA provider does not load")

    def place(array: Array) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), job.device, 0)

    return bound(session, job, place)


def open_edgelstm_onnxruntime(job: Job) -> Opened:
    """Our runner over ONNX Runtime."""
    return _runner(job, job.model)


def open_tensorrt_native(job: Job) -> Opened:
    """An engine in which TensorRT fuses the gates, in our runner."""
    return _runner(job, _engine(job, "native"))


def open_tensorrt_plugin(job: Job) -> Opened:
    """An engine whose gates are our kernel, in our runner."""
    return _runner(job, _engine(job, "plugin"))


def _engine(job: Job, gates: Any) -> Path:
    """Build one. Raises Missing for want of a GPU, TensorRT or the plugin's library."""
    if job.device == "cpu":
        raise Missing("TensorRT runs on GPUs only")
    from edgelstm.engine import versions
    from edgelstm.engine.build import BuildOptions, build_engine
    from edgelstm.engine.capability import check, library
    from edgelstm.runtime.plugin_library import find_plugin_library

    there = versions.installed()
    runtime: Any = "tensorrt" if gates == "plugin" or "tensorrt" in there or not there else there[0]
    cuda = machine.cuda()
    targets = (cuda.gpus[0].capability,) if runtime == "tensorrt-rtx" and cuda and cuda.gpus else ()
    try:
        module = versions.load(runtime)
        check(library(runtime, module.__version__), targets, precisions=())
        if gates == "plugin":
            find_plugin_library()
    except EdgeLstmError as error:
        raise Missing(str(error)) from error
    streams = job.streams
    options = BuildOptions(streams=(streams, streams, streams), targets=targets)
    plan = Path(job.folder) / f"{gates}-{streams}.plan"
    return build_engine(job.model, plan, options, runtime=runtime, gates=gates).plan


def _runner(job: Job, model: str | Path) -> Opened:
    """The Runner as its documentation says to use it: on a GPU its frames lie there, and its outputs stay there."""
    from edgelstm.runtime import Runner

    is_engine, on_gpu = str(model).endswith(".plan"), job.device != "cpu"
    try:
        runner = Runner.open(
            model,
            job.device,
            job.streams,
            threads=None if is_engine else job.threads,
            outputs="device" if on_gpu else "host",
            # Frames on a GPU are not looked at for NaN, and the runner wants to hear that this is meant.
            on_bad_frame="pass" if on_gpu else "error",
        )
    except EdgeLstmError as error:
        raise Missing(str(error)) from error
    names = [runner.stream(str(i)).name for i in range(job.streams)]

    def place(x: Array) -> Any:
        if job.device == "cpu":
            return x
        import torch

        return torch.from_numpy(np.ascontiguousarray(x)).to(job.device)

    one = runner.stream(names[0])
    inputs = [t.name for t in runner.signature.inputs]

    def prepare(frame: Frame) -> Any:
        if job.streams == 1:
            return {name: place(x[0]) for name, x in frame.items()}
        return tuple(place(frame[name]) for name in inputs)

    def outputs(result: Mapping[str, Any]) -> dict[str, Array]:
        arrays = {name: np.array(value.copy()) for name, value in result.items()}
        return {name: a[None] for name, a in arrays.items()} if job.streams == 1 else arrays

    return Opened(prepare, partial(one.step if job.streams == 1 else runner.step_all, copy=False), outputs)


def _place(job: Job) -> tuple[str, Any]:
    """Device and dtype for torch; float32 means float32, as it does in our engines."""
    import torch

    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return job.device, {"fp32": torch.float32, "fp16": torch.float16}[job.precision]


def _module(job: Job) -> Any:
    return cases.torch_module(case_of(job).architecture, cases.load_weights(job.weights or ""))


class _CuDnn:
    """torch.nn.LSTM with the call of a step module: states h0, c0, h1, c1, ..."""

    def __init__(self, job: Job) -> None:
        architecture = case_of(job).architecture
        assert isinstance(architecture, cases.Lstm)
        self.architecture = architecture
        self._module = cases.torch_lstm(architecture, cases.load_weights(job.weights or ""))

    def to(self, *place: Any) -> _CuDnn:
        self._module.to(*place)
        self._module.flatten_parameters()
        return self

    def initial_states(self, streams: int) -> tuple[Any, ...]:
        """Both states of all layers, [layers, streams, hidden] each: as torch.nn.LSTM keeps them."""
        import torch

        shape = (len(self.architecture.hidden), streams, self.architecture.hidden[0])
        return torch.zeros(shape), torch.zeros(shape)

    def __call__(self, x: Any, h: Any, c: Any) -> tuple[Any, tuple[Any, Any]]:
        y, states = self._module(x[None], (h, c))
        return y[0], states


def _loop(module: Any, job: Job, device: str, dtype: Any) -> Opened:
    """Call ``module`` frame by frame, its states as it gives them back."""
    import torch

    module = module.to(device, dtype)
    states = tuple(s.to(device, dtype) for s in module.initial_states(job.streams))
    wait = _waiting(device)

    @torch.inference_mode()
    def step(frame: Any) -> Any:
        nonlocal states
        y, states = module(frame, *states)
        wait()
        return y

    return Opened(_prepare(device, dtype), step, _outputs(job))


def _captured(module: Any, job: Job, *, compiled: bool = False) -> Opened:
    """Two CUDA graphs, one for each role of the two sides of the state; on the processor the same without graphs."""
    import torch

    device, dtype = _place(job)
    on_gpu = device != "cpu"
    if not on_gpu and not compiled:
        raise Missing("CUDA graphs need a GPU")
    module = module.to(device, dtype)

    def advance(x: Any, before: tuple[Any, ...], after: tuple[Any, ...]) -> Any:
        y, new = module(x, *before)
        for target, value in zip(after, new, strict=True):
            target.copy_(value)
        return y

    call: Advance = advance
    if compiled:
        # The search needs many SMs and is pointless on a processor.
        mode = "max-autotune-no-cudagraphs" if on_gpu else None
        call = torch.compile(advance, mode=mode, dynamic=False)
    zeros = module.initial_states(job.streams)
    sides = [tuple(z.to(device, dtype, copy=True) for z in zeros) for _ in range(2)]
    orders = ((0, 1), (1, 0))
    turn = 0
    with torch.no_grad():
        x = _first_frame(job).to(device, dtype)
        if on_gpu:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    for before, after in orders:
                        call(x, sides[before], sides[after])
            torch.cuda.current_stream().wait_stream(stream)
            graphs = []
            for before, after in orders:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    y = call(x, sides[before], sides[after])
                graphs.append((graph, y))
        # The runs above advanced the state.
        for side in sides:
            for state in side:
                state.zero_()
    wait = _waiting(device)

    @torch.no_grad()
    def replay(frame: Any) -> Any:
        nonlocal turn
        graph, y = graphs[turn]
        x.copy_(frame)
        graph.replay()
        turn ^= 1
        wait()
        return y

    @torch.no_grad()
    def run(frame: Any) -> Any:
        nonlocal turn
        y = call(frame, sides[turn], sides[1 - turn])
        turn ^= 1
        return y

    return Opened(_prepare(device, dtype), replay if on_gpu else run, _outputs(job))


def _first_frame(job: Job) -> Any:
    import torch

    (x,) = job.frames()[0].values()
    return torch.from_numpy(x)


def _prepare(device: str, dtype: Any) -> Callable[[Frame], Any]:
    import torch

    def prepare(frame: Frame) -> Any:
        (x,) = frame.values()
        return torch.from_numpy(x).to(device, dtype)

    return prepare


def _outputs(job: Job) -> Callable[[Any], Mapping[str, Array]]:
    (name,) = (t.name for t in Signature.loads(job.signature).outputs)
    return lambda y: {name: y.double().cpu().numpy()}


def _waiting(device: str) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device != "cpu" else lambda: None


CONTESTANTS = {
    "float64": Contestant(open_float64, "torch", "torch"),
    "torch": Contestant(open_torch, "torch", "torch"),
    "torch, graphs": Contestant(open_torch_graph, "torch", "torch"),
    "torch.compile, graphs": Contestant(open_torch_compile, "torch", "torch"),
    "cuDNN LSTM": Contestant(open_cudnn, "torch", "torch"),
    "cuDNN LSTM, graphs": Contestant(open_cudnn_graph, "torch", "torch"),
    "ONNX Runtime": Contestant(open_onnxruntime, "onnxruntime", "gpu"),
    "edgelstm, ONNX Runtime": Contestant(open_edgelstm_onnxruntime, "onnxruntime", "gpu"),
    "edgelstm, TensorRT native": Contestant(open_tensorrt_native, "numpy", "tensorrt"),
    "edgelstm, TensorRT plugin": Contestant(open_tensorrt_plugin, "numpy", "tensorrt"),
}
TRUTH = "float64"
BASELINE = "torch"
COMPILED = "torch.compile, graphs"
OURS = ("edgelstm, TensorRT native", "edgelstm, TensorRT plugin")
#: Those that need torch.nn.LSTM's equations.
LSTM_ONLY = ("cuDNN LSTM", "cuDNN LSTM, graphs")
