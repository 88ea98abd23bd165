"""Dockerfile.jetson without Docker: its structure, its commands' syntax, hadolint where it is installed, and, with
EDGELSTM_TRY_IMAGE=1 (``make image-check``; 30 s and a package index), what its Python part makes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "Dockerfile.jetson"


@dataclass(frozen=True)
class Step:
    """One instruction: ``RUN`` and its text, continued lines joined. ``stage``: name of the stage, "" before the first."""

    stage: str
    instruction: str
    text: str


def parse(text: str) -> list[Step]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stage, steps = "", []
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            stage = rest.split(" AS ")[1] if " AS " in rest else "final"
        steps.append(Step(stage, instruction, rest.strip()))
    return steps


STEPS = parse(DOCKERFILE.read_text("utf-8"))
RUNS = [step for step in STEPS if step.instruction == "RUN"]


def of(instruction: str, stage: str) -> list[str]:
    return [s.text for s in STEPS if (s.instruction, s.stage) == (instruction, stage)]


def command_of(stage: str, words: str) -> str:
    (found,) = (s.text for s in RUNS if s.stage == stage and words in s.text)
    return found


def test_both_jetpacks_are_an_argument_away() -> None:
    arguments = dict(s.text.split("=", 1) for s in STEPS if s.instruction == "ARG")
    assert arguments["JETPACK"] in ("6", "7")
    for jetpack, architectures in (("6", "87"), ("7", "87;110")):
        assert re.fullmatch(r"nvcr\.io/nvidia/[a-z0-9-]+:[a-z0-9.-]+", arguments[f"JETPACK_{jetpack}_IMAGE"])
        assert of("FROM", f"jetpack-{jetpack}") == [f"${{JETPACK_{jetpack}_IMAGE}} AS jetpack-{jetpack}"]
        assert of("ENV", f"jetpack-{jetpack}") == [f'EDGELSTM_ARCHITECTURES="{architectures}"']
    assert of("FROM", "base") == ["jetpack-${JETPACK} AS base"]
    assert {*of("FROM", "build"), *of("FROM", "final")} == {"base AS build", "base"}


def test_it_runs_as_nobody_special_and_says_whether_it_can_stream() -> None:
    (user,) = of("USER", "final")
    assert int(user) >= 1000
    assert f"--uid {user} " in command_of("final", "useradd")
    (health,) = of("HEALTHCHECK", "final")
    command = json.loads(health[health.index("CMD") + 3 :])
    assert command == ["edgelstm", "doctor", "--check", "--device", "cuda"]
    assert of("ENTRYPOINT", "final") == ['["edgelstm"]']


def test_the_health_check_is_a_command_that_exists() -> None:
    import typer.main

    from edgelstm.cli import app

    (health,) = of("HEALTHCHECK", "final")
    _, name, *arguments = json.loads(health[health.index("CMD") + 3 :])
    typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / "Dockerfile.jetson.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for s in STEPS
        if s.instruction == "COPY" and not s.text.startswith("--from")
        for source in s.text.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_plugin_is_built_the_way_its_cmake_file_says() -> None:
    command = command_of("build", "cmake -S")
    cmake = (ROOT / "plugins" / "CMakeLists.txt").read_text()
    for name in re.findall(r"-D(EDGELSTM_\w+)=", command):
        assert f"set({name} " in cmake
    assert "add_library(edgelstm_plugin MODULE" in cmake
    library = "/opt/edgelstm/lib/libedgelstm_plugin.so"
    assert library in command
    assert f"EDGELSTM_PLUGIN_LIBRARY={library}" in of("ENV", "final")[0]


@pytest.mark.parametrize("run", RUNS, ids=[f"{s.stage}-{i}" for i, s in enumerate(RUNS)])
def test_every_command_is_one_the_shell_can_read(run: Step) -> None:
    done = subprocess.run(["bash", "-n", "-c", run.text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_pytorch_is_installed() -> None:
    installs = [s.text for s in RUNS if "pip install" in s.text or "apt-get install" in s.text]
    assert installs
    assert not any("torch" in text for text in installs)


def test_the_cuda_of_the_bindings_is_read_off_the_compiler(tmp_path: Path) -> None:
    """What nvcc says is the same since CUDA 9; what pip would be asked for is printed in its place."""
    said = "Cuda compilation tools, release 12.6, V12.6.68"
    for name, script in (("nvcc", f"echo '{said}'"), ("pip", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    command = command_of("build", "cuda-bindings").replace("/opt/edgelstm/bin/pip", "pip")
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["install", "cuda-bindings==12.*", "cuda-core"]


def test_hadolint() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: make image-check installs it")
    done = subprocess.run(
        [hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(
    "EDGELSTM_TRY_IMAGE" not in os.environ, reason="takes 30 s and a package index: make image-check"
)
def test_the_python_part_without_docker(tmp_path: Path) -> None:
    """The stage's own commands, its folders moved: an environment without PyTorch whose command line works, and whose
    health check fails without a GPU."""
    for words in ("venv --system-site-packages", "pip wheel"):
        command = command_of("build", words)
        for folder in ("/opt/edgelstm", "/tmp/wheel"):
            command = command.replace(folder, str(tmp_path / folder.rpartition("/")[2]))
        # The base image's TensorRT is the system's; this machine's system may hold anything.
        command = command.replace("--system-site-packages ", "")
        subprocess.run(["bash", "-eo", "pipefail", "-c", command], cwd=ROOT, check=True)
    program = str(tmp_path / "edgelstm" / "bin" / "edgelstm")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    found = {f["name"]: f["state"] for f in json.loads(run("doctor", "--json").stdout)["findings"]}
    assert (found["torch"], found["av"], found["pillow"]) == ("missing", "ok", "ok")
    example = ROOT / "examples" / "sensor_lstm" / "model.safetensors"
    if found["cuda"] == "missing":
        done = run("doctor", "--check", "--device", "cuda")
        assert (done.returncode, done.stdout) == (1, "")
        assert "can't stream on cuda" in done.stderr
    done = run("export", str(example), "-o", "step.onnx")
    assert "ONNX Runtime is not installed" in done.stderr, (
        "export proves what it writes, and has nothing to run it on"
    )
