"""A pytest plugin: why tests were skipped, and an end that fails where they need not have been.

    pytest -p gaps --no-gaps

``make test`` installs every extra, so what is skipped for want of a package is a gap; so is what ``../shared`` beside the
checkout would provide. What may be missing on any machine stands in :data:`ALLOWED`.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

#: Reasons that hold on a complete machine too: hardware, a compiler for another machine, and parts of the system.
ALLOWED = (
    r"needs an NVIDIA GPU|needs ONNX Runtime for GPUs|needs tensorrt$|no GPU|no NVIDIA driver|found no library libcuda|needs? a GPU|[Ii]s for GPUs|PyTorch for GPUs",
    r"[Tt]here is a GPU|a driver is here",
    r"nvcc|NVRTC|libnvrtc",
    r"cmake or g\+\+ is not here|no C\+\+ compiler",
    r"aarch64|qemu",
    r"this processor lacks it: its kernels are",  # AVX-512 or AVX-VNNI
    r"triton is not installed",  # torch for the CPU brings none
    r"hadolint is not installed|make plugin-check|make image-check|make [a-z-]+ runs it|EDGELSTM_TRY_IMAGE",
    r"no RTSP server of GStreamer|no GStreamer for Python|no GStreamer to build with",
    r"no Chromium on this machine|apt install |needs ALSA's configuration",  # of the system
    r"no systemd-analyze here|openssl is not installed|no openssl to|or openssl|pkg-config or cmake is not here",
    r"neither a file system of its own nor a limit|PyAV without (ALSA|libx264)|no /proc on this machine",
    r"mosquitto is not installed|pysteps is not installed",
    r"this kernel does not list children",
    r"TensorRT itself stores|V2 plugins are not asked",
    r"Python 3.11 or later",
    r"torch.compile does not work here",
    r"real inputs are not here",  # only where ../shared is not: the fixture looks first
    r"no headers of TensorRT|headers of TensorRT .* are not here|headers of ONNX Runtime are not here|no TensorRT headers",
    r"is not installed: TensorRT|TensorRT is not",
    r"it has nothing to warm up|it takes rows by name only",  # the C library
)
SHARED_REASONS = re.compile(
    r"real inputs are not here|TensorRT headers|headers of (TensorRT|ONNX Runtime)|(TensorRT|ONNX Runtime)'s headers|is not here: .*shared"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-gaps", action="store_true", help="fail where a test was skipped without need")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-gaps") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Gaps(config), "gaps-report")


class Gaps:
    """Counts the reasons of all skips; with xdist in the process that gathers the reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.reasons: Counter[str] = Counter()
        self.shared = (config.rootpath.parent / "shared").is_dir()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1

    def gaps(self) -> dict[str, int]:
        """Reasons that need not have been."""
        found = {}
        for reason, count in self.reasons.items():
            allowed = any(re.search(pattern, reason) for pattern in ALLOWED)
            if not allowed or (self.shared and SHARED_REASONS.search(reason)):
                found[reason] = count
        return found

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.gaps() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.reasons:
            terminalreporter.section("skipped, and why")
        for reason, count in self.reasons.most_common():
            terminalreporter.write_line(f"{count:5d}  {reason[:200]}")
        for reason, count in self.gaps().items():
            terminalreporter.write_line(
                f"GAP: {count} skipped though this machine has what they need: {reason[:200]}", red=True
            )
