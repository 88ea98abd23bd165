"""torch as a backend, under the contract that every backend keeps."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch_zoo as zoo  # noqa: E402

from edgelstm.frontends.torch.program import TorchProgram  # noqa: E402
from edgelstm.frontends.torch.recognise import as_step  # noqa: E402

CASES = {
    "stacked layers": lambda: as_step(zoo.Forecaster(), (3,)),
    "integer state": lambda: as_step(zoo.Counter(), {"x": (2,), "gain": (1,)}),
    "maps": lambda: as_step(zoo.UserConvLSTMCell(), (2, 5, 4)),
}


@pytest.fixture(params=sorted(CASES))
def program(request: pytest.FixtureRequest) -> TorchProgram:
    torch.manual_seed(0)
    return TorchProgram(CASES[request.param](), streams=4)


def frames(program: TorchProgram, rng: np.random.Generator, count: int) -> list[dict[str, np.ndarray]]:
    return [
        {t.name: rng.normal(size=t.frame_shape).astype(t.dtype) for t in program.signature.inputs}
        for _ in range(count)
    ]


def test_idle_rows_keep_their_bits_and_nothing_leaks(program: TorchProgram) -> None:
    rng = np.random.default_rng(0)
    state = program.new_state()
    poison = {
        s.name: np.full(s.frame_shape, np.nan if s.dtype.startswith("f") else -1, s.dtype)
        for s in program.signature.states
    }
    program.write_state(state, 1, poison)
    for active in ([0, 2, 3], [0], [2, 3], [0, 3], [3], []):
        before = [program.read_state(state, row) for row in range(4)]
        outputs = program.step(frames(program, rng, len(active)), state, active)
        assert len(outputs) == len(active)
        assert all(np.isfinite(a).all() and not a.flags.writeable for o in outputs for a in o.values())
        for row in range(4):
            after = program.read_state(state, row)
            same = all(after[n].tobytes() == before[row][n].tobytes() for n in after)
            assert same == (row not in active), (row, active)


def test_rows_equal_a_lone_run(program: TorchProgram) -> None:
    rng = np.random.default_rng(1)
    state, lone = program.new_state(), program.new_state()
    for spec in program.signature.states:
        np.testing.assert_array_equal(program.read_state(state, 3)[spec.name], spec.initial_value())
    for active in ([0, 1, 2], [1], [0, 1], [1, 3]):
        batch = frames(program, rng, len(active))
        together = program.step(batch, state, active)[active.index(1)]
        alone = program.step([batch[active.index(1)]], lone, [0])[0]
        for spec in program.signature.outputs:
            assert together[spec.name].shape == spec.frame_shape
            np.testing.assert_allclose(together[spec.name], alone[spec.name], rtol=1e-5, atol=1e-6)
    program.close()
    program.close()


@pytest.mark.thorough
def test_compiled() -> None:
    """torch.compile gives the same numbers, where a compiler is there."""
    torch.manual_seed(0)
    step = as_step(torch.nn.LSTMCell(3, 4), (3,))
    eager, compiled = TorchProgram(step), TorchProgram(step, compile=True)
    a, b = eager.new_state(), compiled.new_state()
    rng = np.random.default_rng(2)
    for _ in range(3):
        batch = frames(eager, rng, 1)
        try:
            y = compiled.step(batch, b, [0])[0]["y"]
        except Exception as error:  # no C++ compiler on this machine
            pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
        np.testing.assert_allclose(y, eager.step(batch, a, [0])[0]["y"], rtol=1e-5, atol=1e-6)
