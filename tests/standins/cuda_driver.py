"""Compiles and loads the stand-in for the CUDA driver, ``cuda_driver.c``. See there what it is, and what it is not."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_ON_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, *[ctypes.c_uint] * 3, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
)
MEMORY = 2 * 1024**3


@cache
def missing() -> str | None:
    """Why the stand-in can't be used here; None where it can."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "needs cuda-bindings: pip install 'edgelstm[dev]'"
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        return "a real CUDA driver is here: tests/gpu runs instead"
    if shutil.which("cc") is None:
        return "needs a C compiler, cc"
    try:
        _library()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the stand-in for the CUDA driver does not build here: {error}"
    return None


@cache
def _library() -> ctypes.CDLL:
    # Its name is that of the real one: what looks for that later finds this one, which is loaded already.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "libcuda.so.1")
        source = Path(__file__).with_suffix(".c")
        command = ["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]
        subprocess.run([*command, str(path), str(source), "-ldl"], check=True, capture_output=True)
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.standin_configure.argtypes = [ctypes.c_int] * 4 + [ctypes.c_size_t, ctypes.c_int]
    library.standin_owns.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.standin_capturing.argtypes = library.standin_drain.argtypes = [ctypes.c_void_p]
    library.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, _CALLBACK, ctypes.c_void_p]
    return library


class StandInDriver:
    """What tests ask of the stand-in beside the driver's own calls."""

    def __init__(self) -> None:
        self._library = _library()
        self._keep: list[Any] = []
        #: The first exception out of work on a stream; a stream has nowhere to raise it.
        self.error: BaseException | None = None

    def live(self) -> int:
        """Everything made and not freed: allocations, streams, graphs, contexts."""
        return int(self._library.standin_live())

    def depth(self) -> int:
        """Contexts pushed and not popped."""
        return int(self._library.standin_depth())

    def fail(self) -> None:
        """Everything put on a stream from now on fails."""
        self._library.standin_fail()

    def owns(self, pointer: int, size: int) -> bool:
        """Whether the bytes lie in one allocation of the device, or in locked memory."""
        return bool(self._library.standin_owns(pointer, size))

    def is_capturing(self, stream: int) -> bool:
        return bool(self._library.standin_capturing(stream))

    def play(self, kernel: Callable[..., int]) -> None:
        """``kernel(name, blocks, threads, shared, together, parameter, stream)`` is called for every launch, when it is queued;
        0 is success. Its parameter is an address that is good until it returns."""
        callback = _ON_LAUNCH(kernel)
        self._keep.append(callback)
        self._library.standin_on_launch(callback)

    def drain(self, stream: int) -> None:
        """Do what is on a stream."""
        self._library.standin_drain(stream)

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Put work on a stream, or into the graph it is captured for."""

        def guarded(_: Any) -> None:
            try:
                work()
            except BaseException as error:
                self.error = self.error or error
                self.fail()

        callback = _CALLBACK(guarded)
        self._keep.append(callback)
        assert self._library.cuLaunchHostFunc(stream, callback, None) == 0


@contextlib.contextmanager
def stand_in_driver(
    *,
    devices: int = 1,
    capability: tuple[int, int] = (8, 6),
    integrated: bool = False,
    memory: int = MEMORY,
    version: int = 13000,
) -> Iterator[StandInDriver]:
    """A machine with stand-ins for GPUs. At its end nothing may be left over, and there is no GPU again."""
    driver = StandInDriver()
    before = driver.live()
    _library().standin_configure(devices, *capability, integrated, memory, version)
    try:
        yield driver
        if driver.error is not None:
            raise driver.error
        assert driver.live() == before, f"{driver.live() - before} resources of the GPU were not freed"
        assert driver.depth() == 0, "a context was left current"
    finally:
        _library().standin_configure(0, 0, 0, 0, 0, 0)
