"""The wheel edgelstm-native and the Debian packages, made and used as a stranger would: an environment of its own, programs compiled
against what was installed, an Arm wheel that is made here and run under qemu."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import edgelstm
import zoo
from c_program import compare, compiled
from edgelstm.engine.c_build import find_onnxruntime

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
TOOLCHAIN = ROOT / "plugins" / "cmake" / "aarch64-linux.cmake"
EMULATED = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, cwd=cwd, timeout=500
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def make_wheel(source: Path, output: Path, **environment: str) -> Path:
    pytest.importorskip("hatchling")
    pytest.importorskip("scikit_build_core")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(output))
    run(sys.executable, "-m", "pip", "wheel", *options, str(source), env={**os.environ, **environment})
    (made,) = output.glob("*.whl")
    return made


def needs_cmake() -> None:
    if shutil.which("pkg-config") is None or shutil.which("cmake") is None:
        pytest.skip("pkg-config or cmake is not here")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the two wheels; NumPy, onnx, ONNX Runtime and the like are lent from this one."""
    needs_cmake()
    place = tmp_path_factory.mktemp("wheels")
    wheels = [make_wheel(ROOT, place / "pure"), make_wheel(ROOT / "plugins", place / "native")]
    assert wheels[0].name.endswith("-py3-none-any.whl")
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheels[1].name)
    environment = place / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", *wheels
    )  # fmt: skip
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, str]:
    """Variables of somebody who built nothing."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("EDGELSTM", "PYTHON")) and k != "VIRTUAL_ENV"
    }
    return {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache")}


STEP = """
import json, sys
import numpy as np, edgelstm, edgelstm_native
from edgelstm import Runner
from edgelstm.runtime.native.library import find_native_library
frames = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
outputs = []
for native in (True, False):
    with Runner.open("model.onnx", native=native) as runner:
        stream = runner.stream("s")
        outputs.append([float(stream.step(f)["y"][0]) for f in frames])
