"""TensorRT backend: plans of TensorRT 10.3 and later, and of TensorRT for RTX; which one, the sidecar says.

The sidecar is compared with what is here before TensorRT sees the plan: opening one made for another version or GPU fails in
ways that depend on both.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, read_bytes
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.buffers import buffer_bytes, check_memory
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.device import OutputPlace
from edgelstm.runtime.gpu import GpuProgram, check_outputs
from edgelstm.runtime.rows import CallSize, call_size, capacity
from edgelstm.runtime.sidecar import MAX_PLAN_BYTES, RuntimeName, Sidecar, load_sidecar

#: Compute capability from which on a GPU multiplies in a precision; the others run on all that TensorRT 10 takes.
SINCE = {"bf16": (8, 0), "fp8": (8, 9)}
_MODULES: dict[RuntimeName, tuple[str, str]] = {
    "tensorrt": (
        "tensorrt",
        "pip install 'edgelstm[tensorrt]' (on a Jetson it comes with JetPack: create the environment with "
        "--system-site-packages)",
    ),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'edgelstm[rtx]'"),
}
#: Names of TensorRT's DataType members; they have numbers that move between versions.
_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8e4m3fn",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}

log = logging.getLogger(__name__)


class TensorRtProgram(GpuProgram):
    """A plan with its sidecar, opened on GPU ``device``. See :class:`edgelstm.runtime.protocol.Program`.

    outputs: "host" gives NumPy arrays, "device" arrays on the GPU (:class:`~edgelstm.runtime.device_array.DeviceArray`).

    Raises EdgeLstmError when a file is missing or they do not belong together, TensorRT, the plugin's library, a driver or a
    GPU is missing, the plan was built for another version, GPU or number of streams, the GPU lacks a precision, or its
    memory is too small.
    """

    def __init__(
        self, plan: PathLike, *, streams: int = 1, device: int = 0, outputs: OutputPlace = "host"
    ) -> None:
        check_outputs(outputs)
        self.sidecar = sidecar = load_sidecar(plan)
        size = _call_size(sidecar, streams, str(plan))
        trt = load_module(sidecar.runtime)
        check_version(sidecar, str(trt.__version__), str(plan))
        cuda = Cuda(device)
        engine: _Engine | None = None
        try:
            check_gpu(sidecar, cuda, str(plan))
            with cuda:
                engine = _Engine(trt, cuda, Path(plan), sidecar, size, streams)
            super().__init__(sidecar.signature, streams, size, cuda, engine, outputs=outputs)
        except BaseException:
            if engine is not None:
                with cuda:
                    engine.close()
            cuda.close()
            raise


class _Engine:
    """A plan opened by TensorRT. See :class:`edgelstm.runtime.device_memory.Engine`."""

    def __init__(
        self, trt: Any, cuda: Cuda, plan: Path, sidecar: Sidecar, size: CallSize, streams: int
    ) -> None:
        self._trt = trt
        self._cuda = cuda
        self._rtx = sidecar.runtime == "tensorrt-rtx"
        self._signature = sidecar.signature
        self._dynamic = not isinstance(sidecar.signature.stream_axis, int)
        # TensorRT for RTX makes graphs of its own, since it also exchanges kernels while it runs.
        self.captures = not self._rtx
        buffers = buffer_bytes(sidecar.signature, capacity(streams, size), size.most == 1)
        check_memory(cuda, {"engine (its file's size)": sidecar.plan_bytes, "states and buffers": buffers})
        if sidecar.gates == "plugin":
            _load_plugin(trt, cuda, sidecar)
        self._log = _log_of(trt)
        self._runtime = trt.Runtime(self._log)
        if sidecar.options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(read_bytes(plan, MAX_PLAN_BYTES))
        if self._engine is None:
            raise EdgeLstmError(
                f"{_label(sidecar.runtime)} {trt.__version__} can't open {plan}",
                found=self._log.last or "no reason given",
                hint="Build it on this machine: edgelstm build-engine",
            )
        name = str(getattr(self._engine, "name", "") or "")
        if name and name != sidecar.engine_name:
            raise EdgeLstmError(
                f"{plan} is not the plan that its sidecar tells of",
                found=f"engine {name}",
                expected=f"engine {sidecar.engine_name}",
                hint="Copy both files again, or build the engine again",
            )
        _check_tensors(trt, self._engine, sidecar.signature, str(plan))
        self._profiles = _profiles(sidecar)
        # All contexts share one block: they run one after the other.
        scratch = int(self._engine.device_memory_size_v2)
        check_memory(cuda, {"activations": scratch, "states and buffers": buffers})
        self._scratch = (cuda.allocate(scratch), scratch)
        self._shared = self._context()
        self._bound: Any = None  # the addresses the shared context was last given
        self._own: weakref.WeakSet[_Dedicated] = weakref.WeakSet()

    def bind(self, rows: int, addresses: Mapping[str, int]) -> Callable[[int], None]:
        context = self._shared

        def enqueue(stream: int) -> None:
            if self._bound is not addresses:
                self._set(context, rows, addresses)
                self._bound = addresses
            self.enqueue(context, stream)

        return enqueue

    def dedicate(self, rows: int, addresses: Mapping[str, int]) -> Callable[[int], None]:
        # A graph is good for as long as the context it was captured from is not changed.
        context = self._context()
        self._set(context, rows, addresses)
        own = _Dedicated(self, context)
        self._own.add(own)
        return own

    def close(self) -> None:
        # In this order: what was made of something goes before it.
        for own in self._own:
            own.context = None
        self._shared = self._engine = self._runtime = None

    def _context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._failed("can't prepare the engine to run")
        # Engines keep the names of their layers for `inspect`; telling them to profilers costs time in every step.
        if hasattr(self._trt, "ProfilingVerbosity"):
            context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        context.set_device_memory(*self._scratch)
        return context

    def _set(self, context: Any, rows: int, addresses: Mapping[str, int]) -> None:
        signature = self._signature
        if len(self._profiles) > 1:
            # The first that takes so many rows: each was tuned for a number of its own.
            fitting = [k for k, (fewest, _, most) in enumerate(self._profiles) if fewest <= rows <= most]
            if not fitting:
                raise self._failed(f"has no profile for {count_of(rows, 'stream')}")
            index = fitting[0]
            if context.active_optimization_profile != index:
                if not context.set_optimization_profile_async(index, self._cuda.stream):
                    raise self._failed(f"refuses profile {index}")
                self._cuda.wait()
        if self._dynamic:
            specs: list[tuple[str, TensorSpec | StateSpec]] = [(t.name, t) for t in signature.inputs]
            specs += [(s.input, s) for s in signature.states]
            for name, spec in specs:
                if not context.set_input_shape(name, (rows, *spec.frame_shape)):
                    raise self._failed(f"refuses {count_of(rows, 'stream')}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failed(f"refuses the address of {name}")

    def enqueue(self, context: Any, stream: int) -> None:
        """Put a step on a stream."""
        if context is None or self._engine is None:
            raise EdgeLstmError("this program is closed", hint="Open it again")
        if not context.execute_async_v3(stream):
            raise self._failed("failed in a step")

    def _failed(self, what: str) -> EdgeLstmError:
        return EdgeLstmError(f"TensorRT {what}", found=self._log.last or "no reason given")


class _Dedicated:
    """The step with a context of its own, which goes when the engine is closed."""

    def __init__(self, engine: _Engine, context: Any) -> None:
        self._engine = engine
        self.context = context

    def __call__(self, stream: int) -> None:
        self._engine.enqueue(self.context, stream)


def load_module(runtime: RuntimeName) -> Any:
    """TensorRT's Python module. Raises EdgeLstmError where it is missing or does not load."""
    module, install = _MODULES[runtime]
    try:
        found = importlib.import_module(module)
        if hasattr(found, "Runtime"):  # a folder of that name can be imported too
            return found
    except ModuleNotFoundError as error:
        if error.name != module:
            raise _does_not_load(runtime, error) from error
    except Exception as error:  # a library that is missing or of another version raises whatever it likes
        raise _does_not_load(runtime, error) from error
    raise EdgeLstmError(f"{_label(runtime)} is not installed", hint=install)


