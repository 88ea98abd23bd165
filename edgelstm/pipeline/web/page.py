"""The pages, rendered here; ``static/page.js`` keeps what it says up to date."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.config_sinks import NAME
from edgelstm.pipeline.web.site import Site
from edgelstm.pipeline.web.words import age, count, milliseconds, number, reasons

TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
#: Files of ``static/`` that are served.
SERVED = ("page.css", "page.js", "draw.js", "icon.svg", "uplot/uPlot.iife.min.js", "uplot/uPlot.min.css")
#: States that a card shows at once; more are folded away.
STATES = 6


def check_name(name: str) -> None:
    """EdgeLstmError unless a new stream may be called that."""
    if re.fullmatch(NAME, name) is None or len(name) > 100:
        raise EdgeLstmError("a stream's name", found=name[:100], expected="letters, digits, - and _")


def static(name: str) -> tuple[bytes, str] | None:
    """A file of the page and its type."""
    if name not in SERVED:
        return None
    return files("edgelstm.pipeline.web").joinpath("static", *name.split("/")).read_bytes(), TYPES[
        name[name.rindex(".") :]
    ]


def index(site: Site, view: Mapping[str, Any]) -> str:
    """The page."""
    cards = "".join(card(stream, swap=view["swap"]) for stream in view["streams"])
    models = "".join(f"<option>{escape(name)}</option>" for name in site.service.config.models)
    hint = (
        ""
        if view["change"]
        else '<p class="soft" id="why-not">Streams are added here once <code>token</code> stands in <code>[service]</code>.</p>'
    )
    return _page(
        f"{platform.node()}: edgelstm",
        f"""<header class="top">
<h1>{escape(platform.node())}</h1>
<p class="soft"><span id="pulse" class="dot" aria-hidden="true"></span><span id="link" role="status">live</span>
 · edgelstm {escape(view["version"])} · up <output id="uptime">{age(view["uptime"])}</output></p>
