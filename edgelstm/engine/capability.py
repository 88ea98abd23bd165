"""What each TensorRT version and each GPU architecture can do: data, looked at before anything is built.

Sources: NVIDIA/TensorRT's public headers of each release (which names they have), NVIDIA's support matrices and pages
about DLA, the JetPack release notes, CUDA's compute capabilities; for TensorRT for RTX what release 1.7.1 did here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from edgelstm.errors import EdgeLstmError
from edgelstm.passes.placement import GPUS
from edgelstm.runtime.sidecar import RuntimeName

PluginApi = Literal["none", "V2", "V3"]


@dataclass(frozen=True)
class Library:
    """What a TensorRT release line can do, from version ``since`` on until the next row's.

    strong: strongly typed networks, so that precision comes from the graph. precisions: types of convolutions and
    products. plugins: newest plugin interface. aliasing: a plugin's output may lie over its input. dla: architectures whose
    DLA cores it drives. timing_cache: reusable between builds. without_gpu: builds where there is none. oldest, newest:
    the range of compute capabilities it compiles for; only: those alone, where it leaves out some between the two.
    """

    name: str
    runtime: RuntimeName
    since: tuple[int, ...]
    ships: str
    strong: bool
    precisions: frozenset[str]
    plugins: PluginApi
    aliasing: bool
    dla: frozenset[str]
    timing_cache: bool
    without_gpu: bool
    oldest: float
    newest: float
    only: frozenset[str] = frozenset()

    def compiles_for(self, capability: str) -> bool:
        """Whether it compiles for a compute capability such as "8.7"."""
        return capability in self.only if self.only else self.oldest <= float(capability) <= self.newest

    @property
    def compiled_text(self) -> str:
        """The compute capabilities for people: "7.5 to 9.0", or a list."""
        return ", ".join(sorted(self.only, key=float)) if self.only else f"{self.oldest} to {self.newest}"


_OLD = frozenset({"fp32", "fp16", "int8"})
_ALL = frozenset({"fp32", "fp16", "bf16", "int8", "fp8"})
_NONE: frozenset[str] = frozenset()
_JETSONS = frozenset({"xavier", "orin"})
_ORIN = frozenset({"orin"})
#: What the builder of TensorRT for RTX has numbers for: neither Orin, Hopper, Thor nor Blackwell for data centres.
_RTX = frozenset({"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"})

# fmt: off
LIBRARIES: tuple[Library, ...] = (
    #       name          runtime         since        ships                  strong precisions plugins aliasing dla    cache  no GPU oldest newest
    Library("8.5",        "tensorrt",     (8, 5),      "JetPack 5.1",         False, _OLD, "V2",   False, _JETSONS, True,  False, 5.3, 9.0),
    Library("8.6",        "tensorrt",     (8, 6),      "",                    False, _OLD, "V2",   False, _JETSONS, True,  False, 6.0, 9.0),
    Library("10.0",       "tensorrt",     (10, 0),     "",                    True,  _ALL, "V3",   False, _ORIN,    True,  False, 7.5, 9.0),
    Library("10.3",       "tensorrt",     (10, 3),     "JetPack 6.x",         True,  _ALL, "V3",   True,  _ORIN,    True,  False, 7.5, 9.0),
    Library("10.8",       "tensorrt",     (10, 8),     "",                    True,  _ALL, "V3",   True,  _NONE,    True,  False, 7.5, 12.1),
    Library("10.13",      "tensorrt",     (10, 13),    "JetPack 7.0, 7.1",    True,  _ALL, "V3",   True,  _NONE,    True,  False, 7.5, 12.1),
    Library("10.16",      "tensorrt",     (10, 16),    "",                    True,  _ALL, "V3",   True,  _NONE,    True,  False, 7.5, 12.1),
    Library("11.0",       "tensorrt",     (11, 0),     "",                    True,  _ALL, "V3",   True,  _NONE,    True,  False, 7.5, 12.1),
    Library("11.4.1",     "tensorrt",     (11, 4, 1),  "JetPack 7.2.2",       True,  _ALL, "V3",   True,  _ORIN,    True,  False, 7.5, 12.1),
    Library("RTX 1.x",    "tensorrt-rtx", (1, 0),      "",                    True,  _ALL, "none", False, _NONE,    False, True,  7.5, 12.1, _RTX),
)
# fmt: on


@dataclass(frozen=True)
class Architecture:
    """A family of NVIDIA GPUs. ``key``: its name in :data:`edgelstm.passes.placement.GPUS`."""

    key: str
    label: str
    capabilities: tuple[str, ...]

    @property
    def precisions(self) -> frozenset[str]:
        """What its tensor cores multiply."""
        return GPUS[self.key]


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("xavier", "Xavier", ("7.2",)),
    Architecture("turing", "Turing", ("7.5",)),
    Architecture("ampere", "Ampere", ("8.0", "8.6")),
    Architecture("orin", "Orin", ("8.7",)),
    Architecture("ada", "Ada", ("8.9",)),
    Architecture("hopper", "Hopper", ("9.0",)),
    Architecture("blackwell", "Blackwell", ("10.0", "10.3", "12.0", "12.1")),
    Architecture("thor", "Thor", ("11.0",)),
)


def library(runtime: RuntimeName, version: str) -> Library:
    """The row of a TensorRT version such as "10.3.0.26". Raises EdgeLstmError for one that is older than the table."""
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    rows = [row for row in LIBRARIES if row.runtime == runtime and row.since <= numbers]
    if not rows:
        oldest = min(row.since for row in LIBRARIES if row.runtime == runtime)
        raise EdgeLstmError(
            f"{runtime} {version} is too old",
            expected=f"{'.'.join(map(str, oldest))} or later",
            hint="Update it (on a Jetson: JetPack)",
        )
    return max(rows, key=lambda row: row.since)


def architecture(capability: str) -> Architecture:
    """The architecture of a compute capability such as "8.7". Raises EdgeLstmError for one that is unknown."""
    for row in ARCHITECTURES:
        if capability in row.capabilities:
            return row
    known = sorted((c for row in ARCHITECTURES for c in row.capabilities), key=float)
    raise EdgeLstmError("compute capability", found=capability, expected=f"one of {', '.join(known)}")


def capabilities(gpus: Iterable[str]) -> tuple[str, ...]:
    """Compute capabilities by number ("8.7", or "87" as nvcc writes it) or by the name of a family ("orin")."""
    families = {row.key: row.capabilities for row in ARCHITECTURES}
    found: list[str] = []
    for gpu in gpus:
        number = f"{gpu[:-1]}.{gpu[-1]}" if gpu.isdigit() and len(gpu) > 1 else gpu
        found += families.get(gpu.lower(), (number,))
    return tuple(dict.fromkeys(found))


def family(gpu: str) -> str:
    """The name of the family a GPU is of, given by that name or by its compute capability."""
    return gpu if any(row.key == gpu for row in ARCHITECTURES) else architecture(gpu).key


def check(
    row: Library,
    targets: Iterable[str],
    *,
    precisions: Collection[str],
    plugin: bool = False,
    timing_cache: bool = False,
    dla: bool = False,
) -> None:
    """Refuse early what ``row`` or one of the compute capabilities ``targets`` can't do, with the reason.

    precisions: what the graph's products read (fp32, fp16, bf16, int8, fp8).
    """
    label = "TensorRT for RTX" if row.runtime == "tensorrt-rtx" else f"TensorRT {row.name}"
    if not row.strong:
        raise EdgeLstmError(
            f"{label} ({row.ships or 'of 2023'}) has no strongly typed networks: it would choose precisions itself",
            expected="TensorRT 10.3 or later",
            hint="On an Orin, JetPack 6 brings 10.3; on a Xavier run the .onnx file with ONNX Runtime",
        )
    if plugin and row.plugins == "none":
        raise EdgeLstmError(
            f"{label} has no plugins, and aborts the process when a graph holds one",
            hint="Use --gates native",
        )
    if timing_cache and not row.timing_cache:
        raise EdgeLstmError(
            f"{label} has no timing cache that is reused between builds",
            hint="Leave --timing-cache out: it builds in well under a second",
        )
    _check_precisions(label, precisions, row.precisions)
    for capability in targets:
        gpu = architecture(capability)
        if not row.compiles_for(capability):
            hint = "Update TensorRT" if float(capability) > row.newest else "Use an older TensorRT"
            raise EdgeLstmError(
                f"{label} compiles for compute capabilities {row.compiled_text}",
                found=f"{capability} ({gpu.label})",
                hint="Use TensorRT itself, on that GPU" if row.only else hint,
            )
        _check_precisions(f"{gpu.label} (compute capability {capability})", precisions, gpu.precisions)
        if dla and gpu.key not in row.dla:
            having = ", ".join(f"{r.name} on {' and '.join(sorted(r.dla))}" for r in LIBRARIES if r.dla)
            raise EdgeLstmError(
                f"{label} drives no DLA core on {gpu.label}",
                expected=f"TensorRT {having}",
                hint="Leave --dla-core out",
            )
    if dla and not row.dla:
        raise EdgeLstmError(f"{label} drives no DLA cores", hint="Leave --dla-core out")


def _check_precisions(label: str, wanted: Collection[str], has: frozenset[str]) -> None:
    for precision in sorted(set(wanted) - has):
        raise EdgeLstmError(
            f"{label} does not multiply in {precision}",
            expected=f"one of {', '.join(sorted(has))}",
            hint="Quantise the model for what the GPU has: edgelstm quantize --runtime tensorrt --gpu NAME",
        )


def table() -> list[dict[str, str]]:
    """Both tables as rows of text, for the documentation and ``doctor``: one row a library, then one an architecture."""
    rows = [
        {
            "what": f"TensorRT {r.name}" if r.runtime == "tensorrt" else f"TensorRT for {r.name}",
            "comes with": r.ships,
            "strongly typed": "yes" if r.strong else "no",
            "products": ", ".join(sorted(r.precisions)),
            "plugins": r.plugins + (", in place" if r.aliasing else ""),
            "DLA": ", ".join(sorted(r.dla)) or "no",
            "timing cache": "yes" if r.timing_cache else "no",
            "compute capabilities": r.compiled_text,
        }
        for r in LIBRARIES
    ]
    rows += [
        {
            "what": a.label,
            "comes with": "",
            "strongly typed": "",
            "products": ", ".join(sorted(a.precisions)),
            "plugins": "",
            "DLA": "yes" if a.key in _JETSONS else "no",
            "timing cache": "",
            "compute capabilities": ", ".join(a.capabilities),
        }
        for a in ARCHITECTURES
    ]
    return rows
