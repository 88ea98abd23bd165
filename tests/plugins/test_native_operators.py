"""Our operators for ONNX Runtime against the equations in float64, as the library that is shipped computes them."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import native_library
from edgelstm.engine import native_build
from edgelstm.graph.gates import GateVariant
from native_library import naive
from tolerances import assert_close

#: Below this, numbers are denormal.
LEAST = 2.0**-126
SIZES = st.sampled_from([1, 2, 3, 5, 7, 13, 16, 17, 31, 37, 67])
VARIANTS = st.builds(
    lambda hard, peephole, candidate, output, clip, coupled: GateVariant(
        peephole=peephole, gate="hard_sigmoid" if hard else "sigmoid", candidate=candidate, output=output,
        cell_clip=clip, coupled=coupled, **({"alpha": 1 / 6} if hard else {}),
    ),
    st.booleans(), st.booleans(), st.sampled_from(["tanh", "relu"]), st.sampled_from(["tanh", "relu"]),
    st.sampled_from([None, 0.75]), st.booleans(),
)  # fmt: skip
Array = np.ndarray[Any, Any]


def attributes(variant: GateVariant) -> dict[str, int | float]:
    """As the operators take them."""
    return {name: value for name, value in variant.plugin_fields().items() if name != "coded"}


def model(
    op: str, inputs: dict[str, Array], weights: dict[str, Array], outputs: int, **given: Any
) -> onnx.ModelProto:
    """One node; inputs and weights in its order ("" keys stand for what is left out)."""
    names = [name if name[0] != "_" else "" for name in (*inputs, *weights)]
    floats = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * a.ndim)
        for n, a in inputs.items()
        if n[0] != "_"
    ]
    results = [f"y{k}" for k in range(outputs)]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, names, results, domain="edgelstm", **given)],
            "one",
            floats,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
            [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items() if n[0] != "_"],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("edgelstm", 1)],
        ir_version=9,
    )


class Lstm:
    """One LSTM cell with random weights: as a model, and as the equations in float64."""

    def __init__(
        self, variant: GateVariant, inputs: int, units: int, rows: int, seed: int = 0, **given: Any
    ) -> None:
        rng = np.random.default_rng(seed)
        gates = len(variant.gates)
        self.variant = variant
        self.w = rng.normal(0, 0.5, (gates * units, inputs + units)).astype(np.float32)
        self.b = rng.normal(0, 0.5, gates * units).astype(np.float32)
        self.p = [rng.normal(0, 0.5, units).astype(np.float32) for _ in variant.inputs[2:]]
        self.feeds = {
            name: rng.normal(size=(rows, size)).astype(np.float32)
            for name, size in (("x", inputs), ("h", units), ("c", units))
        }
        weights: dict[str, Array] = {"w": self.w, "b": self.b}
        weights |= dict(zip(variant.inputs[2:], self.p, strict=True))
        if variant.peephole and variant.coupled:
            weights = {"w": self.w, "b": self.b, "p_i": self.p[0], "_": self.p[0], "p_o": self.p[1]}
        self.model = model("FusedLSTMCell", self.feeds, weights, 2, **attributes(variant), **given)
        if given.get("added"):  # the last input: what is added to the sums, as windows have it
            node, graph = self.model.graph.node[0], self.model.graph
            node.input.extend([""] * (8 - len(node.input)) + ["z"])
            graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, None]))
            self.feeds["z"] = rng.normal(size=(rows, gates * units)).astype(np.float32)

    def expected(self) -> tuple[Array, Array]:
        x, h, c, *z = (a.astype(float) for a in self.feeds.values())
        w, b, *p = (a.astype(float) for a in (self.w, self.b, *self.p))
        return naive.lstm_cell(self.variant, x, h, c, w, b + (z[0] if z else 0), *p)


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@settings(max_examples=25, deadline=None)
@given(
    variant=VARIANTS,
    inputs=SIZES,
    units=SIZES,
    rows=st.sampled_from([1, 2, 3, 4, 5, 11]),
    added=st.integers(0, 1),
)
def test_an_lstm_cell_gives_what_the_equations_give(
    library: Path, variant: GateVariant, inputs: int, units: int, rows: int, added: int
) -> None:
    cell = Lstm(variant, inputs, units, rows, added=added)
    found = native_library.session(cell.model, library).run(None, cell.feeds)
    for a, b in zip(found, cell.expected(), strict=True):
        assert_close(a, b, np.float32, k=64 + inputs + units)


@settings(max_examples=25, deadline=None)
@given(after=st.booleans(), inputs=SIZES, units=SIZES, rows=st.sampled_from([1, 2, 3, 4, 5, 11]))
def test_a_gru_cell_gives_what_the_equations_give(
    library: Path, after: bool, inputs: int, units: int, rows: int
) -> None:
    rng = np.random.default_rng(inputs * 100 + units)
    w, r, b = (
        rng.normal(0, 0.5, s).astype(np.float32)
        for s in ((3 * units, inputs), (3 * units, units), (6 * units,))
    )
    feeds = {n: rng.normal(size=(rows, s)).astype(np.float32) for n, s in (("x", inputs), ("h", units))}
    made = model("FusedGRUCell", feeds, {"w": w, "r": r, "b": b}, 1, linear_before_reset=int(after))
    (found,) = native_library.session(made, library).run(None, feeds)
    assert_close(
        found,
        naive.gru_cell(*(a.astype(float) for a in (*feeds.values(), w, r, b)), after=after),
        np.float32,
        k=64 + inputs + units,
    )


@settings(max_examples=25, deadline=None)
@given(
    variant=VARIANTS,
    channels=SIZES,
    rows=st.integers(1, 3),
    spatial=st.sampled_from([(), (1,), (5,), (3, 7), (1, 1), (2, 3, 5)]),
    whole=st.booleans(),
)
def test_fused_gates_gives_what_the_equations_give(
    library: Path, variant: GateVariant, channels: int, rows: int, spatial: tuple[int, ...], whole: bool
) -> None:
    rng = np.random.default_rng(channels)
    feeds: dict[str, Array] = {
        "z": rng.normal(0, 2, (rows, len(variant.gates) * channels, *spatial)),
        "c": rng.normal(size=(rows, channels, *spatial)),
    }
    shape = (channels, *(spatial if whole else [1] * len(spatial)))
    peepholes = {name: rng.normal(size=shape) for name in variant.inputs[2:]}
    feeds |= peepholes
    if variant.peephole and variant.coupled:
        feeds = {**{n: feeds[n] for n in ("z", "c", "p_i")}, "_": feeds["p_i"], "p_o": feeds["p_o"]}
    feeds = {name: a.astype(np.float32) for name, a in feeds.items()}
    made = model("FusedGates", feeds, {}, 2, **attributes(variant))
    feeds.pop("_", None)
    found = native_library.session(made, library).run(None, feeds)
    f = {name: a.astype(float) for name, a in feeds.items()}
    expected = naive.fused_gates(variant, f["z"], f["c"], *(f[name] for name in peepholes))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, np.float32)


def test_what_may_be_left_out_is_zero(library: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=(2, 5)).astype(np.float32) for n in ("x", "h", "c")}
    w, r = (rng.normal(0, 0.5, (rows, 5)).astype(np.float32) for rows in (20, 15))
    x, h, c = (a.astype(float) for a in feeds.values())
    joined = np.concatenate([w, w], axis=1)
    cell = model("FusedLSTMCell", feeds, {"w": joined}, 2)
    for a, b in zip(
        native_library.session(cell, library).run(None, feeds),
        naive.lstm_cell(GateVariant(), x, h, c, joined.astype(float), np.zeros(20)),
        strict=True,
    ):
        assert_close(a, b, np.float32)
    one = {"x": feeds["x"], "_": feeds["x"], "c": feeds["c"]}  # no h: all columns are x's
    found = native_library.session(model("FusedLSTMCell", one, {"w": w}, 2, recurrent=0), library).run(
        None, {n: feeds[n] for n in ("x", "c")}
    )
    assert_close(found[0], GateVariant().reference(x @ w.T.astype(float), c)[0], np.float32)
    both = {n: feeds[n] for n in ("x", "h")}
    (y,) = native_library.session(model("FusedGRUCell", both, {"w": w[:15], "r": r}, 1), library).run(
        None, both
    )
    assert_close(
        y, naive.gru_cell(x, h, w[:15].astype(float), r.astype(float), np.zeros(30), after=False), np.float32
    )
    empty = {n: a[:0] for n, a in feeds.items()}
    assert [a.shape for a in native_library.session(cell, library).run(None, empty)] == [(0, 5), (0, 5)]


@settings(max_examples=25, deadline=None)
@given(
    variant=VARIANTS,
    kind=st.sampled_from([np.int8, np.uint8]),
    channels=SIZES,
    spatial=st.sampled_from([(), (3, 7), (33,)]),
)
def test_gates_of_codes_give_what_the_equations_give(
    library: Path, variant: GateVariant, kind: Any, channels: int, spatial: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(channels)
    gates = len(variant.gates)
    limits = np.iinfo(kind)
    z = rng.integers(limits.min, limits.max + 1, (2, gates * channels, *spatial)).astype(kind)
    c = rng.normal(size=(2, channels, *spatial)).astype(np.float32)
    peepholes = [
        rng.normal(size=(channels, *[1] * len(spatial))).astype(np.float32) for _ in variant.inputs[2:]
    ]
    scale = rng.uniform(0.01, 0.05, gates).astype(np.float32)
    zero = rng.integers(limits.min, limits.max + 1, gates).astype(kind)
    weights = dict(zip(variant.inputs[2:], peepholes, strict=True))
    names = ["z", "c", *(name if name in weights else "" for name in ("p_i", "p_f", "p_o")), "scale", "zero"]
    made = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(
                    "FusedGatesI8" if kind is np.int8 else "FusedGatesU8",
                    names, ["h", "c_out"], domain="edgelstm", **attributes(variant),
                )
            ],
            "one",
            [
                helper.make_tensor_value_info("z", helper.np_dtype_to_tensor_dtype(z.dtype), z.shape),
                helper.make_tensor_value_info("c", TensorProto.FLOAT, c.shape),
            ],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("h", "c_out")],
            [numpy_helper.from_array(a, n) for n, a in {**weights, "scale": scale, "zero": zero}.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("edgelstm", 1)],
        ir_version=9,
    )  # fmt: skip
    found = native_library.session(made, library).run(None, {"z": z, "c": c})
    coded = replace(variant, coded=True)
    expected = naive.fused_gates(
        coded, z, c.astype(float), *(p.astype(float) for p in peepholes), scale.astype(float), zero
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, np.float32)


def test_sigmoid_and_tanh_are_within_three_ulp_of_float64_and_pass_nan(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    loaded.edgelstm_native_activate.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
    ]
    bits = np.arange(0, 2**32, 40009, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([bits.view(np.float32), np.linspace(-20, 20, 100_003, dtype=np.float32)])
    x = np.concatenate([x[np.isfinite(x)], np.array([0, -0.0, np.inf, -np.inf], np.float32)])
    d = x.astype(float)
    with np.errstate(over="ignore", under="ignore"):
        for kind, exact in enumerate((1 / (1 + np.exp(-d)), np.tanh(d))):
            y = np.empty_like(x)
            loaded.edgelstm_native_activate(kind, x.ctypes.data, y.ctypes.data, x.size)
            ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(float)
            assert (np.abs(y - exact) <= 3 * ulp + LEAST).all()
            assert np.array_equal(np.signbit(y), np.signbit(exact))
            assert kind or not ((y != 0) & (y < LEAST)).any()  # denormal numbers are slow
            nan = np.full(3, np.nan, np.float32)
            loaded.edgelstm_native_activate(kind, nan.ctypes.data, nan.ctypes.data, 3)
            assert np.isnan(nan).all()


def test_a_huge_state_is_kept_and_does_not_overflow(library: Path) -> None:
    cell = Lstm(GateVariant(), 3, 5, 2)
    cell.feeds["c"][:] = [[3.3e38, -3.3e38, 1e38, -2e38, 3e30]] * 2
    for a, b in zip(
        native_library.session(cell.model, library).run(None, cell.feeds), cell.expected(), strict=True
    ):
        assert np.isfinite(a).all()
        assert_close(a, b, np.float32)


@pytest.mark.parametrize("units", [5, 37])
def test_a_stream_has_the_same_bits_alone_and_beside_others_even_where_those_are_nan(
    library: Path, units: int
) -> None:
    cell = Lstm(GateVariant(peephole=True), 7, units, 11)
    session = native_library.session(cell.model, library)
    together = session.run(None, cell.feeds)
    broken = {name: a.copy() for name, a in cell.feeds.items()}
    broken["h"][3] = np.nan
    beside_nan = session.run(None, broken)
    for row in range(11):
        alone = session.run(None, {name: a[row : row + 1] for name, a in cell.feeds.items()})
        for a, b, c in zip(alone, together, beside_nan, strict=True):
            assert a[0].tobytes() == b[row].tobytes()
            assert np.isnan(c[row]).all() if row == 3 else c[row].tobytes() == b[row].tobytes()


def test_parts_on_several_threads_give_the_same_bits(library: Path) -> None:
    one, two = (Lstm(GateVariant(), 64, 257, 3, threads=threads) for threads in (1, 2))
    for a, b in zip(
        native_library.session(one.model, library).run(None, one.feeds),
        native_library.session(two.model, library, threads=2).run(None, two.feeds),
        strict=True,
    ):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("x", (2, 8), "h is [2, 5], expected [2, 4]"),
        ("h", (3, 5), "h is [3, 5], expected [2, 5]"),
        ("h", (1, 5), "h is [1, 5], expected [2, 5]"),
        ("c", (2, 6), "c is [2, 6], expected [2, 5]"),
        ("c", (2, 4), "c is [2, 4], expected [2, 5]"),
        ("x", (2, 20), "x is [2, 20], W takes 12 inputs"),
        ("x", (2, 7, 1), "x has to be [N, inputs]"),
    ],
)
def test_wrong_sizes_are_one_error_that_names_them(
    library: Path, name: str, shape: tuple[int, ...], said: str
) -> None:
    cell = Lstm(GateVariant(), 7, 5, 2)
    for value in cell.model.graph.input:
        value.type.tensor_type.ClearField("shape")
    session = native_library.session(cell.model, library)
    with pytest.raises(Exception, match="FusedLSTMCell") as caught:
        session.run(None, {**cell.feeds, name: np.zeros(shape, np.float32)})
    assert said in str(caught.value)
    assert np.isfinite(session.run(None, cell.feeds)[0]).all()


def test_weights_that_do_not_fit_are_refused_when_the_graph_is_opened(library: Path) -> None:
    cell = Lstm(GateVariant(), 7, 5, 2)
    cell.model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(19, np.float32), "b"))
    with pytest.raises(Exception, match=r"b is \[19\], expected \[20\]"):
        native_library.session(cell.model, library)


@pytest.mark.skipif(
    platform.machine() != "x86_64",
    reason="aarch64 and others have one set of kernels",
)
@pytest.mark.parametrize(
    "instructions",
    [
        # Seconds each, a process of its own; processors that take these as they are have them in every other test.
        *(pytest.param(name, marks=pytest.mark.thorough) for name in ("avx512", "avx2vnni")),
        "avx2",
        "portable",
    ],
)
def test_the_kernels_of_older_processors_give_the_same(library: Path, instructions: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("native_isa.py")), str(library)]
    paths = [str(Path(__file__).parents[1]), str(native_library.ROOT), str(Path(__file__).parent)]
    environment = {**os.environ, "EDGELSTM_NATIVE_ISA": instructions, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    if instructions in ("avx512", "avx2vnni") and instructions != done.stdout.split()[0]:
        pytest.skip(f"this processor lacks it: its kernels are {done.stdout.split()[0]}")
    assert done.stdout.split() == [instructions, "good"]


@pytest.mark.thorough
def test_the_kernels_for_arm_give_the_same_in_an_emulator(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no compiler and emulator for aarch64: apt install g++-aarch64-linux-gnu qemu-user")
    ((name, table, lanes, rows, flags),) = native_build.VARIANTS["aarch64"]
    kinds = [f"-DLANES={lanes}", f"-DROWS={rows}", f'-DNAME="{name}"', f"-DKERNELS={table}", *flags]
    sources = [str(native_library.SOURCES / s) for s in ("kernels.cpp", "packed.cpp", "winograd.cpp")]
    dot = [
        compiler,
        *native_build.FLAGS,
        *native_build.DOT_FLAGS["aarch64"][0],
        "-c",
        str(native_library.SOURCES / "dot.cpp"),
    ]
    done = subprocess.run([*dot, "-o", str(tmp_path / "dot.o")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sources.append(str(tmp_path / "dot.o"))
    alone = [str(Path(__file__).with_name("native_alone.cpp")), "-o", str(tmp_path / "alone")]
    command = [
        compiler,
        *native_build.FLAGS,
        *kinds,
        f"-I{native_library.SOURCES}",
        "-static",
        *sources,
        *alone,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([emulator, str(tmp_path / "alone")], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("neon and neondot good"), done.stdout


def test_the_places_in_onnx_runtime_s_interface_are_those_of_its_header(tmp_path: Path) -> None:
    header = native_library.ROOT.parent / "shared" / "onnxruntime-headers" / "1.21"
    if not header.is_dir():
        pytest.skip(
            "headers of ONNX Runtime are not here: ../shared/onnxruntime-headers beside the checkout is missing"
        )
    if reason := native_library.missing():
        pytest.skip(reason)
    text = """
        #include <onnxruntime_c_api.h>
        #include "ort_abi.h"
        #define X(place, name, ...) static_assert(offsetof(OrtApi, name) == place * sizeof(void*), #name);
        EDGELSTM_ORT_FUNCTIONS(X)
        static_assert(sizeof(OrtCustomOp) == sizeof(ort::CustomOp), "OrtCustomOp");
        static_assert(offsetof(OrtCustomOp, CreateKernelV2) == offsetof(ort::CustomOp, CreateKernelV2), "");
        static_assert(offsetof(OrtCustomOp, KernelComputeV2) == offsetof(ort::CustomOp, KernelComputeV2), "");
        static_assert(offsetof(OrtCustomOp, KernelDestroy) == offsetof(ort::CustomOp, KernelDestroy), "");
        static_assert(offsetof(OrtCustomOp, GetEndVersion) == offsetof(ort::CustomOp, GetEndVersion), "");
        static_assert(offsetof(OrtCustomOp, ReleaseAliasMap) == offsetof(ort::CustomOp, ReleaseAliasMap), "");
        static_assert(ORT_INVALID_ARGUMENT == int(ort::Code::kInvalidArgument) && ORT_FAIL == int(ort::Code::kFail), "");
        static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == ort::kFloat, "");
        static_assert(INPUT_OUTPUT_OPTIONAL == int(ort::Presence::kOptional), "");
        """
    source = tmp_path / "abi.cpp"
    source.write_text(text)
    command = [
        "c++",
        "-std=c++17",
        "-fsyntax-only",
        f"-I{header}",
        f"-I{native_library.SOURCES}",
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
