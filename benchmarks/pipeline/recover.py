"""How long the service needs to be back, and what is lost: ``python benchmarks/pipeline/recover.py [--readme]``.

After kill -9 (a table-like source at 100 frames/s, a checkpoint every 0.2 s), after its RTSP server was away, and across a hot swap
(500 frames/s). Times are from lines of the file that the service writes, looked at every 2 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parents[1] / "tests" / "pipeline"))

TIMES = 5
LOOK = 0.002


def lines(path: Path) -> list[int]:
    """Indices of the frames whose lines are whole."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["index"] for line in text.splitlines() if line.endswith("}")]


def size(path: Path) -> int:
    """Bytes."""
    return path.stat().st_size if path.exists() else 0


def until(good: Callable[[], bool], most: float = 60) -> float:
    """Seconds that it took."""
    begin = time.perf_counter()
    while not good():
        if time.perf_counter() - begin > most:
            raise SystemExit("it does not come back")
        time.sleep(LOOK)
    return time.perf_counter() - begin


def lstm(folder: Path) -> None:
    """m.onnx, m.w8.onnx: the same in another precision; a.npy: frames."""
    import models

    import edgelstm

    edgelstm.export(models.lstm(folder, 32), folder / "m.onnx")
    edgelstm.quantize(folder / "m.onnx", None, folder / "m.w8.onnx", precision="int8-weights")
    np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(20000, 16)).astype(np.float32))


def kill(folder: Path) -> dict[str, Any]:
    """Killed and started again."""
    lstm(folder)
    (folder / "p.toml").write_text(
        '[service]\ncheckpoint = "states"\ncheckpoint_every = 0.2\n[models.m]\npath = "m.onnx"\n'
        '[streams.a]\nsource = "a.npy"\nrate = 100\nsink = "a.jsonl"\n'
    )
    out = folder / "a.jsonl"
    took, cold = [], None
    for _ in range(TIMES + 1):
        before = size(out)
        process = subprocess.Popen(
            [sys.executable, "-m", "edgelstm", "serve", "p.toml"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = until(lambda n=before: size(out) > n)
        if cold is None:
            cold = seconds
        else:
            took.append(seconds)
        time.sleep(1.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = lines(out)
    return {
        "what": "kill -9, started again at once",
        "seconds": statistics.median(took),
        "beside": f"a first start takes {cold:.2f} s",
        "lost": max(found) + 1 - len(set(found)),
        "twice": len(found) - len(set(found)),
        "policy": "a source that can be read again: none lost, none twice",
    }


@contextmanager
def running(text: str, folder: Path) -> Iterator[Any]:
    """A pipeline in a thread."""
    from edgelstm import Pipeline

    pipeline = Pipeline.from_text(text, folder)
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()
        thread.join()


def rtsp(folder: Path) -> dict[str, Any]:
    """A server that is away for two seconds."""
    from cameras import RtspServer

    text = """
        [service]
        report = 0
        [models.m]
        path = "example:moving_digits/model.safetensors"
        [streams.a]
        source = "rtsp://127.0.0.1:PORT/cam"
        preprocess = "grey;resize=64,64;scale=0.00392156862745098"
        retries = 1000
        retry = 0.25
        lost_after = 1
        loss = "reset_on_return"
        sink = "a.jsonl"
    """
    out, took = folder / "a.jsonl", []
    with RtspServer() as server, running(text.replace("PORT", str(server.port)), folder):
        until(lambda: size(out) > 0)
        for _ in range(TIMES):
            time.sleep(1)
            server.kill()
            time.sleep(2)
            before = size(out)
            server.start()
            took.append(until(lambda n=before: size(out) > n))
    return {
        "what": "RTSP server away for 2 s, from its being back",
        "seconds": statistics.median(took),
        "beside": "tries after 0.25, 0.5, 1, 2 s",
        "lost": None,
        "twice": 0,
        "policy": 'what was shown meanwhile; the state begins anew (`loss = "reset_on_return"`)',
    }


def swap(folder: Path) -> dict[str, Any]:
    """Another precision takes over, and back."""
    lstm(folder)
    text = """
        [service]
        report = 0
        [models.m]
        path = "m.onnx"
        compatible = true
        [streams.a]
        source = "a.npy"
        rate = 500
        sink = "a.jsonl"
    """
    out = folder / "a.jsonl"
    gaps: list[float] = []
    calm: list[float] = []
    with running(text, folder) as pipeline:
        until(lambda: size(out) > 0)
        ended = threading.Event()
        longest = [0.0]

        def look() -> None:
            seen, last = size(out), time.perf_counter()
            while not ended.is_set():
                now = time.perf_counter()
                if size(out) > seen:
                    longest[0] = max(longest[0], now - last)
                    seen, last = size(out), now
                time.sleep(LOOK / 4)

        watcher = threading.Thread(target=look)
        watcher.start()
        for number in range(2 * TIMES):
            longest[0] = 0.0
            time.sleep(0.5)
            calm.append(longest[0])
            longest[0] = 0.0
            pipeline.swap("m", folder / ("m.onnx" if number % 2 else "m.w8.onnx"))
            time.sleep(0.1)
            gaps.append(longest[0])
        ended.set()
        watcher.join()
    found = lines(out)
    return {
        "what": "hot swap, longest time from line to line while it is made",
        "seconds": statistics.median(gaps),
        "beside": f"{statistics.median(calm):.3f} s without one",
        "lost": max(found) + 1 - len(set(found)),
        "twice": len(found) - len(set(found)),
        "policy": "none lost, states carried",
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    given = parser.parse_args()
    os.environ["EDGELSTM_NATIVE"] = "0"
    from edgelstm import machine
    from edgelstm.files import write_text

    rows = []
    for case in (kill, rtsp, swap):
        with tempfile.TemporaryDirectory() as name:
            rows.append(case(Path(name)))
            print(json.dumps(rows[-1]), flush=True)
    data = {"date": date.today().isoformat(), "processor": machine.cpu().model, "rows": rows}
    write_text(HERE / "recover.json", json.dumps(data, indent=1) + "\n")
    table = [
        f"{data['processor']}, {machine.cpu().usable} processors, {data['date']}; medians of {TIMES} (swaps: {2 * TIMES}).",
        "",
        "| what | seconds | beside | frames lost | twice | what the policy allows |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        lost = "those meanwhile" if r["lost"] is None else r["lost"]
        table.append(
            f"| {r['what']} | {r['seconds']:.3f} | {r['beside']} | {lost} | {r['twice']} | {r['policy']} |"
        )
    text = "\n".join(table)
    print(text)
    if given.readme:
        readme = HERE / "README.md"
        old = readme.read_text(encoding="utf-8")
        marked = f"<!-- recover -->\n{text}\n<!-- /recover -->"
        write_text(
            readme, re.sub("<!-- recover -->.*<!-- /recover -->", lambda _: marked, old, flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
