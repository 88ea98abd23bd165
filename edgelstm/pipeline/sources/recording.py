"""Recordings in MCAP: images and arrays of ROS 2 messages, and arrays of JSON messages, a stream for each topic.

``FILE.mcap:topic=/camera/image``, ``FILE.mcap:topic=/left,/right`` (streams NAME:/left and NAME:/right), ``FILE.mcap:topic=/joints:field=position``.
Times are those of the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Place
from edgelstm.pipeline.sources.clock import utc
from edgelstm.pipeline.sources.ros import Read, read_array, read_compressed, read_image
from edgelstm.pipeline.sources.source import NOTHING, Frame, Source

SUFFIXES = (".mcap",)
OPTIONS = ("topic", "field")
#: Bytes of a record, and of a chunk once it is uncompressed, at most.
MAX_RECORD = 1024**3
#: Messages whose meaning needs no field.
_KNOWN: dict[str, Read] = {
    "sensor_msgs/msg/Image": read_image,
    "sensor_msgs/msg/CompressedImage": read_compressed,
    **{
        f"std_msgs/msg/{name}MultiArray": read_array
        for name in (*("Float32", "Float64"), *(f"{u}Int{n}" for u in ("", "U") for n in (8, 16, 32, 64)))
    },
}


@dataclass(frozen=True)
class _Topic:
    """A topic: how it is encoded, the name of its messages, and how many there are."""

    name: str
    encoding: str
    schema: str
    count: int

    def words(self) -> str:
        """For messages to people."""
        return f"{self.name} ({self.schema or self.encoding}, {self.count})"


def open_mcap(paths: Sequence[Path], options: Mapping[str, str]) -> Source:
    """Frames of the topic that can be read, or of ``topic``; of several, a stream each. field: which array of a message, ``outputs.y.values``.
    paths: the parts of one recording, in their order.

    Image [H, W] or [H, W, 3] as its encoding says, uint8, uint16 or float32; CompressedImage as a file of that kind; arrays in their layout's
    shape. A file without its end (the recorder was killed) is an EdgeLstmError.
    """
    mcap = require("mcap.reader", "mcap", f"reading {paths[0]}")
    summaries = []
    for path in paths:
        with _opened(mcap, path) as reader:
            summaries.append(_summary(reader, path))
    what = paths[0] if len(paths) == 1 else paths[0].parent
    chosen = _choose(what, _topics(summaries), options)
    ros = None
    if any(t.encoding == "cdr" for t in chosen):
        ros = require("mcap_ros2.decoder", "mcap", f"reading {what}")
    begins = [s.statistics.message_start_time for s in summaries if s.statistics.message_count]
    start = min(begins) / 1e9  # of all topics
    reads = {t.name: _reader(t, options.get("field")) for t in chosen}
    several = len(chosen) > 1

    def frames() -> Iterator[Frame]:
        left = {t.name: t.count for t in chosen}
        index = 0
        for path in paths:
            decode = _decoder(None if ros is None else ros.DecoderFactory())
            with _opened(mcap, path) as reader:
                for schema, channel, message in _whole(reader.iter_messages(topics=list(reads)), path):
                    where, topic = f"{path}: {channel.topic}, message {index}", channel.topic
                    data, values, notes = NOTHING, None, tuple[str, ...]()
                    bad = None
                    try:
                        data, values, notes = reads[topic](decode(schema, channel, message), where)
                    except EdgeLstmError as error:
                        bad = error
                    except Exception as error:  # a decoder of somebody else's bytes raises nearly anything
                        found = f"{type(error).__name__}: {error}"[:200]
                        bad = EdgeLstmError(f"{where}: not readable", found=found)
                    left[topic] -= 1
                    stamp = message.log_time / 1e9
                    stream = topic if several else None
                    last = several and not left[topic]
                    yield Frame(
                        index,
                        stamp - start,
                        utc(stamp),
                        data,
                        values,
                        notes,
                        stream=stream,
                        last=last,
                        bad=bad,
                    )
                    index += 1

    return Source(
        f"recording {what}: {', '.join(t.name for t in chosen)}",
        frames,
        length=sum(t.count for t in chosen),
        look=True,
        place=Place(datetime.fromtimestamp(start, timezone.utc)),
        streams=len(chosen),
    )


def _decoder(ros: Any) -> Callable[[Any, Any, Any], Any]:
    """From a message's bytes to what is in it."""

    def decode(schema: Any, channel: Any, message: Any) -> Any:
        if channel.message_encoding == "json":
            return json.loads(message.data)
        return ros.decoder_for(channel.message_encoding, schema)(message.data)

    return decode


