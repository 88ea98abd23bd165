"""One GPU through the CUDA driver: its memory, one stream, graphs. Thin: every method is a call or two of cuda-bindings.

The driver's own interface and not the runtime library's, so that one build of cuda-bindings serves every driver. The
context is the device's primary one, which TensorRT, ONNX Runtime and PyTorch use too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.protocol import Array

PAGE = 4096  # bytes: what is locked is whole pages


class CudaError(EdgeLstmError):
    """The driver refused a call; ``code`` is the name of its error."""

    def __init__(self, what: str, code: str, text: str, *, hint: str | None = None) -> None:
        super().__init__(what, found=f"{code} ({text})", hint=hint)
        self.code = code


@dataclass(frozen=True)
class HostMemory:
    """Locked host memory: ``array`` of bytes; ``pointer`` for the host's own calls, ``mapped`` the same for the GPU."""

    array: Array
    pointer: int
    mapped: int


class Cuda:
    """A GPU. Inside ``with cuda:`` its context is the calling thread's; outside, the thread has the one it had.

    name; capability, such as (8, 7); integrated: whether it shares the processor's memory, as on a Jetson; stream: the
    handle of the stream that all work is put on. It waits for the default stream and that one for it, so work of
    libraries that use the default stream keeps its order with ours.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = driver = load_driver()
        count = device_count()
        if not 0 <= index < count:
            raise EdgeLstmError(
                f"device cuda:{index}",
                found=f"{count} GPU{'s' if count > 1 else ''}: {', '.join(map(device_name, range(count)))}",
                expected=" or ".join(f"cuda:{k}" for k in range(count)),
            )
        attribute = driver.CUdevice_attribute
        self.index = index
        self.name = device_name(index)
        device = _ok(driver.cuDeviceGet(index))
        major, minor, integrated = (
            int(_ok(driver.cuDeviceGetAttribute(which, device)))
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED,
            )
        )
        self.capability = (major, minor)
        self.integrated = bool(integrated)
        # Looked up once: a step makes few calls, and finding them cost as much as they do.
        self._success = driver.CUresult.CUDA_SUCCESS
        self._push, self._pop = driver.cuCtxPushCurrent, driver.cuCtxPopCurrent
        self._launch, self._synchronize = driver.cuGraphLaunch, driver.cuStreamSynchronize
        self._copy_async = driver.cuMemcpyAsync
        self._resources = ExitStack()
        #: How to free each allocation that was not freed yet, by address.
        self._allocated: dict[int, Callable[[], None]] = {}
        self._context: Any = _ok(driver.cuDevicePrimaryCtxRetain(device))
        self._resources.callback(driver.cuDevicePrimaryCtxRelease, device)
        try:
            with self:
                self._stream = self._new_stream(driver.CUstream_flags.CU_STREAM_DEFAULT)
                # Capturing on a stream that the default one waits for would break other threads' work.
                self._capturing = self._new_stream(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
                self._event = _ok(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
                self._resources.callback(driver.cuEventDestroy, self._event)
        except BaseException:
            self.close()
            raise
        self.stream = int(self._stream)

    def __enter__(self) -> Cuda:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Make its context the calling thread's; every call needs its :meth:`leave`. ``with cuda:`` in two calls."""
        if self._context is None:
            raise EdgeLstmError("this program is closed", hint="Open it again")
        result = self._push(self._context)
        if result[0] is not self._success:
            _ok(result)

    def leave(self) -> None:
        """Give the thread the context it had."""
        result = self._pop()
        if result[0] is not self._success:
            _ok(result)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._context is None

    @property
    def driver_version(self) -> str:
        """The newest CUDA the driver runs, such as "12.6"."""
        version = int(_ok(self._driver.cuDriverGetVersion()))
        return f"{version // 1000}.{version % 1000 // 10}"

    @property
    def capability_text(self) -> str:
        """The compute capability as "8.7"."""
        return f"{self.capability[0]}.{self.capability[1]}"

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        free, _ = _ok(self._driver.cuMemGetInfo())
        # What the system would give up for us does not count as free there, but can be had.
        return max(int(free), _available_memory()) if self.integrated else int(free)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the GPU, on a boundary of 256 bytes or more."""
        pointer = _ok(self._driver.cuMemAlloc(max(size, 1)))
        self._allocated[int(pointer)] = lambda: _ok(self._driver.cuMemFree(pointer))
        return int(pointer)

    def allocate_host(self, size: int) -> HostMemory:
        """Host memory that the GPU copies from and to by itself. NumPy owns it: views outlive :meth:`close`."""
        pages = -(-max(size, 1) // PAGE) * PAGE
        raw = np.zeros(pages + PAGE, np.uint8)
        start = -raw.ctypes.data % PAGE
        array = raw[start : start + pages]
        address = int(array.ctypes.data)
        _ok(self._driver.cuMemHostRegister(address, pages, self._driver.CU_MEMHOSTREGISTER_DEVICEMAP))

        def unlock(keep: Array = raw) -> None:
            _ok(self._driver.cuMemHostUnregister(address))

        self._allocated[address] = unlock
        mapped = int(_ok(self._driver.cuMemHostGetDevicePointer(address, 0)))
        return HostMemory(array[:size], address, mapped)

    def free(self, pointer: int) -> None:
        """Free what :meth:`allocate` or :meth:`allocate_host` gave."""
        self._allocated.pop(pointer)()

    def copy(self, target: int, source: int, size: int, stream: Any = None) -> None:
        """Begin to copy ``size`` bytes; host or device is told by the address."""
        result = self._copy_async(target, source, size, self._stream if stream is None else stream)
        if result[0] is not self._success:
            _ok(result)

    def wait(self) -> None:
        """Return when everything on the stream is done."""
        result = self._synchronize(self._stream)
        if result[0] is not self._success:
            _ok(result)

    def follow(self, stream: int) -> None:
        """Let what comes on our stream wait for what is on another, given by its handle."""
        other = self._driver.CUstream(stream)
        _ok(self._driver.cuEventRecord(self._event, other))
        _ok(self._driver.cuStreamWaitEvent(self._stream, self._event, 0))

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """What the body puts on the capture's stream becomes its ``graph``."""
        driver = self._driver
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _ok(driver.cuStreamBeginCapture(self._capturing, mode))
        capture = Capture(self, self._capturing)
        try:
            yield capture
        except BaseException:
            _, graph = driver.cuStreamEndCapture(self._capturing)  # fails too, since the capture is broken
            if graph is not None and int(graph):
                driver.cuGraphDestroy(graph)
            raise
        graph = _ok(driver.cuStreamEndCapture(self._capturing))
        try:
            capture.graph = _ok(driver.cuGraphInstantiate(graph, 0))
        finally:
            _ok(driver.cuGraphDestroy(graph))

    def launch(self, graph: Any) -> None:
        """Put a captured graph on the stream."""
        result = self._launch(graph, self._stream)
        if result[0] is not self._success:
            _ok(result)

    def destroy(self, graph: Any) -> None:
        """Free a captured graph that is not running."""
        _ok(self._driver.cuGraphExecDestroy(graph))

    def close(self) -> None:
        """Free all memory, the stream and the context; calling it again does nothing."""
        if self._context is None:
            return
        with self:
            # Errors of the driver have been told by the call that waited; here everything is to be freed.
            for free in self._allocated.values():
                try:
                    free()
                except CudaError:
                    continue
            self._allocated.clear()
        self._resources.close()
        self._context = None

    def _new_stream(self, flags: Any) -> Any:
        stream = _ok(self._driver.cuStreamCreate(int(flags)))
        self._resources.callback(self._driver.cuStreamDestroy, stream)
        return stream


