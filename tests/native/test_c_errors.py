"""What the C library refuses: models, libraries, versions, steps, snapshots. Nothing has moved then."""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import c_library
import native_library
import zoo
from c_library import Program, Refused, Stream, refused
from edgelstm.graph.step import StepModel
from edgelstm.runtime.snapshot import Snapshot

Array = np.ndarray[Any, Any]


@pytest.fixture
def lstm(tmp_path: Path) -> Path:
    path = tmp_path / "lstm.onnx"
    zoo.lstm().save(path)
    return path


def no_handle(call: Callable[[], Any], code: int, match: str) -> None:
    assert refused(code, match, call).hint


def test_what_can_not_be_opened_is_one_error_with_what_to_do(lstm: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(lstm.read_bytes()[:-200])
    bare = StepModel.load(lstm).model
    del bare.metadata_props[:]
    (tmp_path / "bare.onnx").write_bytes(bare.SerializeToString())
    for model, match in (
        (tmp_path / "none.onnx", "does not exist"),
        (tmp_path, "is no file"),
        (cut, "can't open"),
        (tmp_path / "bare.onnx", "no Signature"),
    ):
        no_handle(lambda m=model: Program(m), c_library.MODEL, match)
    library = c_library.built().path
    for runtime, match in (
        (str(tmp_path / "libonnxruntime.so"), "cannot open shared object"),
        (str(library), "another library"),
        (str(tmp_path), "can't be loaded"),
    ):
        no_handle(lambda r=runtime: Program(lstm, onnxruntime=r), c_library.LIBRARY, match)
    no_handle(lambda: Program(lstm, operators=str(library)), c_library.LIBRARY, "operators")


RESERVED = {"name": "edgelstm.snapshot", "input": "h", "output": "i", "dtype": "float32", "shape": ["N", 2]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": 2}, "another schema"),
        ({"states": []}, "disagree"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 4]}]}, "disagree"),
        ({"inputs": [{"name": "x", "dtype": "float64", "shape": ["N", 3]}]}, "disagree"),
        ({"inputs": [{"name": "x", "dtype": "complex64", "shape": ["N", 3]}]}, "dtype"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 0]}]}, "shape"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 2**31, 2**31]}]}, "shape"),
        ({"outputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3]}]}, "an input and an output"),
        ({"states": [RESERVED]}, "a state called edgelstm.snapshot"),
        ({"inputs": 3}, "no list"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(lstm: Path, change: dict[str, Any], match: str) -> None:
    step = StepModel.load(lstm).model
    step.metadata_props[0].value = json.dumps({**json.loads(step.metadata_props[0].value), **change})
    lstm.write_bytes(step.SerializeToString())
    no_handle(lambda: Program(lstm), c_library.MODEL, match)


def test_another_version_of_the_interface_is_refused(lstm: Path) -> None:
    assert c_library.functions().edgelstm_abi_version() == 1
    no_handle(lambda: Program(lstm, abi=2), c_library.ABI, "version 2")
    no_handle(lambda: Program(lstm, size=8), c_library.ABI, "8 bytes")
    first = c_library.Options.device.offset  # programs compiled with the first header have no more
    with Program(lstm, size=first, device="nowhere") as program:
        program.stream()
    longer = (ctypes.c_char * (ctypes.sizeof(c_library.Options) + 8))()
    options = c_library.Options.from_buffer(longer)
    options.size, options.abi = len(longer), 1
    options.onnxruntime = str(c_library.find_onnxruntime()).encode()
    handle = ctypes.c_void_p()
    call = c_library.functions().edgelstm_open
    where = str(lstm).encode()
    c_library.checked(
        call, where, longer, ctypes.byref(handle)
    )  # a newer header, its new options at their default
    c_library.functions().edgelstm_close(handle)
    longer[-1] = b"\1"
    no_handle(
        lambda: c_library.checked(call, where, longer, ctypes.byref(handle)), c_library.ABI, "does not know"
    )


def test_a_runtime_that_is_too_old_is_told_by_its_version(lstm: Path, tmp_path: Path) -> None:
    """One that, asked for the interface of 1.18, has none."""
    source, library = tmp_path / "old.c", tmp_path / "libonnxruntime.so.1.17.3"
    source.write_text(
        'static const void *none(unsigned v) { (void)v; return 0; }\nstatic const char *version(void) { return "1.17.3"; }\n'
        "static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {none, version};\n"
        "const void *OrtGetApiBase(void) { return &base; }\n"
    )
    c_library.built()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    for where in (library, tmp_path):
        no_handle(
            lambda w=where: Program(lstm, onnxruntime=str(w)),
            c_library.LIBRARY,
            "version 1.17.3, 1.18 or later",
        )
    no_handle(lambda: Program(lstm, operators=str(tmp_path / "none.so")), c_library.LIBRARY, "none.so")


def test_operators_that_serve_another_runtime_are_refused(lstm: Path, tmp_path: Path) -> None:
    """ONNX Runtime in Python's module is one, its library another."""
    operators = tmp_path / "operators.so"
    operators.write_bytes(native_library.built().read_bytes())
    session = native_library.session(StepModel.load(lstm).model, operators)
    no_handle(
        lambda: Program(lstm, operators=str(operators)),
        c_library.LIBRARY,
        "another ONNX Runtime in this process",
    )
    assert session.get_inputs()
    (tmp_path / "again.so").write_bytes(operators.read_bytes())
    with Program(lstm, operators=str(tmp_path / "again.so")) as program:
        program.stream().step(np.ones(3, np.float32))


def test_weights_in_another_file_have_to_be_there(lstm: Path) -> None:
    model = onnx.load(lstm)
    onnx.save_model(model, lstm, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with Program(lstm) as program:
        program.stream().step(np.ones(3, np.float32))
    weights = lstm.parent / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    no_handle(lambda: Program(lstm), c_library.MODEL, "can't open")
    weights.unlink()
    no_handle(lambda: Program(lstm), c_library.MODEL, "weights.bin")


def test_a_file_that_no_onnx_model_can_be_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    no_handle(lambda: Program(tmp_path / "large.onnx"), c_library.MODEL, "2147483648 bytes")


def test_paths_are_bytes_and_may_be_relative(
    lstm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "größe 模型"
    folder.mkdir()
    (folder / "мodel.onnx").write_bytes(lstm.read_bytes())
    (folder / "libonnxruntime.so").symlink_to(c_library.find_onnxruntime())
    monkeypatch.chdir(tmp_path)
    for path in (
        folder / "мodel.onnx",
        Path("größe 模型/мodel.onnx"),
        Path("lstm.onnx"),
        Path("./lstm.onnx"),
    ):
        with Program(path, onnxruntime="./größe 模型") as program, Program(lstm) as other:
            assert program.stream().save() == other.stream().save()


def test_a_stream_that_was_freed_is_told_of(lstm: Path) -> None:
    x = np.ones(3, np.float32)
    with Program(lstm, streams=2) as program:
        kept, gone = program.stream(), program.stream()
        program.step([(kept, x), (gone, x)])
        state = kept.save()
        gone.free()
        gone.free()  # the place is not given twice
        for call in (
            gone.reset,
            gone.save,
            lambda: gone.load(state),
            lambda: program.step([(kept, x), (gone, x)]),
        ):
            refused(c_library.INVALID, "was freed", call)
        assert kept.save() == state
        again = program.stream()
        refused(c_library.FULL, "no place", program.stream)
        program.step([(again, x), (kept, x)])  # none of them was left marked as used
        for _ in range(1100):  # more than are remembered
            again.free()
            again = program.stream()


def test_null_in_every_place_is_an_error(lstm: Path) -> None:
    functions, error = c_library.functions(), c_library.Error()
    with Program(lstm) as program:
        stream, handle, state = program.stream(), ctypes.c_void_p(), ctypes.create_string_buffer(4096)
        before, where = stream.save(), ctypes.byref(handle)
        for call in (
            lambda e: functions.edgelstm_open(None, None, where, e),
            lambda e: functions.edgelstm_open(str(lstm).encode(), None, None, e),
            lambda e: functions.edgelstm_stream_new(None, where, e),
            lambda e: functions.edgelstm_stream_new(program.handle, None, e),
            lambda e: functions.edgelstm_reset(None, e),
            lambda e: functions.edgelstm_state_save(None, state, 4096, e),
            lambda e: functions.edgelstm_state_save(stream.handle, None, 4096, e),
            lambda e: functions.edgelstm_state_load(None, before, len(before), e),
            lambda e: functions.edgelstm_state_load(stream.handle, None, 0, e),
            lambda e: functions.edgelstm_step((ctypes.c_void_p * 2)(stream.handle, None), 2, (c_library.Piece * 2)(), None, e),
        ):  # fmt: skip
            error.code, error.what = 0, b""
            assert call(ctypes.byref(error)) == error.code == c_library.INVALID
            assert error.what
            assert call(None) == c_library.INVALID
        assert not handle
        functions.edgelstm_close(None)
        functions.edgelstm_stream_free(None)
        assert functions.edgelstm_state_size(None) == 0
        assert functions.edgelstm_signature_json(None) is None
        assert stream.save() == before


def test_nan_in_a_snapshot_is_a_state_as_any_other(lstm: Path) -> None:
    with Program(lstm) as program:
        stream = program.stream()
        held = io.BytesIO()
        np.savez(held, **{s.name: np.full(s.frame_shape, np.nan, s.dtype) for s in program.signature.states})
        stream.load(held.getvalue())
        assert np.isnan(stream.step(np.ones(3, np.float32))["y"]).all()


def test_the_number_of_streams_is_kept(lstm: Path, tmp_path: Path) -> None:
    with Program(lstm, streams=2) as program:
        first, _ = program.stream(), program.stream()
        refused(c_library.FULL, "no place", program.stream)
        first.free()
        program.stream()
    zoo.lstm(axis=5).save(tmp_path / "five.onnx")
    no_handle(lambda: Program(tmp_path / "five.onnx"), c_library.INVALID, "takes 5 streams")


def test_a_wrong_step_moves_no_stream(lstm: Path) -> None:
    x, big = np.ones(3, np.float32), np.ones(4, np.float32)
    with Program(lstm, streams=2) as program, Program(lstm) as other:
        a, b, c = program.stream(), program.stream(), other.stream()
        program.step([(a, x), (b, x)])
        before = a.save(), b.save(), c.save()
        error = refused(c_library.INVALID, r"input 'x' of stream 1", lambda: program.step([(a, x), (b, big)]))
        assert "16 bytes" in error.what
        assert "float32[3]" in error.what
        refused(c_library.INVALID, "the same stream twice", lambda: program.step([(a, x), (b, x), (a, x)]))
        refused(c_library.INVALID, "two programs", lambda: program.step([(a, x), (c, x)]))
        piece, handles = c_library.Piece(x.ctypes.data, x.nbytes), (ctypes.c_void_p * 1)(a.handle.value)
        short = c_library.Piece(big.ctypes.data, 4)
        step = c_library.functions().edgelstm_step
        for outputs, match in ((short, "output 'y'"), (None, "NULL for the outputs")):
            given = None if outputs is None else ctypes.byref(outputs)
            refused(
                c_library.INVALID,
                match,
                lambda g=given: c_library.checked(step, handles, 1, ctypes.byref(piece), g),
            )
        refused(
            c_library.INVALID, "NULL", lambda: c_library.checked(step, None, 1, ctypes.byref(piece), None)
        )
        assert (a.save(), b.save(), c.save()) == before
        assert step(handles, 0, None, None, None) == c_library.OK
        unwanted = c_library.Piece(None, 0)
        assert step(handles, 1, ctypes.byref(piece), ctypes.byref(unwanted), None) == c_library.OK
        assert a.save() != before[0]
        assert step(handles, 1, None, None, None) == c_library.INVALID  # nobody asks why


def test_snapshots_of_something_else_are_refused_and_the_state_stays(lstm: Path, tmp_path: Path) -> None:
    zoo.lstm(seed=1).save(tmp_path / "other.onnx")
    with Program(lstm) as program, Program(tmp_path / "other.onnx") as other:
        stream, theirs = program.stream(), other.stream()
        stream.step(np.ones(3, np.float32))
        good = stream.save()
        refused(c_library.OTHER_MODEL, "another model", lambda: stream.load(theirs.save()))
        states = dict(Snapshot.load(written(tmp_path, good)))
        name = next(iter(states))

        def plain(save: Any = np.savez, **changed: Array) -> bytes:
            held = io.BytesIO()
            save(held, **{**states, **changed})
            return held.getvalue()

        stream.load(plain())
        for data, match in (
            (b"", "cut short"),
            (b"PK", "cut short"),
            (bytes(5000), "no .npz"),
            (good[:-1], "cut short"),
            (good[: len(good) // 2], "cut short"),
            (good[1:], "damaged|cut short"),
            (plain(np.savez_compressed), "compressed"),
            (plain(more=np.zeros(2)), "5 states, expected 4"),
            (plain(**{name: states[name].astype(np.float64)}), "<f8"),
            (plain(**{name: states[name][:-1]}), "expected float32"),
        ):
            refused(c_library.SNAPSHOT, match, lambda d=data: stream.load(d))
        half = bytearray(good)
        half[good.index(states[name].tobytes())] ^= 1
        refused(c_library.SNAPSHOT, "damaged", lambda: stream.load(bytes(half)))
        assert stream.save() == good
        short = ctypes.create_string_buffer(10)
        save = program.library.edgelstm_state_save
        refused(c_library.INVALID, "10 bytes", lambda: c_library.checked(save, stream.handle, short, 10))


def written(folder: Path, data: bytes) -> Path:
    (folder / "written.npz").write_bytes(data)
    return folder / "written.npz"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stream]:
    path = tmp_path_factory.mktemp("fuzz") / "model.onnx"
    zoo.lstm().save(path)
    with Program(path) as program:
        found = program.stream()
        found.step(np.ones(3, np.float32))
        yield found


def changed(good: bytes, data: st.DataObject) -> bytes:
    """With a few bytes exchanged, taken out or put in."""
    result = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(result) - 1)))
        piece = data.draw(st.binary(max_size=8))
        result[at : at + data.draw(st.integers(0, 8))] = piece
    return bytes(result)


def taken(stream: Stream, data: bytes) -> bool:
    """Whether it was; if not, nothing has moved."""
    before = stream.save()
    try:
        stream.load(data)
    except Refused as error:
        code = error.code
    else:
        return True
    assert code in (c_library.SNAPSHOT, c_library.OTHER_MODEL)
    assert stream.save() == before
    return False


def as_python_takes(stream: Stream, data: bytes, folder: Path) -> None:
    """What is refused moves nothing; what is taken gives the state that Python gets from it."""
    good = stream.save()
    if taken(stream, data):
        found, theirs = (Snapshot.load(written(folder, d)) for d in (stream.save(), data))
        assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in theirs.items()}
        stream.load(good)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_files(stream: Stream, data: st.DataObject, tmp_path_factory: Any) -> None:
    as_python_takes(stream, changed(stream.save(), data), tmp_path_factory.getbasetemp())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_behind_right_checksums(stream: Stream, data: st.DataObject, tmp_path_factory: Any) -> None:
    with zipfile.ZipFile(io.BytesIO(stream.save())) as parts:
        entries = [(name, parts.read(name)) for name in parts.namelist()]
    which = data.draw(st.integers(0, len(entries) - 1))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for k, (name, content) in enumerate(entries):
            file.writestr(name, changed(content, data) if k == which else content)
    as_python_takes(stream, held.getvalue(), tmp_path_factory.getbasetemp())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=700))
def test_errors_are_text_whatever_they_quote(name: bytes) -> None:
    """A file's name is any bytes; the message is cut between two characters."""
    handle, error = ctypes.c_void_p(), c_library.Error()
    where = b"/nowhere/" + name.replace(b"\0", b"")
    c_library.functions().edgelstm_open(where, None, ctypes.byref(handle), ctypes.byref(error))
    said = error.what.decode()
    assert said.isprintable() or not name.decode(errors="replace").isprintable()
    assert not any(c < " " or "\x7f" <= c < "\xa0" for c in said)
    text = where.decode(errors="ignore")
    if text.encode() == where and text.isprintable() and len(where) < 480:
        assert text in said
