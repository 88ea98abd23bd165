"""Gathers what a bare GPU machine lacks, in lots: ``python benchmarks/gpu/carry.py [LOT ...] [--arch 90]``.

Everything goes to build/contact/ (contact.py looks there); the last lines say how many MiB each lot takes. Lots:

contact      the benchmark's two builds for that architecture (else nvcc is called there), TensorRT's headers, the commit
wheels       cuda-bindings, cuda-core, cuda-pathfinder, for machines without them
onnxruntime  ONNX Runtime with its CUDA provider, machine code for that architecture alone (a quarter of the wheel)

Headers: $EDGELSTM_TENSORRT_HEADERS, else ../shared/tensorrt-headers, else the user's cache. onnxruntime downloads 250 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import standalone  # noqa: E402

from edgelstm.runtime.plugin_library import cache_folder  # noqa: E402

LOTS = ("contact", "wheels", "onnxruntime")
LIMIT = 64 * 2**20  # bytes of a lot and the working tree together
MAGIC = (0xBA55ED50).to_bytes(4, "little")
WHEELS = ("cuda-bindings", "cuda-core", "cuda-pathfinder")
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)


def main() -> None:
    """Gather, weigh."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lots", nargs="*", help=f"of {', '.join(LOTS)}; default contact wheels")
    parser.add_argument("--arch", default="90", help="GPU architecture: 90 for H100 and H200")
    parser.add_argument("--python", default="3.12", help="version there, for wheels")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "contact")
    a = parser.parse_args()
    if unknown := set(a.lots) - set(LOTS):
        parser.error(f"unknown lot {', '.join(unknown)}; there are {', '.join(LOTS)}")
    a.out.mkdir(parents=True, exist_ok=True)
    for lot in a.lots or ["contact", "wheels"]:
        {"contact": contact, "wheels": wheels, "onnxruntime": onnxruntime}[lot](a)
    tree = tree_bytes()
    print(f"working tree: {mib(tree)} MiB")
    own = [p for p in a.out.iterdir() if p.name not in ("wheels", "onnxruntime.tar.xz")]
    for name, files in (
        ("contact", own),
        ("wheels", [a.out / "wheels"]),
        ("onnxruntime", [a.out / "onnxruntime.tar.xz"]),
    ):
        size = sum(bytes_of(p) for p in files)
        if size:
            fits = "fits" if size + tree <= LIMIT else "does NOT fit"
            spare = size + tree - tree_bytes("examples")
            print(
                f"{name}: {mib(size)} MiB; with the tree {mib(size + tree)}, {fits} in {mib(LIMIT)}; "
                f"{mib(spare)} without examples/, which nothing here reads (git sparse-checkout set --no-cone '/*' '!/examples')"
            )


def contact(a: argparse.Namespace) -> None:
    """Programs, headers, commit."""
    (a.out / "commit").write_text(said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"))
    nvcc = standalone.find_nvcc()
    for name, flags in standalone.BUILDS.items():
        program = a.out / ("-".join(["bench", *name.split()]) + f"-sm_{a.arch}")
        if nvcc is None:
            print(f"{program.name}: no nvcc here; it is compiled there")
            continue
        command = standalone.command(nvcc, ROOT / "plugins", program, f"{a.arch[:-1]}.{a.arch[-1]}")
        subprocess.run([*command, *flags], check=True)
    given = [
        os.environ.get("EDGELSTM_TENSORRT_HEADERS"),
        ROOT.parent / "shared" / "tensorrt-headers",
        cache_folder() / "tensorrt-headers",
    ]
    source = next((Path(p) for p in given if p and Path(p).is_dir()), None)
    if source is None:
        print("headers: none here, so the plugin's tests are left out there")
    else:
        for file in (f for f in source.rglob("*.h") if f.is_file()):
            target = a.out / "headers" / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def wheels(a: argparse.Namespace) -> None:
    """Of the driver's Python packages."""
    download(a, a.out / "wheels", *WHEELS)


def onnxruntime(a: argparse.Namespace) -> None:
    """The wheel, less machine code for other GPUs and what no session needs, packed by xz."""
    with tempfile.TemporaryDirectory() as folder:
        download(a, Path(folder), "onnxruntime-gpu")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(folder, "site"))
        site = Path(folder, "site")
        for path in site.rglob("*"):
            unused = ("transformers", "tools", "quantization", "datasets")
            if path.is_dir() and path.parent.name == "onnxruntime" and path.name in unused:
                shutil.rmtree(path)
            # Python's module holds the runtime itself; the library is for C.
            elif path.name.startswith(("libonnxruntime_providers_tensorrt", "libonnxruntime.so")):
                path.unlink()
        if shutil.which("strip"):
            libraries = [str(p) for p in site.rglob("*.so") if p.stat().st_size > 2**20]
            subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
        for library in site.rglob("libonnxruntime_providers_cuda*"):
            data = bytearray(library.read_bytes())
            print(
                f"{library.name}: {mib(prune(data, int(a.arch)))} MiB of machine code for other GPUs zeroed"
            )
            library.write_bytes(data)
        subprocess.run(
            [
                "tar",
                "-C",
                str(site),
                "-c",
                "-I",
                "xz --x86 --lzma2=preset=9e,dict=128MiB",
                "-f",
                str(a.out / "onnxruntime.tar.xz"),
                ".",
            ],
            check=True,
        )


def prune(data: bytearray, keep: int) -> int:
    """Zero the code of every fat binary in ``data`` that is for another architecture; how many bytes it was.

    A fat binary: magic, version, header size (16 bits each), size; then entries: kind, version (16 bits each), header size, size of
    what follows it; the architecture stands 28 bytes in. Anything that does not look so is left as it is.
    """
    zeroed, place = 0, data.find(MAGIC)
    while place >= 0:
        version, header = (int.from_bytes(data[place + k : place + k + 2], "little") for k in (4, 6))
        end = place + header + int.from_bytes(data[place + 8 : place + 16], "little")
        if (version, header) != (1, 16) or end > len(data):
            place = data.find(MAGIC, place + 4)
            continue
        entry = place + header
        while entry + 32 <= end:
            head = int.from_bytes(data[entry + 4 : entry + 8], "little")
            size = int.from_bytes(data[entry + 8 : entry + 16], "little")
            if not 24 <= head <= 512 or entry + head + size > end:
                break
            if int.from_bytes(data[entry + 28 : entry + 32], "little") != keep:
                data[entry + head : entry + head + size] = bytes(size)
                zeroed += size
            entry += head + size
        place = data.find(MAGIC, end)
    return zeroed


def download(a: argparse.Namespace, folder: Path, *names: str) -> None:
    """Wheels for the machine there."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        a.python,
        "--implementation",
        "cp",
        *platforms,
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(folder), *names], check=True
    )


def tree_bytes(part: str = ".") -> int:
    """Of the files that git knows or would add."""
    listed = said("git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", part).splitlines()
    return sum(p.stat().st_size for name in listed if (p := ROOT / name).is_file())


def bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(p.stat().st_size for p in files if p.is_file())


def mib(size: int) -> str:
    return f"{size / 2**20:.2f}"


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