class Capture:
    """A graph in the making; ``stream`` is the handle to put work on."""

    def __init__(self, cuda: Cuda, stream: Any) -> None:
        self._cuda = cuda
        self._stream = stream
        self.stream = int(stream)
        self.graph: Any = None

    def copy(self, target: int, source: int, size: int) -> None:
        """As :meth:`Cuda.copy`, into the graph."""
        self._cuda.copy(target, source, size, self._stream)


def load_driver() -> Any:
    """The module ``cuda.bindings.driver``, initialised. Raises EdgeLstmError without it, a driver or a GPU."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EdgeLstmError(
            "running on a GPU needs cuda-bindings, which is not installed",
            hint="pip install 'edgelstm[gpu]' (ONNX Runtime) or 'edgelstm[tensorrt]'",
        ) from error
    try:
        result = driver.cuInit(0)
    except Exception as error:  # how it says that there is no library differs between versions
        raise EdgeLstmError(
            "there is no NVIDIA driver here",
            found="no library libcuda",
            hint="Install the driver; in a container, start it with --gpus all (on a Jetson: --runtime nvidia)",
        ) from error
    try:
        _ok(result)
    except CudaError as error:
        if error.code == "CUDA_ERROR_NO_DEVICE":
            raise EdgeLstmError(
                "there is no NVIDIA GPU here", hint="Use --device cpu with a .onnx file"
            ) from error
        raise EdgeLstmError(
            "the NVIDIA driver does not start",
            found=error.found,
            hint="Does nvidia-smi work? After an update of the driver, restart",
        ) from error
    return driver


def device_count() -> int:
    """GPUs that this process sees; at least one. Raises EdgeLstmError if there is none."""
    count = int(_ok(load_driver().cuDeviceGetCount()))
    if count == 0:
        raise EdgeLstmError("there is no NVIDIA GPU here", hint="Is CUDA_VISIBLE_DEVICES empty?")
    return count


def device_name(index: int) -> str:
    """What a GPU calls itself."""
    driver = load_driver()
    name: bytes = _ok(driver.cuDeviceGetName(128, _ok(driver.cuDeviceGet(index))))
    return name.split(b"\0")[0].decode(errors="replace")


def _ok(result: tuple[Any, ...]) -> Any:
    """What a driver call gave, or CudaError."""
    error, *values = result
    if int(error):
        from cuda.bindings import driver

        code = str(getattr(error, "name", error))
        _, text = driver.cuGetErrorString(error)
        hint = None
        if code == "CUDA_ERROR_OUT_OF_MEMORY":
            hint = "Other programs may hold the GPU's memory (nvidia-smi shows them); or use fewer streams"
        raise CudaError(
            "the GPU failed", code, text.decode() if isinstance(text, bytes) else str(text), hint=hint
        )
    return values[0] if len(values) == 1 else tuple(values)


def _available_memory() -> int:
    """What Linux could still give, in bytes; 0 where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            found = re.search(r"^MemAvailable:\s*(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
