"""The pages in a real browser: the list follows a run that trains, its curves grow, and nothing fails, is fetched or overflows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from convnext_deploy.viewer.server import RunServer
from tests.viewer.conftest import EPOCHS, HOSTILE, write_history, write_run

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def wait_until(page: Page, script: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < deadline, script
        page.wait_for_timeout(50)


def test_list_and_curves_follow_the_folder(browser: Browser, server: RunServer, runs: Path) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    assert page.locator("tbody tr").count() == 4

    # what is chosen stays chosen while the list changes
    page.locator("input[value='bad']").check()
    write_history(write_run(runs / "new", None), "model", EPOCHS[:1])
    wait_until(page, "document.querySelectorAll('tbody tr').length === 5")
    assert page.locator("input[value='bad']").is_checked()

    page.get_by_role("link", name="new", exact=True).click()
    wait_until(page, "document.querySelectorAll('#plots svg[role=img]').length === 2")
    assert page.locator("#plots path.line0").first.get_attribute("d").count("L") == 0  # type: ignore[union-attr]
    shutil.rmtree(runs / "new" / "checkpoints")
    write_history(runs / "new", "model")
    wait_until(page, "(document.querySelector('#plots path.line0').getAttribute('d').match(/L/g) ?? []).length === 2")
    assert "83.33" in (page.locator("#plots figcaption").first.inner_text())
    # of a training that is not scored after each epoch, both plots have the axis of all its epochs
    (runs / "new" / "checkpoints" / "model" / "history.json").write_text(
        json.dumps([{"epoch": 1, "train_loss": 3}, EPOCHS[1]])
    )
    wait_until(page, "document.querySelector('#plots figcaption').innerText.includes('75')")
    places = page.locator("#plots circle.line0").evaluate_all("all => all.map(each => each.getAttribute('cx'))")
    assert len(set(places)) == 1

    # by keyboard alone: two runs, then compare
    page.goto(server.url)
    for value in ("bad", "photos/good"):
        page.locator(f"input[value='{value}']").focus()
        page.keyboard.press("Space")
    page.get_by_role("button").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?run=*")
    assert "comparison" in page.title()

    for address in ("", "run/bad/", "run/new/"):
        for width in (390, 768, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(server.url + address)
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") == width, (address, width)
    page.goto(server.url)
    assert page.get_by_text(HOSTILE).count() >= 1
    write_run(runs / ("x" * 200), None)
    page.goto(server.url)
    assert page.evaluate("(([a]) => a.scrollWidth - a.clientWidth)(document.querySelectorAll('.scroll'))") == 0
    assert said == []
    assert {url for url in asked if not url.startswith((server.url, "data:"))} == set()
    context.close()


def test_a_training_is_watched_and_ctrl_c_ends_the_server_in_one_line(browser: Browser, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    command = [sys.executable, "-m", "convnext_deploy"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "view", str(root), "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as viewer:
        try:
            assert viewer.stdout is not None
            assert viewer.stderr is not None
            url = viewer.stdout.readline().split(": ")[1].split(";")[0]
            page = browser.new_page()
            page.goto(url)
            # long enough that a browser on a busy machine asks while it runs
            asked = ["train", "--model", "test_convnext", "--epochs", "10", "--out", str(root / "live"), "--quiet"]
            with subprocess.Popen([*command, *asked], env=environment, stdout=subprocess.DEVNULL) as training:
                try:
                    wait_until(page, "document.querySelector('tbody').innerText.includes('running')", 60)
                    page.get_by_role("link", name="live").click()
                    wait_until(page, "document.querySelectorAll('#plots svg[role=img]').length === 2", 60)
                    assert training.wait(120) == 0
                finally:
                    training.kill()
            wait_until(page, "document.querySelector('.state').innerText.startsWith('complete')")
            page.close()
            viewer.send_signal(signal.SIGINT)
            assert viewer.wait(20) == 130
            assert viewer.stderr.read() == "interrupted; the pages are served no more\n"
        finally:
            viewer.kill()
