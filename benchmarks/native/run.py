"""The figures of benchmarks/native/README.md: ``python benchmarks/native/run.py [--scale 0.2] [--readme]``.

Cells as our own operators inside ONNX Runtime beside the same model without them, beside a hand-written ONNX Runtime loop and
beside OpenVINO: every contestant in its own process, in turn, ratios of medians in one run. Beside each the machine's own limit:
the time it takes to read the weights once, and to do the arithmetic, by what was measured here a moment before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import models  # noqa: E402

from edgelstm import machine  # noqa: E402
from edgelstm.bench import bench  # noqa: E402
from edgelstm.bench.result import ModelResult, format_time  # noqa: E402
from edgelstm.engine.native_build import build_native  # noqa: E402
from edgelstm.files import write_text  # noqa: E402
from edgelstm.runtime.native.library import VARIABLE, NativeLibrary, find_native_library  # noqa: E402

THREADS = 2
CONTESTANTS = ["edgelstm-plain", "onnxruntime", "openvino"]
STEPS = {32: 3000, 256: 800, 1024: 60}
#: Our time over that of a contestant, at most.
AIMS = {32: ("onnxruntime", 0.3), 256: ("onnxruntime", 0.6), 1024: ("openvino", 0.9)}


def weights(kind: str, hidden: int) -> int:
    """Numbers in the matrices of two layers."""
    gates = 4 if kind == "lstm" else 3
    return gates * hidden * (models.LSTM_INPUTS + hidden + 2 * hidden)


def bandwidth(size: int) -> float:
    """Bytes a second at which both processors together read ``size`` bytes again and again: NumPy's dot, on its threads."""
    a, b = (np.ones(size // 8, np.float32) for _ in range(2))
    return size / best(lambda: np.dot(a, b), max(5, min(2000, 2 * 10**8 // size)))


def peak() -> float:
    """Floating-point operations a second of NumPy's matrix product."""
    a = np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / best(lambda: a @ a, 20)


def best(work: Any, rounds: int) -> float:
    """Seconds, the best of ``rounds``: a limit is what was reached at least once."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def library() -> NativeLibrary:
    """The library that is there, or one that is built now."""
    found = find_native_library()
    return build_native() if found is None else found


def row(kind: str, hidden: int, model: ModelResult, flops: float) -> dict[str, Any]:
    """Times in microseconds, ratios of ours to theirs, and the machine's limit."""
    ours = model["edgelstm"].p50
    assert ours is not None
    size = 4 * weights(kind, hidden)
    speed = bandwidth(size)
    ratios = {}
    for name in CONTESTANTS:
        theirs = model[name].ratio
        ratios[name] = None if theirs is None else 1 / theirs
    against, aim = AIMS[hidden]
    reached = ratios[against]
    return {
        "model": f"{kind.upper()} 2 x {hidden}",
        "us": {name: model[name].p50 for name in ("edgelstm", *CONTESTANTS)},
        "ratio": ratios,
        "best_us": {name: model[name].best for name in ("edgelstm", *CONTESTANTS)},
        "ratio_of_best": {name: _ratio(model["edgelstm"].best, model[name].best) for name in CONTESTANTS},
        "notes": {name: model[name].note for name in CONTESTANTS if model[name].note},
        "peak_mib": {name: _mib(model[name].peak_memory) for name in ("edgelstm", *CONTESTANTS)},
        "error": {name: model[name].error for name in ("edgelstm", *CONTESTANTS)},
        "weights_bytes": size,
        "limit_us": {"weights": size / speed * 1e6, "arithmetic": 2 * weights(kind, hidden) / flops * 1e6},
        "gb_per_s": speed / 1e9,
        "aim": {"against": against, "at_most": aim, "reached": None if reached is None else reached <= aim},
    }


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def _mib(size: int | None) -> int | None:
    return None if size is None else round(size / 2**20)


def table(data: dict[str, Any]) -> str:
    """The rows for README.md."""
    cpu = data["machine"]
    lines = [
        f"{cpu['processor']}, {cpu['processors']} processors, {data['threads']} threads, kernels {data['kernels']}, {data['date']}.",
        "",
        "| model | ours | without our operators | ONNX Runtime by hand | OpenVINO fp32 | ours / by hand | ours / OpenVINO | limit: weights | limit: arithmetic | aim |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in data["rows"]:
        times = [format_time(r["us"][name]) for name in ("edgelstm", *CONTESTANTS)]
        ratios = [
            "-" if r["ratio"][n] is None else f"{r['ratio'][n]:.2f}" for n in ("onnxruntime", "openvino")
        ]
        limits = [format_time(r["limit_us"][name]) for name in ("weights", "arithmetic")]
        aim = r["aim"]
        label = {"onnxruntime": "by hand", "openvino": "OpenVINO"}[aim["against"]]
        said = f"at most {aim['at_most']} of {label}: {'reached' if aim['reached'] else 'missed'}"
        lines.append("| " + " | ".join([r["model"], *times, *ratios, *limits, said]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rounds to take (default 1)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--only", nargs="*", default=[], metavar="lstm-32", help="these models alone")
    arguments = parser.parse_args()
    built = library()
    os.environ.pop("EDGELSTM_NATIVE", None)
    os.environ[VARIABLE] = str(built.path)
    load, flops = os.getloadavg()[0], peak()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in (("lstm", models.lstm), ("gru", models.gru)):
            for hidden, steps in STEPS.items():
                if arguments.only and f"{kind}-{hidden}" not in arguments.only:
                    continue
                rounds = max(3, round(11 * arguments.scale))
                result = bench(
                    [make(Path(folder), hidden)], CONTESTANTS, rounds=rounds, steps=steps, threads=THREADS
                )
                rows.append(row(kind, hidden, result.models[0], flops))
                print(json.dumps(rows[-1]), flush=True)
    cpu = machine.cpu()
    data = {
        "date": date.today().isoformat(),
        "machine": {"processor": cpu.model, "features": cpu.features, "processors": cpu.usable},
        "threads": THREADS,
        "load": {"before": load, "after": os.getloadavg()[0]},
        "kernels": built.instructions(),
        "scale": arguments.scale,
        "gflop_per_s": flops / 1e9,
        "rows": rows,
    }
    if arguments.only:
        return
    write_text(HERE / "native.json", json.dumps(data, indent=1) + "\n")
    text = table(data)
    print(text)
    if arguments.readme:
        readme = HERE / "README.md"
        marked = f"<!-- figures -->\n{text}\n<!-- /figures -->"
        old = readme.read_text(encoding="utf-8")
        write_text(
            readme, re.sub("<!-- figures -->.*<!-- /figures -->", lambda _: marked, old, flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
