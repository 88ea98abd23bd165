"""The page in a real browser: values move, buttons do what they say, nothing is asked of another host, nothing goes wrong unseen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("playwright", reason="no Playwright to drive a browser with")

from playwright.sync_api import Browser, Page, expect, sync_playwright

import zoo
from running import Running, toml, until

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECRET = "a token that nobody guesses"
WAIT = 60_000  # milliseconds
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def folder_of_pictures(folder: Path) -> Path:
    for name in ("model", "second"):
        zoo.persistence(shape=(1, 24, 32)).save(folder / f"{name}.onnx")
    np.save(folder / "a.npy", np.random.default_rng(0).random((100_000, 1, 24, 32), np.float32))
    zoo.running_sum().save(folder / "sum.onnx")
    np.save(folder / "n.npy", np.ones(100_000, np.float32))
    return folder


HEAD = """[service]
http = "127.0.0.1:0"
stay = true
report = 0
{more}
[models.picture]
path = "model.onnx"
ranges = {{ s = [-4, 4] }}
[models.number]
path = "sum.onnx"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_pictures(tmp_path_factory.mktemp("page"))


class Watched:
    """A page, and what it must not do."""

    def __init__(self, browser: Browser, running: Running, **how: Any) -> None:
        self.url = until(lambda: running.pipeline.url)
        self.page: Page = browser.new_page(**how)
        self.page.set_default_timeout(WAIT)
        self.wrong: list[str] = []
        self.page.on(
            "console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.page.on(
            "request", lambda r: None if r.url.startswith((self.url, "data:")) else self.wrong.append(r.url)
        )

    def __enter__(self) -> Watched:
        self.page.goto(self.url)
        return self

    def card(self, name: str) -> Any:
        return self.page.get_by_role("article", name=f"Stream {name}")

    def value(self, name: str, field: str) -> str:
        return str(self.card(name).locator(f'[data-f="{field}"]').inner_text())

    def __exit__(self, *error: object) -> None:
        self.page.close()
        if error[0] is None:
            assert self.wrong == []


def test_values_move_and_a_button_works(browser: Browser, folder: Path) -> None:
    text = HEAD.format(more="") + toml("a", model="picture", rate=20, sink=[])
    with Running(text, folder) as running, Watched(browser, running) as seen:
        before = seen.value("a", "stepped")
        expect(seen.card("a").locator('[data-f="stepped"]')).not_to_have_text(before)
        seen.page.wait_for_function("document.querySelector('img.output')?.naturalWidth === 32")
        seen.card("a").get_by_role("button", name="Reset state").click()
        expect(seen.card("a").locator('[data-f="resets"]')).to_have_text("1")
        assert running.count("a", "reset:asked") == 1
        assert "of range" in seen.value("a", "states")
        assert seen.card("a").locator(".chart canvas").count() == 1


