"""A command that loads for long says so, and says it once."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import pytest

from convnext_deploy.cli import starting
from convnext_deploy.cli.console import say
from convnext_deploy.cli.options import quiet_option
from convnext_deploy.cli.verbs import Verb

LINE = "train: loading libraries\n"


def errors_of(work: Callable[[], object], capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    command = quiet_option(lambda: work())
    click.command("train", cls=Verb)(command).main([*arguments], prog_name="train", standalone_mode=False)
    return capsys.readouterr().err


def wait_for(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return standard error when a text has come, or what came within ten seconds."""
    found, end = "", time.monotonic() + 10
    while text not in found and time.monotonic() < end:
        time.sleep(0.01)
        found += capsys.readouterr().err
    return found


def test_slow_start_is_said_unless_something_else_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "PATIENCE_S", 0.05)
    seen: list[str] = []
    errors_of(lambda: seen.append(wait_for(LINE, capsys)), capsys)
    assert seen == [LINE]

    def begin() -> None:
        starting.started()
        time.sleep(0.2)

    def print_something() -> None:
        say("x")
        time.sleep(0.2)

    assert errors_of(begin, capsys) == errors_of(print_something, capsys) == ""
    assert errors_of(lambda: time.sleep(0.2), capsys, "--quiet") == ""
