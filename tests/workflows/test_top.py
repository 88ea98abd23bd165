"""top: the counters of a running service in the terminal, and one line for whatever is no service."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from command_line import Run
from edgelstm import EdgeLstmError
from edgelstm.cli.top import clean, picture
from edgelstm.workflows.top import Top
from running import MODEL, Running, folder_of_sums, toml, until

SECRET = "a token that nobody guesses"
HEAD = f'[service]\nhttp = "127.0.0.1:0"\ntoken = "{SECRET}"\nreport = 0\n' + MODEL


def test_counters_of_a_running_service(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of_sums(tmp_path, a=100000)
    with Running(HEAD + toml("a", rate=100, sink=[]), folder) as running:
        until(lambda: running.count("a", "stepped") > 5)
        url = until(lambda: running.pipeline.url)
        code, _, err = run("top", url, "--once")
        assert (code, "asks for its token: found none. Set EDGELSTM_TOKEN" in err) == (2, True)
        monkeypatch.setenv("EDGELSTM_TOKEN", SECRET)
        code, text, _ = run("top", url, "--once", "--json")
        found = json.loads(text)
        assert (code, found["streams"][0]["name"]) == (0, "a")
        assert 5 < found["streams"][0]["counts"]["stepped"] <= running.count("a", "stepped")
        code, text, _ = run("top", url.removeprefix("http://"), "--once")
        assert code == 0
        assert "1 of 1 running" in text
        assert "streams: a" in text, "the last log lines"


def test_where_nothing_answers(run: Run) -> None:
    code, _, err = run("top", "http://127.0.0.1:1", "--once")
    assert (code, "does not answer: found Connection refused" in err) == (2, True)
    for wrong in ("ftp://a", "http://", "http://user:secret@a"):
        code, _, err = run("top", wrong, "--once")
        assert code == 2
        assert "secret" not in err


@contextmanager
def other(
    answer: bytes, code: int = 200, headers: dict[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A server that is something else, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('authorization')}")
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"streams": 3}', b"\xff", b"[" * 100000])
def test_another_server_is_no_service(answer: bytes) -> None:
    with other(answer) as (url, _), pytest.raises(EdgeLstmError, match="is no service of `edgelstm serve`"):
        Top(url).look()


def test_the_token_goes_nowhere_else() -> None:
    with other(b"{}") as (elsewhere, asked), other(b"", 302, {"location": elsewhere}) as (url, _):
        with pytest.raises(EdgeLstmError, match="302"):
            Top(url, SECRET).look()
        assert asked == []


def test_names_are_no_orders_to_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07\u202e") == "a [2Jb  "


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_is_cut_off(width: int) -> None:
    """Names give way, and columns that matter least; of what is shown every figure is whole."""
    from rich.console import Console

    streams = [
        {
            "name": name, "status": "running", "rate": 24.98, "step": 0.0488, "age": 0.0962, "deadline": None, "overdue": 0, "queue": 0,
            "room": 4, "reconnects": 2, "alarms": {}, "states": [{"name": "h0", "share": None, "rms": 0.234}],
            "counts": {"stepped": 1234567, "dropped:overload": 42, "reset:gap": 3, "guard:state": guard},
        }
        for name, guard in (("gate", 0), ("a camera with a name that is far too long", 7))
    ]  # fmt: skip
    found = {"uptime": 8, "board": {"power": {}, "temperature": {}}, "log": [], "streams": streams}
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(picture("http://127.0.0.1:8080", found, width))
    head, gate, long, *_ = [line.rstrip() for line in console.export_text().splitlines()][2:]
    shown = head.split()
    assert shown[:2] == ["stream", "frames/s"]
    assert {"age", "dropped"} <= set(shown)
    assert not [word for word in (*shown, *gate.split()) if "…" in word]
    assert long.count("…") == 1
    if width >= 80:
        assert {"stepped", "guard"} <= set(shown)
        assert gate.split()[:3] == ["gate", "running", "25"]
        assert long.split()[-1] == ("7" if width == 80 else "0.234")
