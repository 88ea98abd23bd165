"""What the first minutes on a lent GPU are spent on, most telling first: one line a slice.

A slice is a command with a time limit of its own. Lines of JSON that it prints are its rows: those with ``microseconds`` are times,
those with ``figure``, ``measured`` and ``aim`` are figures, all others are kept as they are. ``rehearsal`` is run in its place where there is
no GPU. In both: {python}, {gpu} (this folder), {device} (cuda or cpu), {quick}, {work} (a temporary folder), {carried} (what carry.py gathered).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Whatever plugins of pytest the project's own options need may be missing.
PYTEST = "{python} -m pytest -o addopts= -q --tb=short -p no:cacheprovider"
STEPS = "{python} {gpu}/run.py steps --lines --device {device} {quick} --results {work}/steps"
#: Small cases on the processor.
TRY = STEPS + " --streams 2 --rounds 1"
#: The real arguments, read and no more.
DRY = STEPS.replace("--device {device} {quick}", "--dry")
FEW = " --rounds 5 --contestants|"
ORT = "ONNX Runtime;edgelstm, ONNX Runtime;torch, graphs"


@dataclass(frozen=True)
class Slice:
    """seconds: its limit. needs: programs (a name), and files (a path), without which it says that they are missing.

    paths: environment variables with a path each. site: folder of packages put before all others.
    """

    name: str
    seconds: float
    command: str
    rehearsal: str | None = None
    needs: tuple[str, ...] = ()
    paths: tuple[tuple[str, str], ...] = ()
    site: str | None = None


# fmt: off
def _steps(name: str, seconds: float, options: str, contestants: str, tried: str = "", **more: Any) -> Slice:
    """A race. tried: options of a small one for the rehearsal; without them only the arguments are read."""
    rehearsal = f"{TRY} {tried} --contestants|{contestants}" if tried else f"{DRY} {options}{FEW}{contestants}"
    return Slice(name, seconds, f"{STEPS} {options}{FEW}{contestants}", rehearsal, **more)


SLICES: tuple[Slice, ...] = (
    Slice("environment", 40, "{python} {gpu}/ceiling.py {device} {quick}"),
    Slice("build", 90, "{python} {gpu}/standalone.py build {work} {carried}", "{python} {gpu}/standalone.py build {work} {carried} --rehearse"),
    Slice("kernels: checks", 60, "{python} {gpu}/standalone.py run {work}/bench --checks-only"),
    Slice("runner on the driver", 90, PYTEST + " -s {tests}/gpu/test_driver_engine.py"),
    Slice("kernels: times", 60, "{python} {gpu}/standalone.py run {work}/bench --times-only"),
    Slice("kernels: times, 4 blocks", 60, "{python} {gpu}/standalone.py run {work}/bench-4-blocks --times-only"),
    Slice("host time", 40, "{python} {gpu}/host_time.py", "{python} {gpu}/host_time.py --steps 200"),
    Slice("edgelstm.kernels: checks", 60, "{python} {gpu}/own_checks.py {device} --seconds 50", "{python} {gpu}/own_checks.py cpu --quick --seconds 5"),
    Slice("edgelstm.kernels: ConvLSTM", 70, "{python} {gpu}/own_times.py conv {device} --seconds 60", "{python} {gpu}/own_times.py conv cpu --quick --seconds 5"),
    Slice("edgelstm.kernels: small cell", 60, "{python} {gpu}/own_times.py cell {device} --seconds 50", "{python} {gpu}/own_times.py cell cpu --quick --seconds 5"),
    Slice("edgelstm.kernels: gates", 30, "{python} {gpu}/own_times.py gates {device} --seconds 20", "{python} {gpu}/own_times.py gates cpu --quick --seconds 5"),
    Slice("torch copy", 30, "{python} {gpu}/kernels.py copy {device} {quick}"),
    Slice("torch.compile of the gates", 60, "{python} {gpu}/kernels.py compile {device} {quick}", "{python} {gpu}/kernels.py eager cpu --quick"),
    Slice("plugin's enqueue", 100, PYTEST + " {tests}/plugins/test_enqueue.py", PYTEST + " {tests}/plugins/test_enqueue.py --collect-only", ("cmake", "{carried}/headers"), (("EDGELSTM_TENSORRT_HEADERS", "{carried}/headers"),)),
    _steps("steps: ConvLSTM", 120, "--cases conv_lstm --precisions fp16 --streams 1,8", "torch;torch, graphs", "--cases conv_lstm"),
    _steps("steps: LSTM", 120, "--cases lstm_256 --precisions fp16 --streams 1,64", "torch;torch, graphs;cuDNN LSTM;cuDNN LSTM, graphs", "--cases lstm_32"),
    _steps("steps: ConvLSTM, compiled", 150, "--cases conv_lstm --precisions fp16 --streams 1,8", "torch, graphs;torch.compile, graphs"),
    Slice("memcheck", 90, "compute-sanitizer --tool memcheck --error-exitcode 9 {work}/bench --checks-only --every 7", needs=("compute-sanitizer",)),
    Slice("racecheck", 45, "compute-sanitizer --tool racecheck --error-exitcode 9 {work}/bench --checks-only --every 29", needs=("compute-sanitizer",)),
    Slice("contract", 60, PYTEST + " {tests}/contract {tests}/gpu/test_streams_on_a_gpu.py", PYTEST + " {tests}/contract -k new_state"),
    Slice("torch eager of the gates", 40, "{python} {gpu}/kernels.py eager {device} {quick}"),
    Slice("ONNX Runtime: unpacked", 60, "{python} -m tarfile -e {carried}/onnxruntime.tar.xz {work}/ort", "{python} -m tarfile -t {carried}/onnxruntime.tar.xz", ("{carried}/onnxruntime.tar.xz",)),
    Slice("ONNX Runtime: contract", 90, PYTEST + " {tests}/contract {tests}/gpu -k onnxruntime-cuda", needs=("{work}/ort",), site="{work}/ort"),
    _steps("ONNX Runtime: steps", 120, "--cases conv_lstm,lstm_256 --precisions fp16 --streams 1,8", ORT, needs=("{work}/ort",), site="{work}/ort"),
    Slice("profile of the kernel", 60, "ncu --kernel-name regex:fusedGates --launch-count 3 --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section WarpStateStats {work}/bench --times-only --repeats 1", needs=("ncu",)),
    _steps("steps: ConvLSTM, 64 streams", 120, "--cases conv_lstm --precisions fp16 --streams 64", "torch;torch, graphs;torch.compile, graphs"),
    _steps("steps: LSTM, fp32", 120, "--cases lstm_256,lstm_1024 --precisions fp32 --streams 1", "torch, graphs;torch.compile, graphs;cuDNN LSTM, graphs"),
)
# fmt: on
