"""Run by test_native_operators.py in a process of its own: the kernels that $EDGELSTM_NATIVE_ISA names, on a few cells."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from pathlib import Path

import numpy as np
from test_native_conv_gru import check_gru_maps
from test_native_dense import check_some
from test_native_maps import check_maps
from test_native_operators import Lstm, model
from test_native_weights import KINDS, Gru
from test_native_weights import Lstm as WideLstm

import native_library
import zoo
from edgelstm.graph.gates import GateVariant
from edgelstm.runtime.native.session import IS_BAD
from edgelstm.runtime.runner import Runner
from native_library import naive
from tolerances import assert_close


def main(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    loaded.edgelstm_native_isa.restype = ctypes.c_char_p
    print(name := loaded.edgelstm_native_isa().decode())
    variants = (
        GateVariant(),
        GateVariant(peephole=True, gate="hard_sigmoid", cell_clip=0.5),
        GateVariant(coupled=True),
    )
    for variant, inputs, units, rows in itertools.product(variants, (3, 17), (1, 13, 37), (1, 2, 5)):
        cell = Lstm(variant, inputs, units, rows)
        for a, b in zip(
            native_library.session(cell.model, library).run(None, cell.feeds), cell.expected(), strict=True
        ):
            assert_close(a, b, np.float32, k=64 + inputs + units)
    for after, units, rows in itertools.product((False, True), (1, 13, 37), (1, 2, 5)):
        rng = np.random.default_rng(units)
        w, r, b = (
            rng.normal(0, 0.5, s).astype(np.float32)
            for s in ((3 * units, 5), (3 * units, units), (6 * units,))
        )
        feeds = {n: rng.normal(size=(rows, s)).astype(np.float32) for n, s in (("x", 5), ("h", units))}
        made = model("FusedGRUCell", feeds, {"w": w, "r": r, "b": b}, 1, linear_before_reset=int(after))
        (found,) = native_library.session(made, library).run(None, feeds)
        assert_close(
            found,
            naive.gru_cell(*(a.astype(float) for a in (*feeds.values(), w, r, b)), after=after),
            np.float32,
            k=64 + units,
        )
    for kind, units, rows in itertools.product(KINDS, (1, 13, 37), (1, 2, 5)):
        for variant in (GateVariant(), GateVariant(coupled=True)):
            lstm = WideLstm(kind, variant, 17, units, rows)
            for a, b in zip(
                native_library.session(lstm.model, library).run(None, lstm.feeds),
                lstm.expected(),
                strict=True,
            ):
                assert_close(a, b, np.float32, k=64 + 17 + units)
        for after in (False, True):
            gru = Gru(kind, after, 5, units, rows)
            (found,) = native_library.session(gru.model, library).run(None, gru.feeds)
            assert_close(found, gru.expected(), np.float32, k=64 + units)
    check_some(library)
    check_maps(library)
    check_gru_maps(library)
    if name == os.environ["EDGELSTM_NATIVE_ISA"]:  # else a program refuses to open
        check_looks(library)
    print("good")


def check_looks(library: Path) -> None:
    """One bad number wherever it lies, in pieces of few vectors, full and not."""
    program = native_library.opened(zoo.lstm().to_bytes(), library, native=True)
    with Runner(program) as runner:
        runner.glance()
        runner.stream("s").step(np.zeros(3, np.float32))
        steps = next(iter(runner._state.calls.values())).steps
        for size in (*range(1, 40), 63, 64, 65, 100, 128):
            array = np.full(size, 2, np.float32)
            steps.look([(array, -2.0, 2.0)])
            assert steps.run() == 0
            for place, bad in itertools.product(range(size), (np.nan, -np.inf, 2.1, -2.1)):
                array[place] = bad
                assert steps.run() == IS_BAD, (size, place, bad)
                array[place] = -2
            assert steps.run() == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