<dl class="facts" id="facts">
<div><dt>Streams running</dt><dd data-all="running">–</dd></div>
<div><dt>Frames a second</dt><dd data-all="rate">–</dd></div>
<div><dt>Frames stepped</dt><dd data-all="stepped">–</dd></div>
<div><dt>Dropped</dt><dd data-all="dropped">–</dd></div>
<div><dt>Overdue</dt><dd data-all="overdue">–</dd></div>
</dl>
</header>
<main id="streams">{cards}</main>
<p id="none" class="soft"{" hidden" if cards else ""}>No stream runs. The service waits for one.</p>
<section class="bar"><button type="button" id="add"{"" if view["change"] else ' disabled aria-describedby="why-not"'}>Add a stream</button>
<button type="button" id="reload"{"" if view["reload"] else " hidden"} class="quiet">Read the file again</button>
<a class="quiet" href="/api">API</a> <a class="quiet" href="/metrics">Metrics</a>{hint}</section>
<section aria-labelledby="log-title"><h2 id="log-title">Log</h2><ol id="log" tabindex="0" aria-label="The last log lines"></ol></section>
<dialog id="adding" aria-labelledby="adding-title"><form method="dialog"><h2 id="adding-title">Add a stream</h2>
<label>Name<input name="name" required pattern="[A-Za-z0-9][A-Za-z0-9_\\-]*" maxlength="100" autocomplete="off"></label>
<label>Source<input name="source" required autocomplete="off" placeholder="rtsp://camera/1, /data/radar, …"></label>
<label>Model<select name="model">{models}</select></label>
<label>Sink<input name="sink" autocomplete="off" placeholder="{{stream}}.jsonl"></label>
<label>When the queue is full<select name="overload"><option value="latest">keep the newest frame</option><option value="drop_oldest">drop the oldest</option><option value="block">hold the source up</option></select></label>
<p class="error" role="alert"></p>
<div class="buttons"><button value="ok">Add</button><button value="" class="quiet" formnovalidate>Cancel</button></div></form></dialog>
<dialog id="asking" aria-labelledby="question"><form method="dialog"><h2 id="question"></h2><p></p>
<label hidden>File<input name="file" autocomplete="off"></label>
<div class="buttons"><button value="ok" class="danger">Do it</button><button value="" class="quiet" autofocus>Cancel</button></div></form></dialog>
<p id="said" role="status"></p>
<script type="application/json" id="first">{_data(view)}</script>
<script src="/static/uplot/uPlot.iife.min.js"></script><script src="/static/draw.js"></script><script src="/static/page.js"></script>""",
    )


def card(stream: Mapping[str, Any], *, swap: bool = False) -> str:
    """One stream."""
    name, url = escape(stream["name"]), _url(stream["name"])
    counts = stream["counts"]
    states = "".join(_state(s) for s in stream.get("states", ()))
    if len(stream.get("states", ())) > STATES:
        states = f'<details><summary>{len(stream["states"])} states</summary><table class="states">{states}</table></details>'
    elif states:
        states = f'<table class="states">{states}</table>'
    panels = "".join(
        _panel(stream, which, title) for which, title in (("frame", "Frame"), ("output", "Prediction"))
    )
    panels = (
        f'<div class="panels">{panels}</div>' if stream["shows"] else '<p class="soft wait">No frame yet.</p>'
    )
    facts = "".join(
        f'<div{_limit(stream) if key == "overdue" else ""}><dt>{title}</dt><dd data-f="{key}">{value}</dd></div>'
        for key, title, value in (
            ("rate", "Frames/s", number(stream["rate"])),
            ("step", "Step", milliseconds(stream["step"])),
            ("age", "Output age", milliseconds(stream["age"])),
            (
                "queue",
                "Waiting",
                str(stream["queue"]) if not stream["room"] else f"{stream['queue']} of {stream['room']}",
            ),
            ("stepped", "Stepped", count(counts.get("stepped", 0))),
            ("dropped", "Dropped", count(sum(n for k, n in counts.items() if k.startswith("dropped:")))),
            ("resets", "Resets", count(sum(n for k, n in counts.items() if k.startswith("reset:")))),
            ("guard", "Guard trips", count(sum(n for k, n in counts.items() if k.startswith("guard:")))),
            ("reconnects", "Reconnects", count(stream["reconnects"])),
            ("overdue", "Overdue", count(stream["overdue"])),
        )
    )
    paused = stream["status"] == "paused"
    swapping = (
        f'<button type="button" data-do="swap" data-model="{escape(stream["model"])}" class="quiet">Swap model</button>'
        if swap
        else ""
    )
    return f"""<article class="card" data-stream="{name}" data-section="{escape(stream["section"])}" data-status="{stream["status"]}" data-shows="{stream["shows"] or ""}" aria-label="Stream {name}">
