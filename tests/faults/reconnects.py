"""Tries to open a camera that refuses: ``python reconnects.py TRIES`` prints the bytes that memory grew by from the first third on."""

from __future__ import annotations

import gc
import logging
import socket
import sys

from edgelstm.machine import resident_bytes
from edgelstm.pipeline.service.reader import Reader
from edgelstm.pipeline.sources import open_source


def dead_address() -> str:
    """A port that refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"rtsp://127.0.0.1:{taken.getsockname()[1]}/live"


def reconnect(tries: int) -> int:
    """Bytes that memory grew by from the first third of the tries to the last."""
    address, marks, done = dead_address(), list[int](), [0]

    def lost() -> None:
        done[0] += 1
        if done[0] in (tries // 3, tries):
            gc.collect()
            marks.append(resident_bytes() or 0)

    reader = Reader(
        "a", lambda: open_source(address), lambda _: True, retries=tries, retry=1e-13,
        lost=lost, ended=lambda: None, elsewhere=lambda: None,
    )  # fmt: skip
    reader.start()
    reader.join(1000)
    assert reader.error is not None
    assert done[0] == tries
    return marks[1] - marks[0]


if __name__ == "__main__":
    logging.disable()
    print(reconnect(int(sys.argv[1])))
