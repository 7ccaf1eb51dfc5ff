"""The pages in a real browser: nothing fails or is fetched, plots are drawn and answer, on a phone, in the dark and on paper."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from convnext_deploy.api.compare import compare
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.record import read_report
from tests.reports.conftest import create_large_report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]

CIFAR10 = Path(__file__).parents[2] / "benchmarks" / "results" / "cifar10.json"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]


@dataclass
class Opened:
    """A page with what it said and asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def number(self, script: str) -> float:
        found: float = self.page.evaluate(script)
        return found

    def wait_until(self, script: str) -> None:
        """Wait for a condition; the browser driver's own waiting evaluates texts in the page, whose policy forbids that."""
        deadline = time.monotonic() + 10.0
        while not self.page.evaluate(script):
            assert time.monotonic() < deadline, script
            self.page.wait_for_timeout(20)

    def widths_of_plots(self) -> list[float]:
        found: list[float] = self.page.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => { const s = p.querySelector('svg.main-svg');"
            " const box = s ? s.getBoundingClientRect() : {width: 0, height: 0}; return Math.min(box.width, box.height); })"
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(small_run: RunResult, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {"small run": Path(small_run.report.rows[0].identity.artifact).parents[1] / "report.html"}
    for name, report in (("large", create_large_report()), ("cifar10", read_report(CIFAR10))):
        found[name] = folder / f"{name}.html"
        found[name].write_text(render_html(report), encoding="utf-8")
    found["comparison"] = folder / "comparison.html"
    compare([found["small run"].parent, CIFAR10], out=found["comparison"])
    return found


@pytest.fixture(params=["small run", "large", "cifar10", "comparison"])
def opened(request: pytest.FixtureRequest, browser: Browser, pages: dict[str, Path]) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    found = Opened(page)
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("request", lambda asked: found.fetched.append(asked.url))
    page.goto(pages[request.param].as_uri())
    yield found
    page.close()


def test_page_works_wide_narrow_dark_and_on_paper(opened: Opened) -> None:
    page = opened.page
    assert len(opened.widths_of_plots()) >= 1
    assert min(opened.widths_of_plots()) > 150

    fills = page.evaluate(
        "[...document.querySelectorAll('.plot .bars .point path')].map(p => getComputedStyle(p).fill)"
    )
    surface = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all(fill.startswith("rgb") and fill != surface for fill in fills), "every bar can be seen"

    # hovering
    point = page.locator("#plot-accuracy .scatterlayer .points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#plot-accuracy .hoverlayer text", timeout=5000)
    text = page.locator("#plot-accuracy .hoverlayer").text_content() or ""
    assert "top-1" in text
    assert "p50" in text

    # a phone, then dark while it is open
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.set_viewport_size({"width": 390, "height": 844})
    opened.wait_until(
        "Math.max(...[...document.querySelectorAll('svg.main-svg')].map(s => s.getBoundingClientRect().width)) < 390"
    )
    assert opened.number("document.documentElement.scrollWidth") == 390
    assert min(opened.widths_of_plots()) > 150
    tick = "getComputedStyle(document.querySelector('#plot-accuracy .ytick text')).fill"
    before = page.evaluate(tick)
    page.emulate_media(color_scheme="dark")
    opened.wait_until(f"{tick} !== '{before}'")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    # a wide screen again
    page.set_viewport_size({"width": 1400, "height": 900})
    opened.wait_until("document.querySelector('#plot-accuracy svg.main-svg').getBoundingClientRect().width > 900")
    assert opened.number("document.documentElement.scrollWidth") == 1400

    # paper: light, all details open, nothing wider than the sheet
    page.set_viewport_size({"width": 690, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    opened.wait_until("document.documentElement.hasAttribute('data-paper')")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
    assert page.evaluate(tick) == before
    assert opened.number("document.querySelectorAll('details:not([open])').length") == 0
    assert (
        opened.number(
            "Math.max(...[...document.querySelectorAll('svg.main-svg, table')].map(s => s.getBoundingClientRect().right))"
        )
        <= 690
    )
    page.emulate_media(media="screen")
    assert page.pdf(format="A4").startswith(b"%PDF")

    assert opened.said == []
    assert [url for url in opened.fetched[1:] if not url.startswith("data:")] == []


def test_names_of_users_are_shown_and_never_executed(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    dialogs: list[str] = []

    def refuse(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    page.goto(pages["large"].as_uri())
    assert page.locator("h1").inner_text().startswith("<script>alert('x')</script>")
    assert page.locator(".ytick text", has_text="<script>").count() >= 1
    assert page.locator("img[src^='javascript']").count() == 0
    assert page.locator("img[src^='data:image/png']").count() == 4
    assert dialogs == []
    page.close()
