"""SIGINT, SIGTERM and SIGHUP end a command with one line and their exit code, whatever it is doing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import numpy as np
import pytest
from PIL import Image

import convnext_deploy.cli as command_line
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.system.interruption import Interrupted, interruptible
from tests.cli.conftest import Outcome, call

LINES = {
    signal.SIGINT: (130, "interrupted\n"),
    signal.SIGTERM: (143, "interrupted (SIGTERM)\n"),
    signal.SIGHUP: (129, "interrupted (SIGHUP)\n"),
}


def call_with(patch: pytest.MonkeyPatch, work: Callable[[], object], name: str = "models") -> Outcome:
    """Call a command that does nothing but `work`."""

    @click.command(name)
    def command() -> None:
        work()

    patch.setattr(command_line.group, "get_command", lambda context, name: command)
    return call(name)


@pytest.mark.parametrize("signum", LINES)
def test_signal_is_one_line_and_its_exit_code(signum: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    if signal.getsignal(signum) is signal.SIG_IGN:
        pytest.skip("ignored where the tests run, as under nohup, and then by the commands too")
    before = [signal.getsignal(number) for number in LINES]
    outcome = call_with(monkeypatch, lambda: signal.raise_signal(signum))
    assert (outcome.code, outcome.err) == LINES[signum]
    assert [signal.getsignal(number) for number in LINES] == before


def test_line_of_a_command_that_can_go_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends() -> NoReturn:
        raise Interrupted(signal.SIGINT, "student is saved at step 7")

    assert call_with(monkeypatch, ends, "train").err == (
        "interrupted; student is saved at step 7 and finished stages are kept, the same command goes on from there\n"
    )
    assert call_with(monkeypatch, lambda: signal.raise_signal(signal.SIGINT), "run").err == (
        "interrupted; the last saved state and finished stages are kept, the same command goes on from there\n"
    )


def test_signal_that_became_another_error_is_still_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert() -> NoReturn:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise ImportError("numpy._core.multiarray failed to import") from None
        raise AssertionError

    assert call_with(monkeypatch, convert).err == LINES[signal.SIGTERM][1]


def test_signal_that_was_lost_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def lose() -> None:
        lost = Lost()
        del lost  # Python prints and drops what is raised here
        time.sleep(20)

    begun = time.monotonic()
    outcome = call_with(monkeypatch, lose)
    assert (outcome.code, outcome.err) == LINES[signal.SIGTERM]
    assert time.monotonic() - begun < 10


def test_signal_waits_for_the_end_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import signal, time, sys\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(0.5)\nsys.imported_whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        __import__("slow_to_import")
        time.sleep(20)

    outcome = call_with(monkeypatch, work)
    assert (outcome.code, outcome.err) == LINES[signal.SIGINT]
    assert sys.__dict__.pop("imported_whole")


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert call_with(monkeypatch, lambda: signal.raise_signal(signal.SIGHUP)).code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_second_signal_ends_the_process_at_once_with_one_line() -> None:
    """In a fork: it ends without cleaning up, as while a build cannot be cancelled."""
    own, other = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(other, 2)
        with contextlib.suppress(BaseException), interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                time.sleep(0.6)
                signal.raise_signal(signal.SIGINT)
                time.sleep(20)
        os._exit(99)
    os.close(other)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(own) as stream:
        assert stream.read() == "interrupted again, and ended at once\n"
    assert os.waitstatus_to_exitcode(status) == 130


def test_of_several_processes_the_first_one_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert call_with(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM), "run") == Outcome(143, "", "")
    monkeypatch.setenv("RANK", "0")
    outcome = call_with(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM), "run")
    assert outcome.code == 143
    assert outcome.err.startswith("interrupted (SIGTERM), or another process ended: see what it said")


RECIPE = """
name = "long"
[[stages]]
kind = "train"
name = "teacher"
[stages.model]
name = "test_convnext"
image_size = 32
[stages.fit]
epochs = {epochs}
batch_size = 6
base_learning_rate = 0.256
warmup_epochs = 0
drop_path_rate = 0.3
"""


@pytest.mark.heavy
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_training_with_processes_that_load_goes_on_after_a_signal_to_all(tmp_path: Path, signum: int) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(9):  # larger than what is decoded once
                pixels = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{index}.png")
    (tmp_path / "long.toml").write_text(RECIPE.format(epochs=12))
    command: list[str | Path] = [
        "run",
        tmp_path / "long.toml",
        "--data",
        tmp_path / "data",
        "--workers",
        "2",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "convnext_deploy", *map(str, command), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not (tmp_path / "out" / "checkpoints" / "teacher" / "last.pt").exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signum)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    *epochs, last = errors.removeprefix("run: loading libraries\n").splitlines()
    assert all(line.startswith(("teacher: ", "run: ")) for line in epochs), epochs  # a busy machine shows how far it is
    assert "teacher is saved at step" in last
    assert call(*command, "--out", tmp_path / "out").err.startswith("teacher: goes on at step")
    assert call(*command, "--out", tmp_path / "whole").code == 0
    first, second = (read_artifact(tmp_path / out / "stages" / "teacher") for out in ("out", "whole"))
    assert first.sha256 == second.sha256