print(json.dumps({"outputs": outputs, "from": [edgelstm.__file__, edgelstm_native.__file__], "library": find_native_library().to_json()}))
"""


def test_a_runner_of_an_environment_of_its_own_uses_the_operators(
    installed: Path, clean: dict[str, str], tmp_path: Path
) -> None:
    zoo.lstm(6, head=48).save(tmp_path / "model.onnx")
    told = json.loads(run(installed / "bin" / "python", "-c", STEP, env=clean, cwd=tmp_path))
    assert all(Path(path).is_relative_to(installed) for path in told["from"])
    assert told["library"]["prebuilt"]
    own, theirs = told["outputs"]
    assert own == pytest.approx(theirs, abs=1e-5)
    assert len(set(own)) > 10
    report = json.loads(
        run(installed / "bin" / "edgelstm", "doctor", "--json", env=clean, cwd=tmp_path)
    )  # fmt: skip
    found = {f["name"]: f["found"] for f in report["findings"]}
    for name in ("onnxruntime operators", "C library"):
        assert str(installed) in found[name]
        assert found[name].endswith("(prebuilt)")


def test_programs_are_compiled_against_the_wheel(
    installed: Path, clean: dict[str, str], tmp_path: Path
) -> None:
    runtime = str(find_onnxruntime())
    ask = (installed / "bin" / "edgelstm", "config")
    program = compiled(tmp_path, *shlex.split(run(*ask, "--cflags", "--libs", env=clean)))
    compare(program, tmp_path, EDGELSTM_ONNXRUNTIME=runtime)
    told = json.loads(run(*ask, "--json", env=clean))
    by_pkg_config(Path(told["pkgconfigdir"]), tmp_path)
    by_cmake(Path(told["prefix"]), tmp_path)


def by_pkg_config(folder: Path, tmp_path: Path) -> None:
    around = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    assert run("pkg-config", "--modversion", "edgelstm", env=around).strip() == edgelstm.__version__
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "edgelstm", env=around))
    library = next(f[2:] for f in flags if f.startswith("-L"))
    compare(
        compiled(tmp_path, *flags),
        tmp_path,
        EDGELSTM_ONNXRUNTIME=str(find_onnxruntime()),
        LD_LIBRARY_PATH=library,
    )


def by_cmake(prefix: Path, tmp_path: Path) -> None:
    minor = ".".join(edgelstm.__version__.split(".")[:2])
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.16)\nproject(program C)\nfind_package(edgelstm {minor} REQUIRED)\n"
        "add_executable(by_cmake program.c)\ntarget_link_libraries(by_cmake PRIVATE edgelstm::edgelstm)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "build")
    compare(tmp_path / "build" / "by_cmake", tmp_path, EDGELSTM_ONNXRUNTIME=str(find_onnxruntime()))


def needed(library: Path) -> set[str]:
    """What a library links, and what it shows."""
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", library)))


def shown(library: Path) -> set[str]:
    return {
        line.split()[-1].partition("@")[0] for line in run("nm", "-D", "--defined-only", library).splitlines()
    }


def test_the_wheel_links_glibc_alone_and_shows_nothing_else(installed: Path) -> None:
    (package,) = installed.glob("lib/python*/site-packages/edgelstm_native")
    for name in ("libedgelstm.so", "libedgelstm_onnxruntime.so"):
        library = package / "lib" / name
        assert not [
            n
            for n in needed(library)
            if not n.startswith(("libc.", "libm.", "libdl.", "libpthread.", "ld-linux"))
        ]
        assert all(s.startswith("edgelstm_") or s == "RegisterCustomOps" for s in shown(library))
    pytest.importorskip("auditwheel")
    (wheel,) = (installed.parent / "native").glob("*.whl")
    said = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    assert re.search(r'platform tag: "manylinux_2_\d+_', said), said


def test_an_arm_wheel_is_made_here_and_its_libraries_run(tmp_path: Path) -> None:
    needs_cmake()
    for tool in ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"no compiler and emulator for aarch64: {tool}")
    wheel = make_wheel(
        ROOT / "plugins",
        tmp_path,
        CMAKE_ARGS=f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}",
        _PYTHON_HOST_PLATFORM="linux-aarch64",
    )
    assert wheel.name.endswith("-py3-none-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    package = tmp_path / "edgelstm_native"
    library = package / "lib"
    assert b'"machine": "aarch64"' in (library / "libedgelstm_onnxruntime.so").read_bytes()
    (tmp_path / "probe.c").write_text(
        "#include <dlfcn.h>\n#include <edgelstm.h>\n#include <stdio.h>\n"
        "int main(int n, char **v) {\n  edgelstm_error e;\n  edgelstm_program *m;\n"
        ""
        '  int code = n < 2 ? -1 : edgelstm_open("none.onnx", NULL, &m, &e);\n'
        "  void *k = dlopen(v[1], RTLD_NOW);\n"
        '  const char *(*isa)(void) = k ? (const char *(*)(void))dlsym(k, "edgelstm_native_isa") : 0;\n'
        '  printf("%u %d %s %s\\n", edgelstm_abi_version(), code, isa ? isa() : dlerror(), e.what);\n}\n'
    )
    flags = (f"-I{package / 'include'}", f"-L{library}", f"-Wl,-rpath,{library}", "-ledgelstm")
    run("aarch64-linux-gnu-gcc", tmp_path / "probe.c", "-o", tmp_path / "probe", *flags, "-ldl")
    said = run(*EMULATED, tmp_path / "probe", library / "libedgelstm_onnxruntime.so")
    assert re.match(r"\d+ 4 neon none.onnx does not exist", said), said
    runtime = os.environ.get("EDGELSTM_ONNXRUNTIME_AARCH64")
    if runtime:  # such as capi/ of a wheel of ONNX Runtime 1.23 for aarch64; later ones crash in qemu 7
        program = compiled(tmp_path, *flags, compiler="aarch64-linux-gnu-gcc")
        compare(program, tmp_path, *EMULATED, EDGELSTM_ONNXRUNTIME=runtime)


@pytest.mark.parametrize("machine", ["", "aarch64"])
def test_debian_packages(machine: str, tmp_path: Path) -> None:
    needs_cmake()
    if shutil.which("dpkg-deb") is None:
        pytest.skip("pkg-config or cmake is not here: Debian's dpkg")
    if machine and shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("no compiler for aarch64: apt install g++-aarch64-linux-gnu")
    build = tmp_path / "native"
    toolchain = [f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}"] if machine else []
    run("cmake", "-S", ROOT / "plugins" / "native", "-B", build, "-DCMAKE_INSTALL_PREFIX=/usr", *toolchain)
    run("cmake", "--build", build, "-j2")
    run("cpack", "-G", "DEB", cwd=build)
    packages = sorted(build.glob("*.deb"))
    names = [package.name.partition("_")[0] for package in packages]
    assert names == ["libedgelstm-dev", "libedgelstm1"]
    if shutil.which("lintian"):
        done = subprocess.run(["lintian", *packages], capture_output=True, text=True, check=False)
        assert not [line for line in done.stdout.splitlines() if line.startswith("E:")], done.stdout
    system = tmp_path / "system"
    for package in packages:
        run("dpkg-deb", "-x", package, system)
    triplet = "aarch64-linux-gnu" if machine else run("cc", "-print-multiarch").strip()
    library = system / "usr" / "lib" / triplet
    assert (library / "libedgelstm.so.1").is_symlink()
    assert (library / "edgelstm" / "libedgelstm_onnxruntime.so").is_file()
    depends = run("dpkg-deb", "-f", packages[1], "Depends")
    assert re.search("libc6", depends)
    assert re.search(r"libstdc\+\+6", depends)
    if machine:
        assert "arm64" in packages[0].name
    else:
        by_pkg_config(library / "pkgconfig", tmp_path)
        by_cmake(system / "usr", tmp_path)