@contextmanager
def _opened(mcap: Any, path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            yield mcap.SeekingReader(file, validate_crcs=True, record_size_limit=MAX_RECORD)
    except OSError as error:
        raise EdgeLstmError(f"can't read {path}", found=error.strerror or str(error)) from error


def _summary(reader: Any, path: Path) -> Any:
    try:
        found = reader.get_summary()
        if found is None or found.statistics is None:
            raise ValueError("no summary")
    except Exception as error:  # the library's own, struct's, a codec's: of a damaged file nearly anything
        raise EdgeLstmError(
            f"{path}: no MCAP file, or not all of one",
            found=str(error)[:200] or type(error).__name__,
            expected="a recording that was closed",
            hint="One that is still being recorded, or whose recorder was killed, has no end yet: wait for it, let the recorder "
            "begin a new file now and then, or put a copy right with `mcap recover`",
        ) from None
    for chunk in found.chunk_indexes:
        if chunk.uncompressed_size > MAX_RECORD:
            raise EdgeLstmError(
                f"{path}: size of a chunk",
                found=f"{count_of(chunk.uncompressed_size, 'byte')}",
                expected=f"at most {MAX_RECORD}",
            )
    return found


def _topics(summaries: Sequence[Any]) -> list[_Topic]:
    """Those of all parts, with the number of messages in all of them."""
    found: dict[tuple[str, str, str], int] = {}
    for summary in summaries:
        counts = summary.statistics.channel_message_counts
        for number, channel in summary.channels.items():
            schema = summary.schemas.get(channel.schema_id)
            key = (channel.topic, channel.message_encoding, "" if schema is None else schema.name)
            found[key] = found.get(key, 0) + counts.get(number, 0)
    return [_Topic(*key, count) for key, count in sorted(found.items())]


def _choose(path: Path, topics: list[_Topic], options: Mapping[str, str]) -> list[_Topic]:
    """Those that are asked for, else the only one that can be read without being told more."""
    there = [t for t in topics if t.count]
    listed = ", ".join(t.words() for t in there[:12]) or "none"
    wanted = [name for name in options.get("topic", "").split(",") if name]
    if not wanted:
        found = [t for t in there if t.encoding == "cdr" and t.schema in _KNOWN]
        if len(found) != 1:
            example = found[0].name if found else there[0].name if there else "/TOPIC"
            raise EdgeLstmError(
                f"{path}: topics", found=listed, expected="one", hint=f"Choose: {path.name}:topic={example}"
            )
        return found
    chosen = [t for t in there if t.name in wanted]
    missing = sorted(set(wanted) - {t.name for t in chosen})
    if missing or len(chosen) != len(wanted):
        raise EdgeLstmError(
            f"{path}: topic {missing[0] if missing else wanted[0]}", found=listed, expected="each once"
        )
    for topic in chosen:
        if topic.encoding not in ("cdr", "json") or (topic.schema not in _KNOWN and "field" not in options):
            raise EdgeLstmError(
                f"{path}: topic {topic.name}",
                found=f"{topic.schema or 'no schema'} ({topic.encoding})",
                expected=f"{', '.join(n.rpartition('/')[2] for n in _KNOWN)}, or field=NAME of an array in a ROS 2 or JSON message",
            )
    return chosen


def _reader(topic: _Topic, field: str | None) -> Read:
    if field is None:
        return _KNOWN[topic.schema]

    def read(message: Any, where: str) -> Any:
        for name in field.split("."):
            if isinstance(message, Mapping):
                message = message[name]
            elif isinstance(message, list) and name.isdecimal():
                message = message[int(name)]
            elif name.startswith("_"):
                raise KeyError(name)
            else:
                message = getattr(message, name)
        data = np.asarray(message)
        if data.dtype.kind not in "biuf":
            raise EdgeLstmError(f"{where}: field {field}", found=data.dtype, expected="numbers")
        return (data.astype(np.float64) if data.dtype.kind in "iu" else data), None, ()

    return read


def _whole(found: Iterator[Any], path: Path) -> Iterator[Any]:
    """What the library gives; what it raises of a damaged file, as one error."""
    count = 0
    while True:
        try:
            item = next(found, None)
        except EdgeLstmError:
            raise
        except Exception as error:
            raise EdgeLstmError(
                f"{path}: damaged behind message {count}", found=str(error)[:200] or type(error).__name__
            ) from error
        if item is None:
            return
        yield item
        count += 1
