"""An engine of one kernel, compiled by NVRTC: our GPU runner on a real driver where there is no TensorRT.

s' = s / 2 + x, y = 2 s', for one state of ``width`` float32 numbers. On the stand-in for the driver, which has no kernels, NumPy does the
same when the stream comes to it; where only the host's time is looked at, nothing does anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from contract.backends import no_gpu
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.gpu import GpuProgram
from edgelstm.runtime.rows import call_size
from standins import cuda_driver

SOURCE = r"""
extern "C" __global__ void step(float const* x, float const* s, float* sn, float* y, int n) {
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < n) { float v = 0.5f * s[k] + x[k]; sn[k] = v; y[k] = 2.0f * v; }
}
"""
THREADS = 128


def signature(width: int) -> Signature:
    """What the kernel takes and gives."""
    return Signature(
        inputs=(TensorSpec("x", "float32", ("N", width)),),
        outputs=(TensorSpec("y", "float32", ("N", width)),),
        states=(StateSpec("s", "s", "s_next", "float32", ("N", width)),),
    )


def reference(s: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(next state, output); exact in float32 on any machine: a product by a power of two, and a sum."""
    s = np.float32(0.5) * s + x
    return s, 2 * s


@functools.cache
def compiled(architecture: str) -> bytes:
    """Machine code for a GPU, compiled once."""
    from cuda.core import Program, ProgramOptions

    code: bytes = Program(SOURCE, "c++", ProgramOptions(arch=architecture)).compile("cubin").code
    return code


class KernelEngine:
    """See :class:`edgelstm.runtime.device_memory.Engine`. ``driver``: the stand-in, None for a real one. idle: launch nothing."""

    captures = True

    def __init__(self, cuda: Cuda, width: int, driver: Any = None, *, idle: bool = False) -> None:
        self._cuda, self._width, self._driver, self._idle = cuda, width, driver, idle
        self._module: Any = None
        if driver is None and not idle:
            calls = cuda._driver
            with cuda:
                code = compiled("sm_" + cuda.capability_text.replace(".", ""))
                self._module = self._ok(calls.cuModuleLoadData(code))
                self._kernel = self._ok(calls.cuModuleGetFunction(self._module, b"step"))

    def bind(self, rows: int, addresses: Mapping[str, int]) -> Callable[[int], None]:
        a, count = dict(addresses), rows * self._width

        def kernel(stream: int) -> None:
            values = (a["x"], a["s"], a["s_next"], a["y"], count)
            types = (ctypes.c_void_p,) * 4 + (ctypes.c_int,)
            blocks = -(-count // THREADS)
            launch = self._cuda._driver.cuLaunchKernel
            self._ok(launch(self._kernel, blocks, 1, 1, THREADS, 1, 1, 0, stream, (values, types), 0))

        def numpy(stream: int) -> None:
            def array(name: str) -> np.ndarray:
                assert self._driver.owns(a[name], count * 4), f"{name} is not all in one allocation"
                return np.frombuffer((ctypes.c_char * (count * 4)).from_address(a[name]), np.float32)

            def work() -> None:
                array("s_next")[:], array("y")[:] = reference(array("s").copy(), array("x").copy())

            # Harsher than a GPU, as some runtimes are: what is captured is run, too, and spoils the state it reads.
            if self._driver.is_capturing(stream):
                work()
                array("s")[:] = np.nan
            self._driver.put(stream, work)

        if self._idle:
            return lambda stream: None
        return kernel if self._driver is None else numpy

    def dedicate(self, rows: int, addresses: Mapping[str, int]) -> None:
        """Nothing is worth keeping for these addresses."""

    def close(self) -> None:
        if self._module is not None:
            self._ok(self._cuda._driver.cuModuleUnload(self._module))
            self._module = None

    @staticmethod
    def _ok(result: tuple[Any, ...]) -> Any:
        error, *values = result
        assert not int(error), error
        return values[0] if values else None


@contextlib.contextmanager
def kernel_machine(**gpu: Any) -> Iterator[Any]:
    """The real driver (None), or the stand-in where there is no GPU; skips the test where there is neither."""
    if no_gpu() is None:
        yield None
        return
    if reason := cuda_driver.missing():
        import pytest

        pytest.skip(reason)
    with cuda_driver.stand_in_driver(**gpu) as driver:
        yield driver


def open_kernel(
    driver: Any, streams: int, *, width: int = 96, outputs: Any = "host", idle: bool = False
) -> GpuProgram:
    """A program of that engine; 96 numbers are 384 bytes a row, so runs begin at every second one."""
    cuda = Cuda()
    try:
        told = signature(width)
        engine = KernelEngine(cuda, width, driver, idle=idle)
        size = call_size(told, streams, "kernel")
        return GpuProgram(told, streams, size, cuda, engine, outputs=outputs)
    except BaseException:
        cuda.close()
        raise
