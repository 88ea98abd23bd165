"""What pages say of an install without a checkout: their commands run from the wheel, in an empty folder, where there is no PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pages import environment, follow, plain_lines, run_line

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: What a page's commands take that only the reader has: models, data, GPUs, compilers.
YOURS = (
    "model.keras", "nets.py", "other.onnx", "net.onnx", "plants.csv", "today.csv", "knmi/", "radar/", "model_1", "model_2", "dtln",
    "build-plugin", "build-engine", "bench ", "serve pipeline.toml", "kept/", "edgelstm top", "edgelstm config",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the source distribution gives, made offline, unpacked; beside it a PyTorch that can't be imported."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (source,) = place.glob("*.tar.gz")
    with tarfile.open(source) as file:
        file.extractall(place / "source", filter="data")
    (unpacked,) = (place / "source").iterdir()
    wheel = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(place)]
    subprocess.run([sys.executable, "-m", "pip", *wheel, str(unpacked)], check=True, timeout=120)
    (made,) = place.glob("*.whl")
    with zipfile.ZipFile(made) as file:
        file.extractall(place / "site")
    (place / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    return place / "site"


def test_the_package_is_the_wheel_s(tmp_path: Path, installed: Path) -> None:
    found = environment(tmp_path, installed)
    done = subprocess.run(
        [sys.executable, "-c", "import edgelstm; print(edgelstm.__file__)"],
        env=found,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert Path(done.stdout.strip()).parents[1] == installed


def test_recipes(tmp_path: Path, installed: Path) -> None:
    for module in ("av", "PIL", "pydantic"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    assert follow(DOCS / "recipes.md", tmp_path, environment(tmp_path, installed)) >= 15


@pytest.fixture(scope="module")
def together(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A folder for all pages, and the commands that ran there: what stands on several pages runs once."""
    return tmp_path_factory.mktemp("pages"), set()


@pytest.mark.parametrize(
    ("page", "least"),
    [("../README.md", 3), ("install.md", 2), ("start.md", 10), ("pictures.md", 1), ("serve.md", 1)],
)
def test_a_page(page: str, least: int, installed: Path, together: tuple[Path, set[str]]) -> None:
    folder, done = together
    around = environment(folder, installed)
    lines = [line for line in plain_lines(DOCS / page) if not any(word in line for word in YOURS)]
    assert len(lines) >= least
    first = "edgelstm export example:moving_digits/model.safetensors -o digits.onnx"
    for line in (first, *lines):
        if line not in done:
            run_line(line, folder, around)
            done.add(line)


def test_the_sources_of_kernels_and_plugins_are_there(installed: Path) -> None:
    plugins = installed / "edgelstm" / "_plugins"
    wanted = {
        path.relative_to(ROOT / "plugins")
        for folder in ("include", "src", "tensorrt", "onnxruntime", "cmake")
        for path in (ROOT / "plugins" / folder).rglob("*")
        if path.is_file()
    }
    assert len(wanted) > 20
    assert wanted <= {path.relative_to(plugins) for path in plugins.rglob("*")}
    samples = (
        *(ROOT / "examples").glob("*/model.safetensors"),
        *(path for path in (ROOT / "examples" / "serve").iterdir() if path.suffix not in (".md", ".py")),
    )
    for path in samples:
        assert (installed / "edgelstm" / "_examples" / path.relative_to(ROOT / "examples")).is_file(), path