def check_version(sidecar: Sidecar, version: str, where: str) -> None:
    """Raise EdgeLstmError unless TensorRT ``version`` opens what the sidecar's version built.

    Only the same version does, unless it was built to be opened by later ones too.
    """
    built, here = _numbers(sidecar.version), _numbers(version)
    # Some modules leave out the build number.
    both = min(len(built), len(here))
    if built[:both] == here[:both]:
        return
    label = _label(sidecar.runtime)
    if sidecar.options.get("version_compatible"):
        if here > built:
            return
        expected, hint = f"{label} {sidecar.version} or later", "Update it, or build the engine again"
    else:
        expected = f"{label} {sidecar.version}, which built it"
        hint = "Build the engine again here, or with --version-compatible"
    raise EdgeLstmError(
        f"{where} was built by another version of {label}", found=version, expected=expected, hint=hint
    )


def check_gpu(sidecar: Sidecar, cuda: Cuda, where: str) -> None:
    """Raise EdgeLstmError unless the plan was built for this GPU, and it has the plan's precisions."""
    targets = [_numbers(t) for t in sidecar.targets]
    fits = not targets or cuda.capability in targets
    if sidecar.options.get("hardware_compatible"):  # any GPU since Ampere
        fits = cuda.capability >= (8, 0)
    here = f"{cuda.name} (compute capability {cuda.capability_text})"
    if not fits:
        built_on = f" on {sidecar.gpu}" if sidecar.gpu else ""
        raise EdgeLstmError(
            f"{where} was built for another GPU",
            found=here,
            expected=f"compute capability {' or '.join(sidecar.targets)}{built_on}",
            hint="Build the engine again on this GPU",
        )
    for precision in sidecar.precision:
        if cuda.capability < SINCE.get(precision, (0, 0)):
            since = ".".join(map(str, SINCE[precision]))
            raise EdgeLstmError(
                f"{where} multiplies in {precision}, which this GPU does not have",
                found=here,
                expected=f"compute capability {since} or later",
                hint="Quantise the model for this GPU: edgelstm quantize --runtime tensorrt --gpu NAME",
            )
    if sidecar.gpu and sidecar.gpu != cuda.name:
        log.warning("%s was built on %s; on %s other kernels may be faster", where, sidecar.gpu, cuda.name)


