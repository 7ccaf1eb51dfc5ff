"""The pages in a real browser: nothing is fetched, plots fit and can be read, on a phone, in the dark and on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from convnext_deploy.api.compare import compare
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.record import read_report
from tests.reports.conftest import create_full_report, create_large_report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]

CIFAR10 = Path(__file__).parents[2] / "benchmarks" / "results" / "cifar10.json"
LOOKS: tuple[tuple[int, Literal["light", "dark"]], ...] = (
    (1400, "light"),
    (768, "dark"),
    (390, "light"),
    (390, "dark"),
)
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
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

    def boxes_of_plots(self) -> list[dict[str, float]]:
        """Return where the areas of all plots are that are not hidden."""
        found: list[dict[str, float]] = self.page.evaluate(
            "[...document.querySelectorAll('.area > svg')].map(s => s.getBoundingClientRect().toJSON())"
        )
        return [box for box in found if box["width"]]

    def texts_beyond(self, width: float) -> list[str]:
        """Return the texts of plots that are cut off by the page, or by what scrolls."""
        found: list[str] = self.page.evaluate(
            """width => [...document.querySelectorAll('.area text')]
              .filter(t => { const b = t.getBoundingClientRect(); return b.width && (b.left < 0 || b.right > width); })
              .map(t => t.textContent)""",
            width,
        )
        return found

    def violations(self) -> list[str]:
        """Return what axe-core finds of contrast, names and keyboard use."""
        # evaluated and not injected, as the policy of the page runs no script
        self.page.evaluate(f"{AXE.read_text(encoding='utf-8')};0")
        found: list[str] = self.page.evaluate(
            """async () => (await axe.run(document)).violations.map(v => `${v.impact} ${v.id}: ${v.nodes[0].html}`)"""
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
    reports = {"large": create_large_report(), "full": create_full_report(10), "cifar10": read_report(CIFAR10)}
    for name, report in reports.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(render_html(report), encoding="utf-8")
    found["comparison"] = folder / "comparison.html"
    compare([found["small run"].parent, CIFAR10], out=found["comparison"])
    return found


@pytest.fixture(params=["small run", "large", "full", "comparison"])
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
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert opened.number("document.documentElement.scrollWidth") == width
        boxes = opened.boxes_of_plots()
        assert boxes
        assert min(box["width"] for box in boxes) > 150
        assert max(box["right"] for box in boxes) <= width
        assert opened.texts_beyond(width) == []
        assert opened.violations() == [], (width, scheme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper

    # what the mouse would show of a point, and that the point is there
    title = page.locator(".area use title").first.text_content() or ""
    assert "p50" in title
    box = page.locator(".area use").first.bounding_box()
    assert box is not None
    assert 5 < box["width"] < 20

    # paper: light, all details open, nothing wider than the sheet
    page.set_viewport_size({"width": 690, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    hidden = "[...document.querySelectorAll('details table')].filter(t => !t.getBoundingClientRect().height).length"
    assert opened.number(hidden) == 0
    tables = (
        "Math.max(...[...document.querySelectorAll('.area > svg, table')].map(s => s.getBoundingClientRect().right))"
    )
    assert opened.number(tables) <= 690
    page.emulate_media(media="screen")
    assert page.pdf(format="A4").startswith(b"%PDF")

    assert opened.said == []
    assert [url for url in opened.fetched[1:] if not url.startswith("data:")] == []


def test_everything_can_be_reached_with_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages["full"].as_uri())
    reached: list[str] = []
    for _ in range(500):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.tagName")
        if name == "BODY":
            break
        reached.append(name)
    expected = page.evaluate(
        "document.querySelectorAll('nav a, summary, main > .scroll, main > pre, section > .scroll').length"
    )
    assert len(reached) >= expected
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    page.close()


def test_names_of_users_are_shown_and_never_executed(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    dialogs: list[str] = []

    def refuse(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    page.goto(pages["full"].as_uri())
    assert page.locator(".area text", has_text="<script>").count() >= 1
    assert page.locator(".matrix th", has_text="<script>").count() >= 1
    page.goto(pages["large"].as_uri())
    assert page.locator("h1").inner_text().startswith("<script>alert('x')</script>")
    assert page.locator("[href^='javascript']").count() == 0
    assert page.locator("image[href^='data:image/png']").count() == 2
    assert page.locator("svg.picture").count() == 4
    assert dialogs == []
    page.close()
