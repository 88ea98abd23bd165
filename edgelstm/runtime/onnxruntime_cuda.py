"""ONNX Runtime on a GPU: its CUDA provider works on our stream and on our buffers, so no state and no frame goes by the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.device import OutputPlace
from edgelstm.runtime.gpu import GpuProgram, check_outputs
from edgelstm.runtime.onnxruntime import NUMBERS
from edgelstm.runtime.rows import call_size
from edgelstm.runtime.session import (
    CPU,
    available_cpus,
    check_counts,
    first_line,
    import_onnxruntime,
    open_session,
    read_signature,
)

PROVIDER = "CUDAExecutionProvider"


class OrtCudaProgram(GpuProgram):
    """A StepModel, a file or its bytes, opened by ONNX Runtime on GPU ``device``. See
    :class:`edgelstm.runtime.protocol.Program`.

    threads: for what the provider leaves to the processor. outputs: as for
    :class:`~edgelstm.runtime.tensorrt.TensorRtProgram`.

    Raises EdgeLstmError without the provider, its CUDA libraries, a driver or a GPU, and for what OrtProgram refuses.
    """

    def __init__(
        self,
        model: PathLike | bytes,
        *,
        streams: int = 1,
        device: int = 0,
        threads: int | None = None,
        outputs: OutputPlace = "host",
    ) -> None:
        check_outputs(outputs)
        check_counts(streams, threads)
        where = "model" if isinstance(model, bytes) else str(model)
        _check_provider()
        cuda = Cuda(device)
        try:
            with cuda:
                session = open_cuda_session(model, cuda, threads or available_cpus())
            signature = read_signature(session, where)
            size = call_size(signature, streams, where)
            engine = _Engine(session, signature, cuda.index)
            super().__init__(signature, streams, size, cuda, engine, outputs=outputs)
        except BaseException:
            cuda.close()
            raise


class _Engine:
    """A session on the GPU. See :class:`edgelstm.runtime.device_memory.Engine`."""

    #: Its kernels may allocate while they run, which no capture survives.
    captures = False

    def __init__(self, session: Any, signature: Signature, device: int) -> None:
        self._session = session
        self._device = device
        inputs: dict[str, TensorSpec | StateSpec] = {t.name: t for t in signature.inputs}
        inputs |= {s.input: s for s in signature.states}
        # An output may bear the name of a state's.
        outputs: dict[str, TensorSpec | StateSpec] = {t.name: t for t in signature.outputs}
        outputs |= {s.output: s for s in signature.states}
        self._inputs, self._outputs = inputs.items(), outputs.items()
        self._options = import_onnxruntime().RunOptions()
        # The stream orders everything; the program waits for it once a step.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(self, rows: int, addresses: Mapping[str, int]) -> Callable[[int], None]:
        if self._session is None:
            raise _closed()
        binding = self._session.io_binding()
        for bind, specs in ((binding.bind_input, self._inputs), (binding.bind_output, self._outputs)):
            for name, spec in specs:
                element: Any = NUMBERS.get(spec.dtype, np_dtype(spec.dtype))
                bind(name, "cuda", self._device, element, [rows, *spec.frame_shape], addresses[name])

        def enqueue(_: int) -> None:
            if self._session is None:
                raise _closed()
            try:
                self._session.run_with_iobinding(binding, self._options)
            except Exception as error:  # ONNX Runtime raises several unrelated classes
                raise EdgeLstmError("ONNX Runtime failed in a step", found=first_line(error)) from error

        return enqueue

    def dedicate(self, rows: int, addresses: Mapping[str, int]) -> None:
        """A binding is all there is, and every call has its own."""

    def close(self) -> None:
        self._session = None


def open_cuda_session(model: PathLike | bytes, cuda: Cuda, threads: int) -> Any:
    """A session whose kernels run on the stream of ``cuda``. Raises EdgeLstmError where the GPU is not used."""
    options = {
        "device_id": str(cuda.index),
        "user_compute_stream": str(cuda.stream),
        # Else products of float32 round their inputs to 10 bits of mantissa.
        "use_tf32": "0",
    }
    session = open_session(model, threads, spin=False, providers=((PROVIDER, options), CPU))
    if PROVIDER not in session.get_providers():
        raise EdgeLstmError(
            "ONNX Runtime's CUDA provider does not start",
            found="CUDA or cuDNN libraries of another version, or none",
            expected="the versions this ONNX Runtime was built for",
            hint="pip install 'onnxruntime-gpu[cuda,cudnn]' brings them",
        )
    return session


def _check_provider() -> None:
    ort = import_onnxruntime()
    if PROVIDER not in ort.get_available_providers():
        raise EdgeLstmError(
            "this ONNX Runtime has no CUDA provider",
            found=f"providers {', '.join(ort.get_available_providers())}",
            hint="pip uninstall onnxruntime, then pip install 'edgelstm[gpu]'",
        )
    # Finds the CUDA libraries that pip installed; newer versions have it.
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def _closed() -> EdgeLstmError:
    return EdgeLstmError("this program is closed", hint="Open it again")
