"""The figures of benchmarks/native/README.md: ``python benchmarks/native/run.py [--scale 0.2] [--readme]``.

Cells as our own operators inside ONNX Runtime beside the same model without them, beside a hand-written ONNX Runtime loop and
beside OpenVINO: every contestant in its own process, in turn, ratios of medians in one run; and our own with weights alone in
fewer bits (weights.py). Beside each the machine's own limit:
the time it takes to read the weights once, and to do the arithmetic, by what limits.cpp measured a moment before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

# The threads are the pool's, not those of the library below NumPy; bench gives its workers numbers of their own.
os.environ["OPENBLAS_NUM_THREADS"] = "1"


HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import models  # noqa: E402
import weights as weights_alone  # noqa: E402

from edgelstm import machine  # noqa: E402
from edgelstm.bench import bench  # noqa: E402
from edgelstm.bench.result import ModelResult, format_time  # noqa: E402
from edgelstm.engine.native_build import build_native, find_compiler, sources_hash  # noqa: E402
from edgelstm.errors import EdgeLstmError  # noqa: E402
from edgelstm.files import write_text  # noqa: E402
from edgelstm.runtime.native.library import (  # noqa: E402
    VARIABLE,
    NativeLibrary,
    find_native_library,
    machine_name,
)

THREADS = 2
CONTESTANTS = ["edgelstm-plain", "onnxruntime", "openvino"]
STEPS = {32: 3000, 256: 800, 1024: 60}
#: Our time over that of a contestant, at most.
AIMS = {32: ("onnxruntime", 0.3), 256: ("onnxruntime", 0.6), 1024: ("openvino", 0.9)}


def weights(kind: str, hidden: int) -> int:
    """Numbers in the matrices of two layers."""
    gates = 4 if kind == "lstm" else 3
    return gates * hidden * (models.LSTM_INPUTS + hidden + 2 * hidden)


def limits(folder: Path, sizes: list[int]) -> tuple[dict[int, float], float]:
    """Microseconds to read so many bytes once, by size, and the GFLOP a second of multiply-adds: limits.cpp, the best of two runs."""
    program = folder / "limits"
    command = [
        *find_compiler(None, machine_name()),
        "-O3",
        "-march=native",
        "-std=c++17",
        "-Wno-psabi",
        "-pthread",
    ]
    subprocess.run([*command, str(HERE / "limits.cpp"), "-o", str(program)], check=True)
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [str(program), str(THREADS), *map(str, sizes)], stdout=subprocess.PIPE, text=True, check=True
        )
        runs.append([float(line) for line in done.stdout.split()])
    times = [min(values) for values in zip(*(run[:-1] for run in runs), strict=True)]
    return dict(zip(sizes, times, strict=True)), max(run[-1] for run in runs)


def library() -> NativeLibrary:
    """The library that is there, if it is made of the sources as they are now, or one that is built now."""
    try:
        found = find_native_library()
    except EdgeLstmError:  # of another version
        found = None
    if os.environ.get(VARIABLE) and found is not None:
        return found
    sources = sources_hash(HERE.parents[1] / "plugins" / "onnxruntime")
    return found if found is not None and found.sources == sources else build_native()


def row(kind: str, hidden: int, model: ModelResult, read: dict[int, float], gflops: float) -> dict[str, Any]:
    """Times in microseconds, ratios of ours to theirs, and the machine's limit."""
    ours = model["edgelstm"].p50
    assert ours is not None
    size = 4 * weights(kind, hidden)
    ratios = {}
    for name in CONTESTANTS:
        theirs = model[name].ratio
        ratios[name] = None if theirs is None else 1 / theirs
    against, aim = AIMS[hidden]
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
        "limit_us": {"weights": read[size], "arithmetic": 2 * weights(kind, hidden) / gflops / 1e3},
        "aim": {"against": against, "at_most": aim},
    }


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def _mib(size: int | None) -> int | None:
    return None if size is None else round(size / 2**20)


def table(data: dict[str, Any]) -> str:
    """The rows for README.md."""
    cpu, load = data["machine"], data["load"]
    busy = f"load average {load['before']:.1f} before, {load['after']:.1f} after"
    lines = [
        f"{cpu['processor']}, {cpu['processors']} processors ({busy}), {data['threads']} threads, kernels {data['kernels']}, "
        f"{data['date']}.",
    ]
    for title, times, ratios in (
        ("Medians", "us", "ratio"),
        ("Undisturbed: the fastest step of each", "best_us", "ratio_of_best"),
    ):
        lines += [
            "",
            f"{title}:",
            "",
            "| model | ours | without our operators | ONNX Runtime by hand | OpenVINO fp32 | ours / by hand | ours / OpenVINO | "
            "limit: weights | limit: arithmetic | aim |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for r in data["rows"]:
            cells = [format_time(r[times][name]) for name in ("edgelstm", *CONTESTANTS)]
            cells += [
                "-" if r[ratios][n] is None else f"{r[ratios][n]:.2f}" for n in ("onnxruntime", "openvino")
            ]
            cells += [format_time(r["limit_us"][name]) for name in ("weights", "arithmetic")]
            aim, label = r["aim"], {"onnxruntime": "by hand", "openvino": "OpenVINO"}
            found = r[ratios][aim["against"]]
            said = "not measured" if found is None else "reached" if found <= aim["at_most"] else "missed"
            lines.append(
                "| "
                + " | ".join([r["model"], *cells, f"{aim['at_most']} of {label[aim['against']]}: {said}"])
                + " |"
            )
    return "\n".join([*lines, *weights_alone.table(data["weights"])])


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rounds to take (default 1)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="lstm-32",
        help="these rows alone (lstm-1024-weights: with weights in fewer bits)",
    )
    arguments = parser.parse_args()
    built = library()
    os.environ.pop("EDGELSTM_NATIVE", None)
    os.environ[VARIABLE] = str(built.path)
    load = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        counts = [weights(kind, hidden) for kind in ("lstm", "gru") for hidden in STEPS]
        sizes = sorted({size * count for count in counts for size in (4, *weights_alone.BYTES.values())})
        read, gflops = limits(Path(folder), sizes)
        for kind, make in (("lstm", models.lstm), ("gru", models.gru)):
            for hidden, steps in STEPS.items():
                if arguments.only and f"{kind}-{hidden}" not in arguments.only:
                    continue
                rounds = max(3, round(11 * arguments.scale))
                result = bench(
                    [make(Path(folder), hidden)], CONTESTANTS, rounds=rounds, steps=steps, threads=THREADS
                )
                rows.append(row(kind, hidden, result.models[0], read, gflops))
                print(json.dumps(rows[-1]), flush=True)
        alone = []
        for kind, make in (("lstm", models.lstm), ("gru", models.gru)):
            for hidden in weights_alone.STEPS:
                if arguments.only and f"{kind}-{hidden}-weights" not in arguments.only:
                    continue
                alone.append(
                    weights_alone.measure(
                        Path(folder), kind, hidden, make(Path(folder), hidden), read, weights(kind, hidden),
                        max(3, round(7 * arguments.scale)), THREADS,
                    )
                )  # fmt: skip
                print(json.dumps(alone[-1]), flush=True)
    cpu = machine.cpu()
    data = {
        "date": date.today().isoformat(),
        "machine": {"processor": cpu.model, "features": cpu.features, "processors": cpu.usable},
        "threads": THREADS,
        "load": {"before": load, "after": os.getloadavg()[0]},
        "kernels": built.instructions(),
        "scale": arguments.scale,
        "gflop_per_s": gflops,
        "rows": rows,
        "weights": alone,
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
