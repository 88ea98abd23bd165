"""Run as a process of its own: reads one HDF5 file and writes what Keras keeps in it to standard output.

    python hdf5_reader.py '{"path": "model.h5", ...limits...}'      or the file on standard input, with "path": null

The HDF5 library is C code that was not written for files made to harm it: HDF5 2.0.0 spins for ever in a string's length
(seen on 2 of about 150 files with 1 to 16 random changes, and again in a later run). Here it may spin, crash or fill its
memory; the process that asked goes on. Output: one line of JSON (groups, attributes, arrays with their shapes, links, or
an error), then the arrays as little-endian float32, one after the other.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

#: Attributes Keras writes that matter here, and those split into numbered pieces.
TEXTS = ("model_config", "keras_version")
LISTS = ("weight_names", "layer_names")
#: At the root; what training left behind.
PASSED_OVER = ("optimizer", "optimizer_weights")
#: deflate, shuffle, checksum: those that come with the library. Any other would load code.
FILTERS = {1, 2, 3}
MAX_DEPTH = 64


class Refused(Exception):
    """What is wrong, what was found, what was expected."""


def read(limits: dict[str, Any], stdin: bytes = b"") -> tuple[dict[str, Any], list[Any]]:
    """Header and arrays of the file."""
    import h5py

    size = limits["size"]
    if limits["path"] is None:
        file = h5py.File(h5py.h5f.open_file_image(stdin))
    else:
        file = h5py.File(limits["path"], "r", locking=False)
    header: dict[str, Any] = {"groups": {}, "attributes": {}, "arrays": [], "links": {}}
    arrays: list[Any] = []
    waiting: list[tuple[str, Any, int]] = [("", file, 0)]
    total = count = 0
    while waiting:
        path, group, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise Refused(f"{path[:80]}: groups inside groups", f"more than {MAX_DEPTH}", "a few")
        names = list(group)
        count += len(names)
        if count > limits["objects"]:
            raise Refused(f"{path or '/'}: members", f"more than {limits['objects']}", "a few thousand")
        header["groups"][path] = names
        header["attributes"][path] = _attributes(group, limits)
        for name in names:
            below = f"{path}/{name}" if path else name
            if not path and name in PASSED_OVER:
                continue
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                header["links"][below] = type(link).__name__
                continue
            node = group[name]
            if isinstance(node, h5py.Group):
                waiting.append((below, node, depth + 1))
            elif isinstance(node, h5py.Dataset):
                total += _check(below, node, size, limits)
                if total > limits["bytes"]:
                    raise Refused("arrays", f"more than {limits['bytes']} bytes", "a file of weights")
                header["arrays"].append([below, list(node.shape)])
                arrays.append(node[()])
    return header, arrays


def _limit_memory(most: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (AttributeError, OSError, ValueError):
        return  # macOS names the limit and takes none; sizes are checked before anything is read all the same


def _check(path: str, node: Any, size: int, limits: dict[str, Any]) -> int:
    """Bytes of the data set, once it is sure that reading it takes no more than the file can hold."""
    shape, dtype, stored = node.shape, node.dtype, node.id.get_storage_size()
    if node.external or node.is_virtual:
        raise Refused(f"{path} keeps its numbers in another file", None, "numbers inside the file")
    plist = node.id.get_create_plist()
    unknown = {plist.get_filter(k)[0] for k in range(plist.get_nfilters())} - FILTERS
    if unknown:
        raise Refused(f"{path} is packed by a filter", sorted(unknown), "gzip or none")
    if shape is None or len(shape) > 8 or dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise Refused(path, f"{dtype} {shape}", "an array of numbers")
    bytes_ = math.prod(shape) * max(dtype.itemsize, 4)
    if bytes_ > stored * limits["ratio"] + limits["slack"] or stored > size:
        raise Refused(
            f"{path} claims more numbers than the file holds",
            f"shape {list(shape)}, {bytes_} bytes, {stored} stored",
            f"at most {limits['ratio']} times what is stored",
        )
    return int(bytes_)


def _attributes(group: Any, limits: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in group.attrs:
        plain = name.rstrip("0123456789")
        if name not in TEXTS and plain not in LISTS:
            continue
        held = group.attrs.get_id(name)
        if 0 in (held.shape or ()):  # a layer without weights
            found[name] = []
            continue
        if held.get_storage_size() > limits["text"] or math.prod(held.shape or ()) > limits["objects"]:
            raise Refused(
                f"attribute {name}", f"{held.get_storage_size()} bytes", f"at most {limits['text']}"
            )
        value = group.attrs[name]
        value = value.tolist() if hasattr(value, "tolist") else value
        if name in TEXTS:
            found[name] = _text(value)
        else:
            found[name] = [_text(v) for v in (value if isinstance(value, list) else [value])]
    return found


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def main() -> None:
    """Read, then write; every error is part of what is written."""
    limits = json.loads(sys.argv[1])
    header: dict[str, Any]
    arrays: list[Any] = []
    try:
        import h5py  # noqa: F401  (maps its memory before there is a limit)

        _limit_memory(limits["memory"])
        header, arrays = read(limits, sys.stdin.buffer.read() if limits["path"] is None else b"")
    except ImportError:
        header = {"error": {"missing": True}}
    except Refused as error:
        what, found, expected = error.args
        header = {"error": {"what": what, "found": found, "expected": expected}}
    except Exception as error:  # whatever the library raises
        header = {"error": {"broken": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}}
    out = sys.stdout.buffer
    out.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        out.write(array.astype("<f4").tobytes())
    out.flush()


if __name__ == "__main__":
    # The folder of this script holds modules of a package, no names to be imported from here.
    sys.path.pop(0)
    main()
