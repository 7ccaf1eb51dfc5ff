"""Bad weight files end in one clear line: none executes code, hangs, takes much memory or ends in a traceback."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from convnext_deploy.errors import CheckpointError, DeployError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint
from convnext_deploy.pipeline.open_artifact import open_input
from tests.cli.conftest import call
from tests.models.bad_archives import ARCHIVES
from tests.models.bad_files import CONTENTS, EXECUTING, MARKER, OTHER_FORMATS, Bad, good_state
from tests.models.bad_headers import CONFIGS, HEADERS, SAFETENSORS
from tests.models.conftest import refusal

KINDS = (EXECUTING, OTHER_FORMATS, CONTENTS, ARCHIVES, SAFETENSORS, HEADERS, CONFIGS)
BAD = [bad for kind in KINDS for bad in kind]
QUICK = [bad for kind in KINDS for bad in kind[:6]]
MEMORY = 200_000_000  # bytes beyond what is there before
SECONDS = 20
LONGEST_LINE = 2000  # characters
VALIDATE = ("--data", "digits", "--workers", "0", "--device", "cpu")

every_bad_file = pytest.mark.parametrize(
    "bad", [pytest.param(bad, id=bad.name[:60], marks=[] if bad in QUICK else [pytest.mark.heavy]) for bad in BAD]
)


class HangError(BaseException):
    """No error that anything catches."""


def _hang(*_: object) -> NoReturn:
    raise HangError(f"not done after {SECONDS} s")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")


@contextmanager
def limited() -> Iterator[None]:
    """Fail if the block takes more than 20 seconds or 200 MB."""
    before = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
    start = _resident("VmRSS")
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _resident("VmHWM") - start < MEMORY


@pytest.fixture(scope="module", autouse=True)
def _all_imported(tmp_path_factory: pytest.TempPathFactory, short_timing: None) -> None:
    """Have everything in memory that validation needs, with weights that nothing is wrong with."""
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    save_state(path, good_state(), {})
    outcome = call("validate", path, *VALIDATE, "--image-size", "32")
    assert (outcome.code, "Traceback" in outcome.err) == (0, False)


def test_there_are_enough_bad_files_with_different_names() -> None:
    assert len({bad.name for bad in BAD}) == len(BAD) >= 25


def test_memory_is_measured() -> None:
    with pytest.raises(AssertionError), limited():
        torch.ones(60_000_000)


@every_bad_file
def test_bad_file_is_refused_with_one_line(tmp_path: Path, bad: Bad) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = bad.make(folder)
    with limited():
        message = refusal(lambda: load_network(open_input(path)), DeployError)
    assert bad.says in message
    assert len(message) < LONGEST_LINE
    assert message.isprintable()
    with limited(), suppress(CheckpointError):  # it raises no other error
        assert load_checkpoint(path).state
    with limited():
        outcome = call("validate", path, *VALIDATE)
    lines = outcome.err.splitlines()
    assert outcome.code == 1
    assert [line.startswith("error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("error: ")
    assert bad.says in lines[-1]
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert not list(tmp_path.rglob(MARKER))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_refused(tmp_path: Path) -> None:
    torch.save(good_state(), tmp_path / "w.pth")
    (tmp_path / "w.pth").chmod(0)
    assert "cannot be read" in refusal(lambda: open_input(tmp_path / "w.pth"), DeployError)


@pytest.mark.parametrize("bad", EXECUTING, ids=[bad.name for bad in EXECUTING])
def test_executing_files_would_execute_when_trusted(tmp_path: Path, bad: Bad) -> None:
    path = bad.make(tmp_path)
    torch.load(path, weights_only=False)
    assert (tmp_path / MARKER).exists(), "the file is harmless and proves nothing"


@pytest.mark.parametrize("entry", ["model", "state_dict"])
def test_arguments_of_a_training_script_beside_the_weights_are_no_reason_to_refuse(tmp_path: Path, entry: str) -> None:
    content = {entry: good_state(), "epoch": 3, "args": argparse.Namespace(lr=1e-3, data="somewhere")}
    torch.save(content, tmp_path / "w.pth")
    assert open_input(tmp_path / "w.pth").model.variant == "test_convnext"
    assert call("validate", tmp_path / "w.pth", *VALIDATE, "--image-size", "32").code == 0
