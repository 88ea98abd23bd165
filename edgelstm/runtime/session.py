"""Sessions of ONNX Runtime, with our own operators in them where they are, and the Signature in their file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError, some
from edgelstm.files import PathLike, check_file, read_bytes
from edgelstm.graph.signature import Dim, Signature
from edgelstm.runtime.native.alone import Alone
from edgelstm.runtime.native.prepare import Native, prepare, say_once
from edgelstm.runtime.native.session import NativeSession, lent, load
from edgelstm.runtime.native.trial import Trial

CPU = "CPUExecutionProvider"
METADATA_KEY = "edgelstm.signature"
_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8e4m3fn",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def check_counts(streams: int, threads: int | None) -> None:
    """Raise EdgeLstmError for fewer than one stream or thread."""
    if streams < 1:
        raise EdgeLstmError("streams", found=streams, expected="at least 1")
    if threads is not None and threads < 1:
        raise EdgeLstmError("threads", found=threads, expected="at least 1")


def available_cpus() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def import_onnxruntime() -> Any:
    """The module. Raises EdgeLstmError where it is not installed.

    From 1.29 on it reports to Microsoft from Linux too: what was opened and how long steps took, under a number that it keeps in
    ``~/.cache/Microsoft``. Not from a device of our users', unless they say so: ``ORT_DISABLE_TELEMETRY=0``.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise EdgeLstmError(
            "ONNX Runtime is not installed", hint="pip install 'edgelstm[cpu]' (or 'edgelstm[gpu]')"
        ) from error
    return onnxruntime


def open_session(
    model: PathLike | bytes,
    threads: int,
    spin: bool = True,
    *,
    half: bool = False,
    unfused: bool = False,
    providers: Sequence[Any] = (CPU,),
    library: Path | None = None,
) -> Any:
    """An ONNX Runtime session with the options every step graph here runs under.

    half: the graph computes in float16; found out for one whose Signature says so. unfused: what stands between codes is computed in
    float32, as the graph says; else in whole numbers where ONNX Runtime can, biases rounded to such too. providers: what computes it, the
    first that can an operator; the CPU comes last. library: of operators that the graph needs besides ONNX Runtime's.

    Raises EdgeLstmError when ONNX Runtime is missing, or the file is missing or refused.
    """
    where = "model" if isinstance(model, bytes) else str(model)
    ort = import_onnxruntime()
    # Opened from its bytes, a session keeps them, beside the weights it made of them, for as long as it lives.
    source = model if isinstance(model, bytes) else str(check_file(model))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what fails is raised, in our words
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    # 1.31 crashes in this optimizer (blocked layouts for convolutions) at a Transpose before a MatMul in float16.
    disabled = ["NchwcTransformer"] if half or _found(source, b'"float16"') else []
    # On x86 without VNNI its products of uint8 and int8 saturate at 16 bits, and results are off by half. So there uint8 and uint8.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if unfused or (_found(source, b"DequantizeLinear") and not _found(source, b"QuantizeLinear")):
        # Where weights alone are in int8 it would dequantise them in every step, which takes longer than the step. So once.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        try:
            return ort.InferenceSession(
                source, options, providers=list(providers), disabled_optimizers=disabled
            )
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            # It fuses Q/DQ pairs of fp8 into operators that have no fp8, and fails to make int8 weights uint8 that two products read (seen
            # in 1.31). Unfused it computes in float32.
            if "float8" not in str(error) and "AddInitializer" not in str(error):
                raise
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            return ort.InferenceSession(
                source, options, providers=list(providers), disabled_optimizers=disabled
            )
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error):
            raise EdgeLstmError(
                f"ONNX Runtime can't run {where} on the {'CPU' if providers[0] == CPU else 'GPU'}",
                found=first_line(error),
                expected=f"operators and types that its {'CPU provider has' if providers[0] == CPU else 'providers have'}",
                hint="A graph for TensorRT in bf16 runs there only; quantize --runtime onnxruntime for the CPU",
            ) from error
        if "edgelstm:Fused" in str(error) and "not a registered" in str(error):
            raise EdgeLstmError(
                f"{where} has our own operators in it",
                expected="a program that registers their library, as one with the C library does",
                hint="Here open the model that it was made of (lower --runtime native): its cells become operators by themselves",
            ) from error
        raise EdgeLstmError(
            f"ONNX Runtime can't open {where}",
            found=first_line(error),
            expected="a valid ONNX file",
            hint="If the file was cut short or edited, export it again",
        ) from error


def open_native(
    model: PathLike | bytes, threads: int, spin: bool, streams: int, wanted: bool | None
) -> tuple[Any, Signature, Native] | None:
    """A session whose cells are our own operators; None where there are none, or they were not asked for.

    Its results are compared with those of the graph as it is, once, on random frames.
    """
    ort = import_onnxruntime()
    found = prepare(model, threads, streams, str(ort.__version__), wanted)
    if found is None:
        return None
    where = "model" if isinstance(model, bytes) else str(model)
    alone = _alone(model if isinstance(model, bytes) else read_bytes(model), found)
    plain = _as_it_stands(model, threads, alone)
    signature = read_signature(plain, where, () if alone is None else alone.taps)
    try:
        trial = Trial.of(plain, signature, alone)
        del plain  # its weights, before ours take their place
        session = _native_session(found, ort, threads, spin)
        trouble = trial.trouble(
            session, lambda data: _native_session(replace(found, data=data), ort, threads, False)
        )
    except EdgeLstmError as error:
        trouble = str(error)
    except Exception as error:  # ONNX Runtime raises several unrelated classes
        trouble = first_line(error)
    if trouble is None:
        return session, signature, replace(found, data=b"", matrices={})
    message = f"our operators are not used for {where}"
    if wanted:
        raise EdgeLstmError(message, found=trouble, hint="Without them it runs: EDGELSTM_NATIVE=0")
    say_once(f"{message}: {trouble}")
    return None


