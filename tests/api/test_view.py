"""`view` from Python serves in a thread and opens a browser only where one can be seen; the command says where the pages are."""

from __future__ import annotations

import json
import urllib.request
import webbrowser
from pathlib import Path

import pytest
from click.testing import CliRunner

import convnext_deploy as api
from convnext_deploy.api.view import Viewer
from convnext_deploy.cli import group
from convnext_deploy.errors import ArtifactError
from tests.reports.conftest import BASELINE_ROW, PASSED_ROW, create_report


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(create_report(BASELINE_ROW, PASSED_ROW).to_json())
    return folder


def test_viewer_serves_until_it_is_stopped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    viewer = api.view(str(run.parent), port=0)
    assert opened == [], "there is no screen"
    assert repr(viewer) == f"<Viewer: {viewer.url} shows {run.parent}>"
    assert viewer.to_rows() == [{"run": "tiny", "state": "complete", "passed": True, "best": "ptq"}]
    with urllib.request.urlopen(viewer.url, timeout=10) as answer:
        assert b"1 of 1 gates passed" in answer.read()
    viewer.stop()
    viewer.wait()
    monkeypatch.setenv("DISPLAY", ":0")
    for browser in (True, False):
        opened.clear()
        viewer = api.view(run, port=0, browser=browser)
        viewer.stop()
        assert opened == [viewer.url] * browser
    monkeypatch.setenv("SSH_CONNECTION", "a b c d")
    opened.clear()
    api.view(run, port=0).stop()
    assert opened == []


def test_command_says_where_the_pages_are(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Viewer, "wait", Viewer.stop)
    monkeypatch.chdir(run.parent.parent)
    done = CliRunner().invoke(group, ["view", "--port", "0"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{run.parent}: http://127.0.0.1:")
    assert done.output.endswith("/; Ctrl-C ends it\n")
    done = CliRunner().invoke(group, ["view", str(run), "--port", "0", "--json", "--no-browser"])
    assert json.loads(done.output)["runs"][0]["run"] == "tiny"


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none does not exist; expected the folder of a run, or of several\.$"):
        api.view(tmp_path / "none")
