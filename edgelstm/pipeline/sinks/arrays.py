"""Outputs as an .npz file, an array for each output."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

from edgelstm.dtypes import np_dtype
from edgelstm.files import atomic_path
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write


@contextmanager
def npz(path: Path, signature: Signature, context: Context) -> Iterator[Write]:
    """Stack outputs over time, as long as the disk lasts: memory holds one frame.

    A zip archive takes one member at a time and an .npy header tells the length, known at the end; so each output
    is spooled to a file beside the target first.
    """
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        spools = {
            spec.name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            for spec in signature.outputs
        }
        count = 0
        times: list[float] = []
        names: list[str] = []
        streams: list[str] = []

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            nonlocal count
            for spec in signature.outputs:
                array = np.ascontiguousarray(outputs[spec.name], np_dtype(spec.dtype))
                spools[spec.name].write(array.data)
            count += 1
            times.append(np.nan if frame.time is None else frame.time)
            names.append(frame.name)
            if frame.stream is not None:
                streams.append(frame.stream)

        yield write

        with zipfile.ZipFile(temporary, "w") as archive:
            for spec in signature.outputs:
                header = {
                    "descr": npy.dtype_to_descr(np_dtype(spec.dtype)),
                    "fortran_order": False,
                    "shape": (count, *spec.frame_shape),
                }
                spool = spools[spec.name]
                spool.seek(0)
                with archive.open(f"{spec.name}.npy", "w", force_zip64=True) as member:
                    npy.write_array_header_2_0(member, header)
                    shutil.copyfileobj(spool, member, 1024 * 1024)
            said = {
                "time": np.array(times),
                "name": np.array(names, np.str_),
                "attrs": np.array(json.dumps(context.to_json())),
                **({"stream": np.array(streams, np.str_)} if len(streams) == count and count else {}),
            }
            for name, array in said.items():
                if name not in spools:
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        npy.write_array(member, array, allow_pickle=False)
