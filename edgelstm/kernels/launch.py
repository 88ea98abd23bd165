"""Compiled kernels on the GPU: loaded once a device, launched on the caller's stream. The driver's own interface only."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.kernels.compile import code_of, cubin
from edgelstm.runtime.cuda import _ok, load_driver

_LOCK = threading.Lock()
_kernels: dict[tuple[Any, ...], Kernel] = {}


@dataclass(frozen=True)
class Device:
    """A GPU and its primary context, the one that torch, CuPy and cuda-core work in.

    shared: bytes of shared memory that a block may ask for.
    """

    index: int
    capability: tuple[int, int]
    processors: int
    shared: int
    context: Any

    def __enter__(self) -> Device:
        _ok(load_driver().cuCtxPushCurrent(self.context))
        return self

    def __exit__(self, *_: object) -> None:
        _ok(load_driver().cuCtxPopCurrent())


@functools.cache
def device(index: int) -> Device:
    """The GPU of that number. Raises EdgeLstmError without a driver or a GPU."""
    driver = load_driver()
    handle = _ok(driver.cuDeviceGet(index))
    attribute = driver.CUdevice_attribute
    major, minor, processors, shared = (
        int(_ok(driver.cuDeviceGetAttribute(getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), handle)))
        for name in (
            "COMPUTE_CAPABILITY_MAJOR",
            "COMPUTE_CAPABILITY_MINOR",
            "MULTIPROCESSOR_COUNT",
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
        )
    )
    # Kept for as long as the process lives: what is loaded into it stays loaded.
    return Device(index, (major, minor), processors, shared, _ok(driver.cuDevicePrimaryCtxRetain(handle)))


class Memory:
    """Copies of arrays on a GPU, until :meth:`close`. addresses: one for each array, a multiple of 256."""

    def __init__(self, device: Device, arrays: Sequence[Any]) -> None:
        self._driver, self._device = load_driver(), device
        self.addresses: tuple[int, ...] = ()
        try:
            with device:
                for array in arrays:
                    pointer = _ok(self._driver.cuMemAlloc(max(array.nbytes, 1)))
                    self.addresses += (int(pointer),)
                    _ok(self._driver.cuMemcpyHtoD(pointer, array.ctypes.data, array.nbytes))
                # The call may be back before the last of it has arrived, and streams need not wait for it.
                _ok(self._driver.cuCtxSynchronize())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free it, when all that was queued is done."""
        addresses, self.addresses = self.addresses, ()
        with self._device:
            _ok(self._driver.cuCtxSynchronize())
            for address in addresses:
                _ok(self._driver.cuMemFree(address))


class Kernel:
    """A kernel with one parameter, a struct."""

    def __init__(self, device: Device, binary: bytes, name: str, shared: int) -> None:
        self._driver = driver = load_driver()
        self._device = device
        self._shared = shared
        with device:
            self._module = _ok(driver.cuModuleLoadData(binary))
            self._function = _ok(driver.cuModuleGetFunction(self._module, name.encode()))
            if shared > 48 * 1024:
                most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _ok(driver.cuFuncSetAttribute(self._function, most, shared))

    def launch(
        self, blocks: int, threads: int, parameter: ctypes.Structure, stream: int, *, together: bool = False
    ) -> None:
        """Queue it. together: all blocks run at once, or the launch fails (they wait for each other)."""
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(parameter))
        start = self._driver.cuLaunchCooperativeKernel if together else self._driver.cuLaunchKernel
        given: tuple[Any, ...] = (
            (ctypes.addressof(arguments),) if together else (ctypes.addressof(arguments), 0)
        )
        with self._device:
            _ok(start(self._function, blocks, 1, 1, threads, 1, 1, self._shared, stream, *given))


def kernel(index: int, source: str, name: str, defines: Mapping[str, int], shared: int = 0) -> Kernel:
    """The kernel of that name, compiled and loaded when it is first asked for.

    Do this before a CUDA graph is captured: loading can't be captured.
    """
    key = (index, source, name, tuple(sorted(defines.items())), shared)
    found = _kernels.get(key)
    if found is None:
        gpu = device(index)
        binary = cubin(code_of(source, defines, gpu.capability))
        with _LOCK:
            found = _kernels.setdefault(key, Kernel(gpu, binary, name, shared))
    return found


def no_gpu() -> str | None:
    """Why kernels can't run here; None where they can."""
    try:
        device(0)
    except EdgeLstmError as error:
        return str(error)
    return None
