"""Fixtures for every test."""

from __future__ import annotations

import gc
import os
import sys
from functools import cache, wraps
from pathlib import Path

import hypothesis
import pytest

from command_line import Run

# Before anything imports NumPy or torch: their thread pools would fight with ONNX Runtime's for two cores.
for pool in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
# Tests that import ONNX Runtime themselves report nothing either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Whether our operators for ONNX Runtime are built on this machine changes no test: those that are about them ask for them.
os.environ["EDGELSTM_NATIVE"] = "0"

# How long an example takes says how busy the machine is, nothing about the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
#: One in so many examples of a property is tried where properties are not what is run for.
FEW = 3


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A third of each property's examples in `make test`, other ones every time; all of them in `make thorough`."""
    done = set()
    for item in items:
        test = getattr(item, "obj", None)
        if not hypothesis.is_hypothesis_test(test):
            continue
        if config.option.markexpr == "thorough":
            if item.get_closest_marker("faults") is None:
                item.add_marker("thorough")
            continue
        test = getattr(test, "__func__", test)
        machine = hasattr(test, "_hypothesis_state_machine_class")
        owner, name = (item.cls, "settings") if machine else (test, "_hypothesis_internal_use_settings")
        whole = getattr(owner, name, None)
        if whole is not None and owner not in done:  # None: another hypothesis keeps them elsewhere
            done.add(owner)
            few = max(whole.max_examples // FEW, min(whole.max_examples, FEW))
            setattr(owner, name, hypothesis.settings(whole, max_examples=few))


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """On a fresh checkout every worker of pytest-xdist would rewrite the asserts of all tests, 13 s of its time: each begins with
    a part of the files and finds the other parts in the cache."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or sys.dont_write_bytecode:
        return
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    try:
        from _pytest.assertion import rewrite

        state = session.config.stash[rewrite.assertstate_key]
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))[number::count]:
            cached = rewrite.get_cache_dir(path) / (path.stem + rewrite.PYC_TAIL)
            if rewrite._read_pyc(path, cached) is None and rewrite.try_makedirs(cached.parent):
                facts, code = rewrite._rewrite_test(path, session.config)
                rewrite._write_pyc(state, code, facts, cached)
    except (ImportError, AttributeError, KeyError, TypeError):  # another pytest: each does all of them
        return


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it again and again took a sixth of an export's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    # Python counts what is frozen one by one, a twentieth of a second for every service that starts and asks whether anything is.
    count = gc.get_freeze_count
    gc.get_freeze_count = wraps(count)(lambda: 1)


def pytest_runtest_setup() -> None:
    if "torch.onnx" in sys.modules:
        _make_operators_once()


@cache
def _make_operators_once() -> None:
    """PyTorch's exporter builds its tables of operators anew at every export, of which there are hundreds here; nobody changes them."""
    try:
        from torch._export import utils
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        of_a_namespace = utils._collect_all_valid_cia_ops_for_namespace
    except (ImportError, AttributeError):  # another PyTorch has it elsewhere
        return
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))
    utils._collect_all_valid_cia_ops_for_namespace = cache(of_a_namespace)


#: Real data and models that the project does not ship, beside the checkout.
SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(part: str) -> Path:
    path = SHARED / part
    if not path.is_dir():
        pytest.skip(
            f"real inputs are not here: {Path('..') / 'shared' / part} beside the checkout is missing"
        )
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real data and models; the test is skipped without it."""
    return _shared("")


@pytest.fixture(scope="session")
def radar_dir() -> Path:
    """92 KNMI radar composites, 2010-08-26 00:00 to 07:35 UTC."""
    return _shared("data/knmi-2010-08-26")


@pytest.fixture(scope="session")
def dashcam_video() -> Path:
    """221 frames of 960 x 540 at 25 frames a second."""
    return _shared("data/dashcam") / "solidWhiteRight.mp4"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command as the console script does; gives exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from edgelstm import cli
        from edgelstm.cli import shared

        monkeypatch.setattr(sys, "argv", ["edgelstm", *map(str, arguments)])
        monkeypatch.setattr(shared.err, "_width", 1000)
        monkeypatch.setattr(shared.out, "_width", 200)
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    monkeypatch.chdir(tmp_path)
    return call
