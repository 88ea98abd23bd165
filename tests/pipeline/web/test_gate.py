"""Who may ask: whose name it was called by, where the page is from that asks, how much it sends, and whether it knows the token."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from calling import call, service

from edgelstm import EdgeLstmError, Pipeline
from edgelstm.pipeline.web import gate, protocol
from edgelstm.pipeline.web.gate import MAX_BODY, Token
from edgelstm.pipeline.web.server import CONNECTIONS
from running import MODEL, Running, folder_of_sums, toml, until

SECRET = "a token that nobody guesses"
BEARER = {"authorization": f"Bearer {SECRET}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_sums(tmp_path_factory.mktemp("gate"), a=100000)


@pytest.fixture(scope="module")
def open_one(folder: Path) -> Iterator[Running]:
    with Running(service(hosts=["nowcast.example"]) + toml("a", rate=50, sink=[]), folder) as running:
        yield running


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[Running]:
    with Running(service(token=SECRET) + toml("a", rate=50, sink=[]), folder) as running:
        yield running


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:1", "[::1]:80", "nowcast.example:8080", "10.0.0.7", socket.gethostname()]
)
def test_own_names_and_addresses_are_answered(open_one: Running, host: str) -> None:
    assert call(open_one, "GET", "/healthz", headers={"host": host}).code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1"]
)
def test_a_name_that_somebody_pointed_here_is_not(open_one: Running, host: str) -> None:
    assert call(open_one, "GET", "/api/status", headers={"host": host}).code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://localhost"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_changes_nothing(open_one: Running, headers: dict[str, str]) -> None:
    found = call(open_one, "POST", "/api/streams/a/reset", headers={"host": "localhost", **headers})
    assert (found.code, open_one.count("a", "reset:asked")) == (403, 0)


def test_its_own_page_does(open_one: Running) -> None:
    headers = {"host": "localhost:9", "origin": "http://localhost:9", "sec-fetch-site": "same-origin"}
    assert call(open_one, "POST", "/api/streams/a/pause", headers=headers).code == 200
    assert call(open_one, "POST", "/api/streams/a/resume").code == 200, "programs send neither"


def test_a_form_of_another_page_is_no_json(open_one: Running) -> None:
    plain = {"content-type": "text/plain"}
    assert call(open_one, "POST", "/api/streams/b", '{"source": "a.npy"}', plain).code == 415


def test_what_is_too_large_is_refused(open_one: Running) -> None:
    assert (
        call(
            open_one, "POST", "/api/streams/b", b" " * (MAX_BODY + 1), {"content-type": "application/json"}
        ).code
        == 413
    )
    at = urlsplit(str(open_one.pipeline.url))
    with socket.create_connection((at.hostname, at.port), 60) as connection:
        connection.sendall(
            b"POST /api/reload HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        try:
            for _ in range(100):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except OSError:
            pass
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    with socket.create_connection((at.hostname, at.port), 60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 40000)
        assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("head", [b"", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: "])
def test_clients_that_say_nothing_are_left(
    open_one: Running, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    """They held all places for as long as they liked, and who asked for the health of the service was told 503."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    at = urlsplit(str(open_one.pipeline.url))
    silent = [socket.create_connection((at.hostname, at.port), 60) for _ in range(CONNECTIONS + 4)]
    for one in silent:
        one.sendall(head)
    try:
        until(lambda: call(open_one, "GET", "/healthz").code == 200)
    finally:
        for one in silent:
            one.close()