@pytest.mark.thorough
def test_every_button(browser: Browser, folder: Path, tmp_path: Path) -> None:
    path = folder / "pipeline.toml"
    text = HEAD.format(more=f'token = "{SECRET}"') + toml(
        "a", model="picture", rate=20, sink=[], deadline=1e-9
    )
    path.write_text(text)
    with Running(path, folder) as running, Watched(browser, running, accept_downloads=True) as seen:
        page = seen.page
        assert page.url.endswith("/login")
        page.keyboard.type(SECRET)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{seen.url}/")

        card = seen.card("a")
        card.get_by_role("button", name="Pause").click()
        expect(card.locator('[data-f="status"]')).to_have_text("paused")
        card.get_by_role("button", name="Go on").click()
        expect(card.locator('[data-f="status"]')).to_have_text("running")
        expect(card.locator('[data-f="overdue"]')).not_to_have_text("0")
        with page.expect_download() as loaded:
            card.get_by_role("link", name="Snapshot").click()
        loaded.value.save_as(tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
            assert arrays["a/s"].shape == (1, 24, 32)

        page.get_by_role("button", name="Add a stream").click()
        dialog = page.get_by_role("dialog", name="Add a stream")
        dialog.get_by_label("Name").fill("n")
        dialog.get_by_label("Source", exact=True).fill("nothing.npy")
        dialog.get_by_label("Model").select_option("number")
        dialog.get_by_role("button", name="Add").click()
        expect(dialog.get_by_role("alert")).to_contain_text("nothing.npy")
        seen.wrong.clear()  # the browser tells of the 400 itself
        dialog.get_by_label("Source", exact=True).fill("n.npy")
        dialog.get_by_role("button", name="Add").click()
        expect(seen.card("n").locator('[data-f="status"]')).to_have_text("running")
        expect(seen.card("n").locator("canvas.frame")).to_be_visible()

        card.get_by_role("button", name="Swap model").click()
        asking = page.get_by_role("dialog", name="Swap picture?")
        asking.get_by_label("File").fill("second.onnx")
        asking.get_by_role("button", name="Do it").click()
        expect(page.get_by_label("The last log lines")).to_contain_text("model picture")
        until(lambda: running.control.service.models["picture"].name == "second.onnx")

        path.write_text(text + toml("b", source="a.npy", model="picture", rate=5, sink=[]))
        page.get_by_role("button", name="Read the file again").click()
        expect(seen.card("b")).to_be_visible()

        seen.card("n").get_by_role("button", name="Remove").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(seen.card("n")).to_be_visible()
        seen.card("n").get_by_role("button", name="Remove").click()
        page.get_by_role("dialog").get_by_role("button", name="Do it").click()
        expect(seen.card("n")).to_have_count(0)
        assert [c.name for c in running.control.service.channels] == ["a", "b"]
        expect(page.get_by_label("The last log lines")).to_contain_text("stream n: removed")


@pytest.mark.thorough
def test_the_keyboard_is_enough(browser: Browser, folder: Path) -> None:
    text = HEAD.format(more="") + toml("a", model="picture", rate=20, sink=[])
    with Running(text, folder) as running, Watched(browser, running) as seen:
        reached = []
        for _ in range(12):
            seen.page.keyboard.press("Tab")
            reached.append(seen.page.evaluate("document.activeElement.textContent.trim()"))
            if reached[-1] == "Reset state":
                seen.page.keyboard.press("Enter")
                break
        assert reached[:2] == ["Pause", "Reset state"]
        until(lambda: running.count("a", "reset:asked") == 1)
        outline = seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_read_in_either_light(browser: Browser, folder: Path, scheme: Any) -> None:
    text = (
        HEAD.format(more="")
        + toml("a", model="picture", rate=20, sink=[])
        + toml("n", model="number", rate=5, sink=[])
    )
    how = {"viewport": {"width": 375, "height": 800}, "color_scheme": scheme, "has_touch": True}
    with Running(text, folder) as running, Watched(browser, running, **how) as seen:
        expect(seen.card("n").locator('[data-f="status"]')).to_have_text("running")
        seen.page.wait_for_function("document.querySelector('img.output')?.naturalWidth === 32")
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 375
        for button in seen.page.locator(".card button").all():
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 40
        assert contrast(seen.page, "h2") > 7
        assert contrast(seen.page, ".facts dt") > 4.5
        assert contrast(seen.page, ".pill") > 4.5


@pytest.mark.thorough
def test_a_service_that_goes_away_is_said(browser: Browser, folder: Path) -> None:
    text = HEAD.format(more="") + toml("a", model="picture", rate=20, sink=[])
    with Running(text, folder) as running:
        seen = Watched(browser, running)
        seen.__enter__()
    expect(seen.page.locator("#link")).to_have_text("no answer, trying again")
    seen.page.close()


def contrast(page: Page, selector: str) -> float:
    """WCAG's ratio of a text's colour and what it stands on."""
    ink, ground = page.evaluate(
        """selector => {
          const node = document.querySelector(selector);
          let below = node;
          while (getComputedStyle(below).backgroundColor === "rgba(0, 0, 0, 0)") below = below.parentElement;
          const numbers = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
          return [numbers(getComputedStyle(node).color), numbers(getComputedStyle(below).backgroundColor)];
        }""",
        selector,
    )

    def light(rgb: list[float]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((light(ink), light(ground)))
    return (high + 0.05) / (low + 0.05)


def test_what_is_vendored_is_small_and_says_its_licence() -> None:
    static = Path(__file__).parents[3] / "edgelstm" / "pipeline" / "web" / "static"
    assert sum(f.stat().st_size for f in static.rglob("*") if f.is_file()) < 200_000
    assert "MIT" in (static / "uplot" / "LICENSE").read_text()
    text = "".join(p.read_text(encoding="utf-8") for p in static.glob("*.*"))
    assert "https://" not in text


def test_what_comes_from_a_file_is_text_and_no_markup(folder: Path) -> None:
    """A table's key names a stream, and whoever wrote the table is not who looks at the page."""
    from calling import call

    key = "'\"><img src=x onerror=alert(1)></script>"
    (folder / "t.csv").write_text("unit,x\n" + f'"{key.replace(chr(34), chr(34) * 2)}",1\n' * 2000)
    more = '[streams.t]\nmodel = "number"\nsource = "t.csv:key=unit:columns=x"\nrate = 50\n'
    with Running(HEAD.format(more="") + more, folder) as running:
        name = until(lambda: next((n for n in running.control.service.report().streams if key in n), None))
        page = call(running, "GET", "/").body.decode()
        assert "<img src=x" not in page
        assert '</script>"' not in page
        assert call(running, "POST", f"/api/streams/{quote(name, safe='')}/reset").json["stream"] == name
        assert running.count(name, "reset:asked") == 1


@pytest.mark.thorough
def test_a_name_is_text_in_the_browser_too(browser: Browser, folder: Path) -> None:
    key = "<img src=x onerror=alert(1)>"
    (folder / "t.csv").write_text("unit,x\n" + f"{key},1\n" * 2000)
    more = '[streams.t]\nmodel = "number"\nsource = "t.csv:key=unit:columns=x"\nrate = 50\n'
    with Running(HEAD.format(more="") + more, folder) as running, Watched(browser, running) as seen:
        seen.page.on("dialog", lambda d: seen.wrong.append(d.message))
        card = seen.page.get_by_role("article").first
        expect(card.get_by_role("heading")).to_have_text(f"t:{key}")
        card.get_by_role("button", name="Reset state").click()
        expect(card.locator('[data-f="resets"]')).to_have_text("1")
