"""A stand-in for a session of ONNX Runtime on a GPU: the real ONNX Runtime on the CPU, its runs put on the stream.

Buffers, bindings by address and the order of copies and runs are as on a GPU; the provider itself is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import onnxruntime as ort

from edgelstm.runtime import onnxruntime_cuda
from edgelstm.runtime.session import open_session
from standins.cuda_driver import StandInDriver


class Session:
    """Binds "cuda" addresses, which are host memory here, and runs when the stream comes to it."""

    def __init__(self, session: Any, driver: StandInDriver, stream: int) -> None:
        self._session, self._driver, self._stream = session, driver, stream
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.get_modelmeta = session.get_modelmeta

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", *self._session.get_providers()]

    def io_binding(self) -> Binding:
        return Binding(self._session.io_binding(), self._driver)

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self._driver.put(self._stream, lambda: self._session.run_with_iobinding(binding.real, options))


class Binding:
    def __init__(self, real: Any, driver: StandInDriver) -> None:
        self.real, self._driver = real, driver

    def bind_input(
        self, name: str, device: str, index: int, kind: Any, shape: list[int], pointer: int
    ) -> None:
        self._check(device, pointer)
        self.real.bind_input(name, "cpu", 0, kind, shape, pointer)

    def bind_output(
        self, name: str, device: str, index: int, kind: Any, shape: list[int], pointer: int
    ) -> None:
        self._check(device, pointer)
        self.real.bind_output(name, "cpu", 0, kind, shape, pointer)

    def _check(self, device: str, pointer: int) -> None:
        assert device == "cuda"
        assert pointer % 256 == 0
        assert self._driver.owns(pointer, 1)


@contextlib.contextmanager
def stand_in_session(driver: StandInDriver) -> Iterator[None]:
    """Sessions that OrtCudaProgram opens are the stand-in's."""

    def open_(model: Any, threads: int, spin: bool, *, providers: Any) -> Session:
        (name, options), last = providers
        assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        return Session(open_session(model, 1, spin), driver, int(options["user_compute_stream"]))

    available = [onnxruntime_cuda.PROVIDER, "CPUExecutionProvider"]
    with (
        patch.object(onnxruntime_cuda, "open_session", open_),
        patch.object(ort, "get_available_providers", lambda: available),
        patch.object(ort, "preload_dlls", lambda: None, create=True),
    ):
        yield
