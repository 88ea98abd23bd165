"""Every tutorial works as it stands, as the notebook that the site makes of it: each of its files is written into an empty folder,
its commands run there in their order, and what the page says that they print is seen."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from notebook import made
from pages import environment, follow

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NEEDS = {"camera": ("av",), "radar": ("h5py", "rasterio")}
HEADERS = ROOT.parent / "shared" / "onnxruntime-headers" / "1.21"


def follow_notebook(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same by way of the page's notebook; gives the folder that it made for itself."""
    import nbclient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setenv("COLUMNS", "120")
    book = made(page)
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute(cwd=str(place))
    (folder,) = place.glob("edgelstm-*")
    printed = {
        cell.source: "".join(output.get("text", "") for output in cell.outputs)
        for cell in book.cells
        if cell.cell_type == "code"
    }
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        said = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
        text = printed["%%bash -e\n" + "\n".join(command for command, _ in said)]
        for command, seen in said:
            wanted = ".*".join(map(re.escape, seen.strip().split("...")))
            assert re.search(wanted, text, re.DOTALL), f"{command}\n{text[-2000:]}"
    return folder


def test_there_is_one_for_each_kind_of_user() -> None:
    assert [page.stem for page in PAGES] == ["audio", "camera", "cpp", "radar", "robot", "sensors"]
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert all(f"tutorials/{page.stem}" in index for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "onnxscript", *NEEDS.get(page.stem, ())):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    jupyter = all(importlib.util.find_spec(module) for module in ("nbclient", "ipykernel"))
    if jupyter:
        folder = follow_notebook(page, tmp_path, monkeypatch)
    else:
        folder = tmp_path
        follow(page, folder, environment(folder, ROOT))
    check = CHECKS.get(page.stem)
    if check is not None:
        check(folder)


def cameras(folder: Path) -> None:
    with np.load(folder / "seen.npz") as seen:
        assert seen["y"].shape == (40, 1, 48, 64)


def radars(folder: Path) -> None:
    with np.load(folder / "forecast.npz") as made:
        assert made["forecast"].shape == (24, 3, 1, 32, 32)
    assert len(list((folder / "maps").glob("*.png"))) == 24


def sensors(folder: Path) -> None:
    alarms = [
        line for line in (folder / "scores.csv").read_text().splitlines() if line.endswith(("True", "1"))
    ]
    assert 1 <= len(alarms) <= 20, alarms


CHECKS = {"camera": cameras, "radar": radars, "sensors": sensors}


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("torch") is None or shutil.which("g++") is None:
        pytest.skip("needs torch and g++")
    folder = tmp_path_factory.mktemp("cpp")
    follow(ROOT / "docs" / "tutorials" / "cpp.md", folder, environment(folder, ROOT))
    return folder


#: The wheel's library has no name to link by, and symbols that bear its version: it is opened when it is needed.
OPENED_LATER = """
#include <dlfcn.h>
#include <onnxruntime_c_api.h>
extern "C" const OrtApiBase* ORT_API_CALL OrtGetApiBase() noexcept {
    void* library = dlopen(LIBRARY, RTLD_NOW);
    return reinterpret_cast<const OrtApiBase*(*)()>(dlsym(library, "OrtGetApiBase"))();
}
"""


def streamed(folder: Path, command: list[str | Path]) -> None:
    """Compile, stream the frames, compare with the Runner."""
    done = subprocess.run(["g++", "-std=c++17", "-O1", *command, "-o", "stream"], cwd=folder, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    frames = (folder / "frames.f32").read_bytes()
    done_too = subprocess.run([folder / "stream"], cwd=folder, input=frames, capture_output=True)
    assert done_too.returncode == 0, done_too.stderr[-2000:]
    found = np.frombuffer(done_too.stdout, np.float32).reshape(20, 4)
    with np.load(folder / "expected.npz") as expected:
        np.testing.assert_allclose(found, expected["y"], rtol=1e-5, atol=1e-6)


def test_the_program_for_onnxruntime(cpp: Path) -> None:
    if not HEADERS.is_dir():
        pytest.skip("needs ONNX Runtime's headers, in shared/ beside the checkout")
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (cpp / "later.cpp").write_text(OPENED_LATER)
    streamed(cpp, ["stream.cpp", "later.cpp", f'-DLIBRARY="{library}"', "-I", HEADERS, "-ldl"])


def test_the_program_for_openvino(cpp: Path) -> None:
    openvino = pytest.importorskip("openvino")
    home = Path(openvino.__file__).parent
    libraries = sorted((home / "libs").glob("libopenvino.so*"))
    if not libraries or not (home / "include").is_dir():
        pytest.skip("this OpenVINO has no headers")
    streamed(cpp, ["openvino.cpp", "-I", home / "include", libraries[0], f"-Wl,-rpath,{home / 'libs'}"])