def test_pages_say_what_they_may_load(open_one: Running) -> None:
    headers = call(open_one, "GET", "/").headers
    assert "default-src 'none'" in str(headers["content-security-policy"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin", "no other page may show the pictures"


def test_files_need_a_token(open_one: Running) -> None:
    found = call(open_one, "POST", "/api/streams/b", {"source": "/etc/passwd"})
    assert found.code == 400
    assert "a token in [service]" in found.json["error"]


@pytest.mark.parametrize(
    "path",
    ["/", "/api/status", "/metrics", "/api/events", "/api/log", "/openapi.json", "/api/streams/a/frame.png"],
)
def test_without_the_token_nothing_is_told(locked: Running, path: str) -> None:
    for headers in ({}, {"cookie": "edgelstm=1"}):
        found = call(locked, "GET", path, headers=headers)
        assert (found.code, found.headers["www-authenticate"]) == (401, "Bearer")
    assert call(locked, "GET", path, headers={"accept": "text/html"}).code == 303


def test_a_wrong_token_is_refused(locked: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PENALTY", 0.01)
    for wrong in ("Bearer wrong", f"Basic {SECRET}", f"Bearer {SECRET[:-1]}", "Bearer \xff"):
        assert call(locked, "GET", "/api/status", headers={"authorization": wrong}).code == 401
    assert call(locked, "GET", "/api/status", headers=BEARER).code == 200
    assert call(locked, "GET", "/healthz").code == call(locked, "GET", "/readyz").code == 200


def test_a_browser_logs_in(locked: Running) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    refused = call(locked, "POST", "/login", "token=wrong", form)
    assert (refused.code, refused.headers["set-cookie"]) == (401, None)
    entered = call(locked, "POST", "/login", f"token={SECRET.replace(' ', '+')}", form)
    cookie = str(entered.headers["set-cookie"])
    assert entered.code == 303
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and SECRET not in cookie  # noqa: PT018
    page = call(locked, "GET", "/", headers={"cookie": cookie.partition(";")[0]})
    assert (page.code, b"Stream a" in page.body) == (200, True)
    assert SECRET.encode() not in page.body


def test_the_token_is_compared_whole() -> None:
    token = Token(SECRET)
    assert token.is_right(SECRET)
    assert not any(token.is_right(t) for t in ("", SECRET[:-1], SECRET + " ", token.cookie, "\udcff"))
    assert token.is_cookie(token.cookie)
    assert not token.is_cookie(SECRET)


def test_an_address_that_others_reach_needs_a_token(folder: Path) -> None:
    for address in ("0.0.0.0:0", "[::]:0", "192.168.1.2:80", "some.host:1"):
        with pytest.raises(EdgeLstmError, match=r"line 2: service\.http: found .*without a token"):
            Pipeline.from_text(service(http=address) + toml("a"), folder)
        Pipeline.from_text(service(http=address, token=SECRET) + toml("a"), folder)
    with pytest.raises(EdgeLstmError, match=r"service\.token: found"):
        Pipeline.from_text(service(token="ein Schlüssel") + toml("a"), folder)
    with pytest.raises(EdgeLstmError, match="tls_cert without tls_key"):
        Pipeline.from_text(service(tls_cert="c.pem") + toml("a"), folder)
    with pytest.raises(EdgeLstmError, match="a port of 0 to 65535"):
        Pipeline.from_text(service(http="127.0.0.1:70000") + toml("a"), folder)


def test_a_port_that_is_taken_is_said_before_anything_is_opened(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = service(http=f"127.0.0.1:{other.getsockname()[1]}") + toml("a")
        with pytest.raises(EdgeLstmError, match="a free port"):
            Pipeline.from_text(text, folder).run()
    assert not (folder / "a.jsonl").exists()


def test_without_the_extra_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(EdgeLstmError, match=r"pip install 'edgelstm\[live\]'"):
        Pipeline.from_text(service() + toml("a"), folder).run()


def test_it_answers_by_tls(folder: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    context: Any = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    with Running(
        service(tls_cert="cert.pem", tls_key="key.pem") + toml("a", rate=50, sink=[]), folder
    ) as running:
        url = until(lambda: running.pipeline.url)
        assert url.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(f"{url}/readyz", context=context, timeout=60) as answer:
            assert answer.status == 200
    with pytest.raises(EdgeLstmError, match="a certificate and its key"):
        Pipeline.from_text(service(tls_cert="key.pem", tls_key="sum.onnx") + toml("a"), folder).run()


def test_the_token_is_in_no_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Running(
        f'[service]\nhttp = "127.0.0.1:0"\ntoken = "{SECRET}"\n' + MODEL + toml("a", rate=50, sink=[]), folder
    ) as running:
        running.control.service  # noqa: B018
        import logging

        logging.getLogger("edgelstm.serve").warning("it is %s", SECRET)
        log = call(running, "GET", "/api/log", headers=BEARER).body.decode()
    assert "it is ***" in log
    assert SECRET not in log + caplog.text
