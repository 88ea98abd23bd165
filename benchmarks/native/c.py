"""The figures of the C library in benchmarks/native/README.md: ``python benchmarks/native/c.py [--readme]``.

An LSTM of two layers of 32 units, one stream, one thread, a step at a time: through the C library, through Python's Runner, each with
and without our own operators, and by a hand-written Python loop over ONNX Runtime. Each in a process of its own, in turn; all
give the same numbers, to the rounding of the operators, or nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

HIDDEN, INPUTS, STEPS, ROUNDS = 32, 16, 3000, 15
LABELS = {
    "c-native": "C library, our operators",
    "c": "C library",
    "runner-native": "Python `Runner`, our operators",
    "runner": "Python `Runner`",
    "by-hand": "ONNX Runtime by hand in Python",
}


def opened(name: str, model: str) -> Callable[[np.ndarray], float]:
    """A step by one frame, which gives the first output."""
    if name != "by-hand":
        from edgelstm.runtime import Runner

        stream = Runner.open(model, threads=1, native=name == "runner-native").stream("s")
        return lambda x: stream.step(x, copy=False)["y"][0]
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    pairs = [(s["input"], s["output"]) for s in _signature(session)["states"]]
    states = {s: np.zeros((1, HIDDEN), np.float32) for s, _ in pairs}

    def step(x: np.ndarray) -> float:
        nonlocal states
        found = dict(zip(names, session.run(None, {"x": x[None], **states}), strict=True))
        states = {before: found[after] for before, after in pairs}
        return found["y"][0, 0]

    return step


def _signature(session: object) -> dict[str, list[dict[str, str]]]:
    return json.loads(session.get_modelmeta().custom_metadata_map["edgelstm.signature"])  # type: ignore[attr-defined]


def work(name: str, model: str) -> None:
    """As step.c."""
    step, place, y = opened(name, model), 0, 0.0
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            x = ((place * 7 + np.arange(INPUTS) * 3) % 16 / 8 - 1).astype(np.float32)
            begin = time.perf_counter_ns()
            y = step(x)
            times.append(time.perf_counter_ns() - begin)
            place += 1
        times.sort()
        print(times[len(times) // 2], times[0], f"{y:.9g}", flush=True)


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Microseconds: the median of the rounds' medians, and the fastest step."""
    import models

    import edgelstm
    from edgelstm.engine.c_build import build_c, find_onnxruntime
    from edgelstm.engine.native_build import build_native

    operators = build_native(folder / "operators.so").path
    os.environ["EDGELSTM_NATIVE_LIBRARY"] = str(operators)
    os.environ["EDGELSTM_ONNXRUNTIME"] = str(find_onnxruntime())
    model, native, program = folder / "model.onnx", folder / "native.onnx", folder / "step"
    edgelstm.export(models.lstm(folder, HIDDEN), model)
    edgelstm.lower(model, native, "native")
    library = build_c(folder / "c")
    source = str(HERE / "step.c")
    subprocess.run(
        ["cc", "-O2", "-std=c99", source, "-o", program, *library.cflags, *library.libs], check=True
    )
    sizes = [str(INPUTS), str(HIDDEN)]
    commands = {
        "c-native": [program, native, operators, *sizes],
        "c": [program, model, "", *sizes],
        **{n: [sys.executable, __file__, "--work", n, model] for n in LABELS if not n.startswith("c")},
    }
    workers = {
        name: subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }  # fmt: skip
    medians: dict[str, list[float]] = {name: [] for name in workers}
    best = dict.fromkeys(workers, float("inf"))
    try:
        for k in range(ROUNDS + 1):
            last = {}
            for name, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write(f"{STEPS}\n")
                worker.stdin.flush()
                median, fastest, last[name] = map(float, worker.stdout.readline().split())
                if k:  # the first round warms up
                    medians[name].append(median / 1e3)
                    best[name] = min(best[name], fastest / 1e3)
            if not np.allclose(list(last.values()), last["by-hand"], rtol=1e-4):
                raise SystemExit(f"they differ: {last}")
    finally:
        for worker in workers.values():
            worker.kill()
    return {
        name: {
            "us": statistics.median(values),
            "best_us": best[name],
            "ratio": statistics.median(a / b for a, b in zip(values, medians["by-hand"], strict=True)),
        }
        for name, values in medians.items()
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(*arguments.work)
    from edgelstm import machine
    from edgelstm.files import write_text

    load, cpu = os.getloadavg()[0], machine.cpu()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    data = {
        "date": date.today().isoformat(),
        "machine": {"processor": cpu.model, "processors": cpu.usable},
        "load": {"before": load, "after": os.getloadavg()[0]},
        "model": f"LSTM 2 x {HIDDEN}, {INPUTS} inputs, 1 stream, 1 thread",
        "rounds": ROUNDS,
        "steps": STEPS,
        "contestants": found,
    }
    write_text(HERE / "c.json", json.dumps(data, indent=1) + "\n")
    lines = [
        f"{cpu.model}, {cpu.usable} processors (load average {load:.1f} before, {data['load']['after']:.1f} after), 1 thread, {data['date']}.",  # type: ignore[index]
        "",
        f"| LSTM 2 x {HIDDEN}, a step | median | fastest | median / by hand |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {label} | {found[n]['us']:.2f} us | {found[n]['best_us']:.2f} us | {found[n]['ratio']:.2f} |"
        for n, label in LABELS.items()
    ]
    text = "\n".join(lines)
    print(text)
    if arguments.readme:
        readme = HERE / "README.md"
        marked = f"<!-- c -->\n{text}\n<!-- /c -->"
        old = readme.read_text(encoding="utf-8")
        write_text(readme, re.sub("<!-- c -->.*<!-- /c -->", lambda _: marked, old, flags=re.DOTALL))


if __name__ == "__main__":
    main()