def _native_session(found: Native, ort: Any, threads: int, spin: bool) -> Any:
    """A session of ours; one of ONNX Runtime's Python module where it lets no other be."""
    library = found.library.path
    try:
        return NativeSession(found.data, found.matrices, library, ort, threads, spin)
    except EdgeLstmError:
        with lent(load(library, ort), found.matrices):
            return open_session(found.data, threads, spin, library=library)


def with_operators(data: bytes, threads: int, streams: int) -> bytes:
    """A step graph's bytes with our operators in it, whole by themselves, for a program that registers their library. Compared with
    the graph as it stands, once, on random numbers.

    Raises EdgeLstmError where the library is missing, where nothing in the graph becomes one, and where the numbers differ.
    """
    ort = import_onnxruntime()
    if (found := prepare(data, threads, streams, str(ort.__version__), True, lend=False)) is None:
        raise AssertionError("what is wanted is an error where it is not there")
    alone = _alone(data, found)
    plain = _as_it_stands(data, threads, alone)
    trial = Trial.of(plain, read_signature(plain, "model", () if alone is None else alone.taps), alone)

    def opener(part: bytes) -> Any:
        return _native_session(replace(found, data=part), ort, threads, False)

    trouble = trial.trouble(opener(found.data), opener)
    if trouble is not None:
        raise EdgeLstmError("our operators give other numbers", found=trouble)
    return found.data


def _as_it_stands(model: PathLike | bytes, threads: int, alone: Alone | None) -> Any:
    if alone is None:
        return open_session(model, threads, spin=False)
    return open_session(alone.tapped(), threads, spin=False, unfused=alone.rounds)


def _alone(data: bytes, found: Native) -> Alone | None:
    """Of a graph in which values are rounded to codes."""
    return Alone(data, found.data) if b"QuantizeLinear" in found.data else None


def _found(model: str | bytes, text: bytes) -> bool:
    """Whether that stands in the file: a Signature's JSON, and names of operators, stand there as they are."""
    if isinstance(model, bytes):
        return text in model
    with Path(model).open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return data.find(text) >= 0
        except (OSError, ValueError):  # empty: no Signature either
            return False


def read_signature(session: Any, where: str, taps: Collection[str] = ()) -> Signature:
    """The Signature in the file's metadata, checked against what the session says of the graph. taps: outputs that it need not name."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    inputs = {v.name: v for v in session.get_inputs()}
    outputs = {v.name: v for v in session.get_outputs() if v.name not in taps}
    if text is None:
        raise EdgeLstmError(
            f"{where} has no Signature: nothing tells which of its tensors are states",
            found=f"inputs {some(inputs)}; outputs {some(outputs)}",
            hint=f"Declare the state pairs: edgelstm export {where} --state INPUT=OUTPUT -o step.onnx",
        )
    signature = Signature.loads(text, where)
    wanted_in = {t.name: (t.dtype, t.shape) for t in signature.inputs}
    wanted_in |= {s.input: (s.dtype, s.shape) for s in signature.states}
    wanted_out = {t.name: (t.dtype, t.shape) for t in signature.outputs}
    wanted_out |= {s.output: (s.dtype, s.shape) for s in signature.states}
    for kind, have, want in (("inputs", inputs, wanted_in), ("outputs", outputs, wanted_out)):
        if set(have) != set(want):
            raise EdgeLstmError(
                f"{where}: the graph's {kind} and its Signature disagree",
                found=f"graph {some(sorted(have, key=lambda n: (n in want, n)))}",
                expected=f"{some(sorted(want, key=lambda n: (n in have, n)))} as the Signature says",
                hint="The file was edited after export: export it again",
            )
        for name, (dtype, shape) in want.items():
            found = (_ELEMENTS.get(have[name].type, have[name].type), have[name].shape)
            if found[0] != dtype or not _same_shape(found[1], shape):
                raise EdgeLstmError(
                    f"{where}: tensor {name!r} of the graph and its Signature disagree",
                    found=f"{found[0]}{list(found[1])}",
                    expected=f"{dtype}{list(shape)} as the Signature says",
                    hint="The file was edited after export: export it again",
                )
    return signature


def _same_shape(found: Sequence[Any], wanted: tuple[Dim, ...]) -> bool:
    return len(found) == len(wanted) and all(
        have == want if isinstance(want, int) else not isinstance(have, int)
        for have, want in zip(found, wanted, strict=True)
    )


def first_line(error: BaseException) -> str:
    """What went wrong, without the lines that only its authors read."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
