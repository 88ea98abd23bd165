"""One output as sound: a WAV file of 16 bits, one channel."""

from __future__ import annotations

import logging
import wave
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import atomic_path
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks.missing import Missing
from edgelstm.pipeline.sinks.panels import View, as_float
from edgelstm.pipeline.sinks.room import Full, check_room
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write

log = logging.getLogger(__name__)

#: Bytes of samples that the header can tell, which has 32 bits for them and itself.
LONGEST = 2**32 - 64


@contextmanager
def wav(path: Path, signature: Signature, view: View, context: Context) -> Iterator[Write]:
    """The samples of each step, in time: silence stands for steps that are missing. -1 to 1 is the full range, what lies outside is cut and told."""
    specs = signature.outputs if view.output is None else (signature.output(view.output),)
    if len(specs) != 1 or context.hop is None:
        raise EdgeLstmError(
            f"{path}: sound",
            found=f"outputs {', '.join(t.name for t in specs)}{'' if context.hop else ' of a source that is no sound'}",
            expected="one output of samples, of a model whose source is sound",
        )
    spec = specs[0]
    rate, hop = context.hop
    size = int(np.prod(spec.frame_shape))
    if size != hop:
        raise EdgeLstmError(
            f"{path}: sound",
            found=f"{count_of(size, 'sample')} a step of output {spec.name!r}",
            expected=f"{hop}, the hop of the source",
            hint=f"Blocks that overlap are added by the postprocessing overlap_add={hop}"
            if size > hop
            else None,
        )
    cut = written = 0
    missing = Missing(path, "silence", hop / rate, hop / rate)
    with atomic_path(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            nonlocal cut, written
            values = as_float(outputs[spec.name], spec.dtype).ravel() * 32768.0
            cut += int(np.sum((values > 32767) | (values < -32768)))
            free = missing.before(frame) * hop
            size = 2 * (free + values.size)
            check_room(path.parent, size)
            if written + size > LONGEST:
                raise Full(f"{path}: sound", found="more than 4 GiB", expected="what a WAV file can hold")
            file.writeframes(
                bytes(2 * free) + np.clip(np.rint(values), -32768, 32767).astype("<i2").tobytes()
            )
            written += size

        yield write
    missing.tell()
    if cut:
        log.warning("%s: %d samples outside -1..1 were cut", path, cut)
