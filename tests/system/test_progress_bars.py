"""Progress: plain lines and bars, with what is counted, how fast it goes and how long it will take."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from convnext_deploy.system import progress_bars
from convnext_deploy.system.progress import describe_rate
from convnext_deploy.system.progress_bars import BarProgress, PlainProgress


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("convnext_deploy.system.progress_bars.time.monotonic", found)
    return found


@pytest.mark.parametrize(
    ("rate", "text"),
    [(12345.6, "12,346 images/s"), (100.4, "100 images/s"), (31.44, "31.4 images/s"), (0.0123, "0.0123 images/s")],
)
def test_rate_has_three_digits_and_its_unit(rate: float, text: str) -> None:
    assert describe_rate(rate, "images") == text


def test_plain_line_tells_count_rate_time_left_and_note(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with PlainProgress().task("student", 30_000, "images") as task:
        for _ in range(3):
            clock.now += 4
            task.advance(5000, "loss 0.41")
        clock.now += 12
        task.advance(15_000, "loss 0.20")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "student: 15,000/30,000 images, 1,250 images/s, 0:00:12 left, loss 0.41",
        "student: done in 24.0 s, 1,250 images/s, loss 0.20",
    ]


def test_what_was_done_before_counts_for_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with PlainProgress().task("student", 1000, "images", done=900) as task:
        clock.now += 10
        task.advance(50)
    assert capsys.readouterr().err.splitlines() == [
        "student: 950/1,000 images, 5 images/s, 0:00:10 left",
        "student: done in 10.0 s, 5 images/s",
    ]


def test_task_of_one_step_and_a_moment_has_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with PlainProgress().task("export", 1, "graphs") as task:
        clock.now += 3
        task.advance()
    with PlainProgress().task("none", 0, "graphs"):
        pass
    assert capsys.readouterr().err.splitlines() == ["export: done in 3.0 s", "none: done in 0.0 s"]


def test_no_line_says_that_interrupted_work_is_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), PlainProgress().task("student", 5, "images"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("first", "before"),
    [(2.0, ["export: 0:00:02 so far", "export: 0:00:22 so far"]), (20.0, ["export: 0:00:20 so far"])],
)
def test_plain_lines_say_soon_and_then_now_and_then_that_work_goes_on(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, first: float, before: list[str]
) -> None:
    monkeypatch.setattr(progress_bars, "FIRST_S", first)
    progress = PlainProgress()

    class Ended:
        """An event on which waiting is a second of the clock."""

        def wait(self, seconds: float) -> bool:
            clock.now += seconds
            if clock.now == 1030:
                progress.say("something")
            return clock.now > 1120

    with progress.task("export", 1, "graphs"):
        progress._watch("quantize", Ended())  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines()[:-1] == [
        *before,
        "something",
        "export: 0:00:50 so far",
        "export: 0:01:30 so far",
    ]


def test_line_moves_while_no_task_is_open_and_is_gone_in_the_end() -> None:
    def work(progress: BarProgress) -> None:
        with progress.alive("quantize"):
            with progress.task("calibrate", 2, "images") as task, progress.task("inner", 1) as inner:
                inner.advance()
                task.advance(2)
            progress.say("said")

    shown = draw(work)
    assert sum("quantize 0:00:0" in line for line in shown) >= 2  # before the task, and after it
    assert any(line.startswith("calibrate ") and "2/2 images" in line for line in shown)
    assert "said" in shown


def test_time_of_a_single_step_moves() -> None:
    def work(progress: BarProgress) -> None:
        with progress.task("export", 1, "graphs"):
            time.sleep(1.1)

    assert any("export" in line and line.endswith("0:00:01") for line in draw(work))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_is_one_line_in_a_terminal_of_any_width(width: int) -> None:
    progress, out = BarProgress(), io.StringIO()
    progress.console = Console(file=out, width=width, force_terminal=True, color_system=None)
    with progress.task("float-onnxruntime: timing", 12, "processes") as task:
        task.advance(12, "float-onnxruntime onnxruntime 0.17 ms")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert lines[-1].startswith("float")
    assert "12/12 processes" in lines[-1]
    assert max(map(len, lines)) <= width
    assert not any(line.startswith(" ") for line in lines)  # which the rest of a broken line would


def draw(work: Callable[[BarProgress], None]) -> list[str]:
    progress, out = BarProgress(), io.StringIO()
    progress.console = Console(file=out, width=100, force_terminal=True, color_system=None)
    work(progress)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    return [" ".join(line.split()) for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_bar_tells_count_unit_rate_and_note() -> None:
    def work(progress: BarProgress) -> None:
        with progress.task("learn [b]rounding[/b]", 2, "blocks") as task:
            task.advance(note="loss [0]")
            task.advance(note="loss [1]")

    last = draw(work)[-1]
    assert last.startswith("learn [b]rounding[/b] ")
    assert re.search(r" 2/2 blocks [\d,.e+]+ blocks/s 0:00:00 loss \[1\]$", last)


def test_bar_of_one_step_has_no_rate() -> None:
    def work(progress: BarProgress) -> None:
        with progress.task("export", 1, "graphs") as task:
            task.advance()

    assert re.search(r" 1/1 graphs 0:00:0\d$", draw(work)[-1])


def test_bar_of_a_task_that_goes_on_begins_where_it_was() -> None:
    def work(progress: BarProgress) -> None:
        with progress.task("student", 10, "images", done=8):
            pass

    assert re.search(r" 8/10 images 0:00:0\d$", draw(work)[-1])


@pytest.mark.parametrize(
    ("asks", "is_terminal", "typed", "goes_on"),
    [
        (True, True, "\n", True),
        (True, True, "yes\n", True),
        (True, True, "n\n", False),
        (True, True, "", False),  # the end of the input, as Ctrl-D
        (True, False, "n\n", True),
        (False, True, "n\n", True),
    ],
)
def test_bars_ask_a_terminal_alone_and_only_where_they_may(
    asks: bool, is_terminal: bool, typed: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = io.StringIO(typed)
    monkeypatch.setattr(given, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdin", given)
    bars = BarProgress(asks)
    bars.console = Console(file=io.StringIO())
    with bars.alive("train"):
        assert bars.ask("Train for about 3 hours?") is goes_on