def _call_size(sidecar: Sidecar, streams: int, where: str) -> CallSize:
    """Runs of rows the plan takes. Raises EdgeLstmError for more streams than it was built for."""
    size = call_size(sidecar.signature, streams, where)
    # With aliasing, c_out lies over c, and what TensorRT then does to an engine's input is its own affair. Engines that say
    # nothing of it are of a time before they did.
    overwrites = sidecar.gates == "plugin" and bool(sidecar.options.get("in_place", True))
    if size.most is not None:
        return CallSize(size.least, size.most, overwrites=overwrites)
    fewest, _, most = sidecar.streams
    if 1 < most < streams:
        raise EdgeLstmError(
            f"{where} was built for at most {count_of(most, 'stream')}",
            found=f"streams={streams}",
            expected=f"at most {most}",
            hint=f"Build it for more: edgelstm build-engine --streams {streams}",
        )
    return CallSize(fewest, most, overwrites=overwrites)


def _profiles(sidecar: Sidecar) -> list[tuple[int, int, int]]:
    """(fewest, usual, most) rows of each profile the plan was built with."""
    told = sidecar.options.get("profiles")
    return [(int(a), int(b), int(c)) for a, b, c in told] if told else [sidecar.streams]


def _check_tensors(trt: Any, engine: Any, signature: Signature, where: str) -> None:
    """Raise EdgeLstmError unless the engine has the tensors of the Signature, in its types and shapes."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for k in range(engine.num_io_tensors):
        name = engine.get_tensor_name(k)
        kind = getattr(engine.get_tensor_dtype(name), "name", "")
        found[name] = (_TYPES.get(kind, kind), tuple(engine.get_tensor_shape(name)))
    specs: list[tuple[str, TensorSpec | StateSpec]] = [(t.name, t) for t in signature.inputs]
    specs += [(t.name, t) for t in signature.outputs]
    specs += [(name, s) for s in signature.states for name in (s.input, s.output)]
    wanted = dict(specs)
    if set(found) != set(wanted):
        raise EdgeLstmError(
            f"{where}: the engine's tensors and its sidecar disagree",
            found=f"engine {sorted(found)}",
            expected=f"{sorted(wanted)} as the sidecar says",
            hint="Build the engine again",
        )
    for name, spec in wanted.items():
        dtype, shape = found[name]
        if dtype != spec.dtype or shape[1:] != spec.frame_shape:
            raise EdgeLstmError(
                f"{where}: tensor {name!r} of the engine and its sidecar disagree",
                found=f"{dtype}{list(shape)}",
                expected=f"{spec.dtype}{list(spec.shape)} as the sidecar says",
                hint="Build the engine again",
            )


def _load_plugin(trt: Any, cuda: Cuda, sidecar: Sidecar) -> None:
    """Load the library of the FusedGates plugin, so that TensorRT finds it when it opens the plan."""
    from edgelstm.runtime.plugin_library import find_plugin_library, read_plugin_library, register

    path = find_plugin_library(
        tensorrt=str(trt.__version__), capability=cuda.capability_text, driver=cuda.driver_version
    )
    library = read_plugin_library(path)
    if library.sha256 != sidecar.hashes.get("plugin"):
        log.warning("%s is not the plugin library the engine was built with", path)
    if not register(trt.get_plugin_registry(), path):
        raise EdgeLstmError(
            f"TensorRT can't load the plugin library {path}",
            found=library.summary(),
            hint="Build it on this machine: edgelstm build-plugin",
        )


def _log_of(trt: Any) -> Any:
    """TensorRT's log, passed on to Python's; ``last`` is its last error."""
    levels = {
        "INTERNAL_ERROR": logging.ERROR,
        "ERROR": logging.ERROR,
        "WARNING": logging.WARNING,
        "INFO": logging.DEBUG,
    }

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, text: str) -> None:
            level = levels.get(severity.name)
            if level == logging.ERROR:
                self.last = text.strip().splitlines()[0] if text.strip() else self.last
            if level is not None:
                # What went wrong is told once, by the error that follows.
                log.log(min(level, logging.WARNING), "TensorRT: %s", text)

    return Log()


def _does_not_load(runtime: RuntimeName, error: BaseException) -> EdgeLstmError:
    return EdgeLstmError(
        f"{_label(runtime)} is installed but does not load",
        found=(str(error).strip().splitlines() or [type(error).__name__])[0],
        hint=f"Reinstall it: {_MODULES[runtime][1]}",
    )


def _label(runtime: RuntimeName) -> str:
    return "TensorRT" if runtime == "tensorrt" else "TensorRT for RTX"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