<header><h2>{name}</h2><span class="pill" data-f="status">{stream["status"]}</span><p class="soft" data-f="why">{escape(stream["why"] or f"{stream['model']} · {stream['source']}")}</p></header>
<p class="alarms" data-f="alarms">{_alarms(stream)}</p>
{panels}
<p class="key"><span><i></i>step, ms</span><span><i class="same"></i>age of the output</span><span{_limit(stream)}><i class="limit"></i>deadline <output data-f="deadline">{milliseconds(stream["deadline"] or 0)}</output></span></p>
<div class="chart" role="img" aria-label="Step time and age of the output of {name}, the last minutes"></div>
<dl class="facts small">{facts}</dl>
<p class="soft reasons" data-f="reasons">{escape(reasons(counts))}</p>
<div data-f="states">{states}</div>
<div class="buttons"><button type="button" data-do="{"resume" if paused else "pause"}" class="{"" if paused else "quiet"}">{"Go on" if paused else "Pause"}</button>
<button type="button" data-do="reset" class="quiet">Reset state</button><a class="button quiet" download href="{url}/snapshot">Snapshot</a>{swapping}
<button type="button" data-do="remove" class="quiet danger">Remove</button></div>
</article>"""


def _panel(stream: Mapping[str, Any], which: str, title: str) -> str:
    """The frame or the prediction: a picture, or bars that the page draws."""
    name, frame = escape(stream["name"]), stream["frame"]
    if stream["shows"] == "numbers":
        shown = f'<canvas class="{which}" role="img" aria-label="{title} of {name}: its values"></canvas>'
    else:
        shown = f'<img class="{which}" alt="{title} of {name}" data-src="{_url(stream["name"])}/{which}.png">'
    said = escape((frame["name"] if which == "frame" else stream["output"]) if frame else "")
    return f'<figure>{shown}<figcaption><b>{title}</b> <output data-f="{which}-name">{said}</output></figcaption></figure>'


def _alarms(stream: Mapping[str, Any]) -> str:
    return "".join(
        f'<span class="{"fired" if fired else ""}">{escape(name)}</span>'
        for name, fired in stream["alarms"].items()
    )


def _limit(stream: Mapping[str, Any]) -> str:
    """Marks what is said of a deadline, hidden where there is none."""
    return " data-limit" + (" hidden" if stream["deadline"] is None else "")


def _state(state: Mapping[str, Any]) -> str:
    share = state["share"]
    meter = (
        ""
        if share is None
        else f'<meter min="0" max="1.25" high="0.9" optimum="0.1" value="{min(1.25, share):.3f}">{share:.0%}</meter>'
    )
    said = (
        f"{number(state['least'])} to {number(state['most'])}" if share is None else f"{share:.0%} of range"
    )
    return f'<tr><th scope="row">{escape(state["name"])}</th><td>{number(state["rms"])}</td><td>{meter}</td><td class="soft">{said}</td></tr>'


def login(error: str = "") -> str:
    """Where the token is given."""
    return _page(
        "edgelstm",
        f"""<main class="login"><form method="post" action="/login"><h1>edgelstm</h1>
<input hidden name="user" autocomplete="username" value="edgelstm"><label>Token of <code>[service]</code><input type="password" name="token" required autofocus autocomplete="current-password"></label>
<p class="error" role="alert">{escape(error)}</p><button>Log in</button></form></main>""",
    )


def routes(openapi: Mapping[str, Any]) -> str:
    """The API in a table; ``/openapi.json`` is the same for programs."""
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path.replace('{name}', 'NAME'))}</code></td><td>{escape(what.get('summary', ''))}</td></tr>"
        for path, methods in openapi["paths"].items()
        for method, what in methods.items()
    )
    return _page(
        "edgelstm: API",
        f"""<main class="plain"><h1>API</h1><p>Answers are JSON; an error is <code>{{"error": "..."}}</code>. Bodies are JSON with
<code>content-type: application/json</code>. With a token in <code>[service]</code>: <code>authorization: Bearer TOKEN</code>. The schema for programs is
<a href="/openapi.json">/openapi.json</a>.</p><div class="scroll"><table class="api"><thead><tr><th></th><th>Path</th><th>What it does</th></tr></thead><tbody>{rows}</tbody></table></div>
<pre>curl -X POST http://127.0.0.1:8080/api/streams/north/reset
curl -X POST http://127.0.0.1:8080/api/streams/east -H "authorization: Bearer $TOKEN" -H "content-type: application/json" \\
     -d '{{"source": "/data/east", "follow": true, "sink": "east.jsonl"}}'</pre><p><a href="/">Back</a></p></main>""",
    )


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/static/uplot/uPlot.min.css"><link rel="stylesheet" href="/static/page.css"></head>
<body>
{body}
</body></html>
"""


def _url(name: str) -> str:
    return f"/api/streams/{quote(name, safe='')}"


def _data(view: Mapping[str, Any]) -> str:
    # Inside a script element only this sequence could end it early.
    return json.dumps(view, separators=(",", ":")).replace("<", "\\u003c")
