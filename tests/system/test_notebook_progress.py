"""In a notebook's kernel progress is drawn by IPython's display, anew in its place, with texts of users escaped."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest

from convnext_deploy.api.options import ExecutionOptions
from convnext_deploy.system import notebook_progress
from convnext_deploy.system.notebook_progress import NotebookProgress, in_notebook
from convnext_deploy.system.progress import SilentProgress
from convnext_deploy.system.progress_bars import BarProgress, PlainProgress


class ZMQInteractiveShell:
    """Has the name of the shell in a kernel."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What a kernel is asked to show, first and in the place of that."""
    found: list[dict[str, str]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            assert raw
            found.append(bundle)

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        found.append(bundle)
        return Handle()

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    shell: list[Any] = [ZMQInteractiveShell()]
    ipython.get_ipython = lambda: shell[0]  # type: ignore[attr-defined]
    ipython.shell = shell  # type: ignore[attr-defined]
    displays.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return found


def test_bar_is_drawn_in_its_place_and_ends_with_its_time(
    drawn: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebook_progress, "_EVERY_S", 0.0)
    progress = ExecutionOptions().reporter
    assert isinstance(progress, NotebookProgress)
    with progress.task("<i>learn</i>", 10, "images", done=4) as task:
        task.advance(3, "loss <0.4>")
    progress.say("a\x1bb")
    first, middle, last = drawn
    assert first["text/plain"] == "<i>learn</i>: 4/10 images"
    assert 'value="7" max="10"' in middle["text/html"]
    assert "&lt;i&gt;learn&lt;/i&gt;" in middle["text/html"]
    assert "loss &lt;0.4&gt;" in middle["text/html"]
    assert "left" in middle["text/plain"]
    assert "done in " in last["text/plain"]
    assert capsys.readouterr().out == "a\\x1bb\n"


def test_interrupted_work_is_not_called_done(drawn: list[dict[str, str]]) -> None:
    with pytest.raises(KeyboardInterrupt), NotebookProgress().task("learn", 3):
        raise KeyboardInterrupt
    assert not any("done" in bundle["text/plain"] for bundle in drawn)


def test_display_is_chosen_by_where_a_function_is_called(
    drawn: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules["IPython"].shell[0] = object()  # IPython in a terminal
    assert not in_notebook()
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert isinstance(ExecutionOptions().reporter, SilentProgress)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    assert isinstance(ExecutionOptions().reporter, BarProgress)
    assert isinstance(ExecutionOptions(progress="off").reporter, SilentProgress)
    own = PlainProgress()
    assert ExecutionOptions(progress=own).reporter is own
