"""The drills of `benchmarks/faults.py`, in short, and how they judge what a process left."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("code", "err", "codes", "wrong"),
    [
        (0, "teacher: done\n", {0}, ""),
        (1, "teacher: done\nerror: the disk is full (out/x)\n", {1}, ""),
        (130, "interrupted; the same command goes on\n", {130}, ""),
        (-9, "", {-9}, ""),
        (None, "", {0}, "hangs"),
        (0, "error: no\n", {1}, "exit code 0 instead of 1"),
        (1, "Traceback (most recent call last):\n  x\nOSError: no\n", {1}, "OSError: no"),
        (0, "Exception ignored in: <x>\n", {0}, "Exception ignored"),
        (-7, "Bus error\n", {1}, "Bus error"),
        (1, "error: one\nerror: two\n", {1}, "does not end in one line"),
        (1, "error: one\nand more\n", {1}, "does not end in one line"),
        (1, "", {1}, "does not end in one line"),
        (143, "\n", {143}, "without a word"),
    ],
)
def test_what_a_process_left_is_judged(code: int | None, err: str, codes: set[int], wrong: str) -> None:
    from faults_processes import Ended

    found = Ended(code, "", err, 1.0).fault(codes)
    assert wrong in found
    assert bool(found) == bool(wrong)
    assert Ended(code, "", err, 1.0, stray=True).fault(codes)


_PLANTED = """
from faults_lab import Trial
from faults_processes import NotRunError

def good(lab, count, seed):
    (lab.folder / "x").write_text("x")
    for number in range(count):
        with open({ran!r}, "a") as ran:
            ran.write("x")
        yield Trial(f"trial {{number}}", "as it should be", "", 1.0)

def bad(lab, count, seed):
    yield Trial("a trial", "fine", "", 1.0)
    yield Trial("another", "fine", "OTHER | BYTES", 2.0)
    raise ValueError("it cannot go on")

def elsewhere(lab, count, seed):
    raise NotRunError("there is no disk")
    yield
"""


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Replace the drills by three; return what does them and reads the results."""
    import faults

    ran, out = tmp_path / "ran.txt", tmp_path / "faults.json"
    (tmp_path / "planted_faults.py").write_text(_PLANTED.format(ran=str(ran)))
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("good", "bad", "elsewhere")
    monkeypatch.setattr(faults, "DRILLS", tuple(faults.Drill(name, name, 20, "planted_faults", name) for name in names))

    def do(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["faults.py", "--jobs", "1", "--out", str(out), *words])
        return faults.main(), {**json.loads(out.read_text())["drills"], "ran": len(ran.read_text())}

    return do


def test_results_are_kept_with_what_made_them(
    planted: Callable[..., tuple[int, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import faults
    import faults_table

    code, found = planted("--scale", "0.1")
    assert (code, found["ran"]) == (1, 2)
    assert found["good"]["outcomes"] == {"as it should be": 2}
    assert [problem["problem"] for problem in found["bad"]["problems"]] == [
        "OTHER | BYTES",
        "ValueError: it cannot go on",
    ]
    assert found["elsewhere"]["not_run"] == "there is no disk"
    assert "another: OTHER | BYTES" in capsys.readouterr().out
    found.pop("ran")
    assert faults_table.rows(found) == [
        ["good", "2", "1", "2 as it should be"],
        ["bad", "2", "2", "2 NOT AS PROMISED, 1 fine"],
        ["elsewhere", "2", "0", "not run: there is no disk"],
    ]
    assert planted("--drills", "good", "elsewhere", "--scale", "0.1")[1]["ran"] == 2
    assert planted("--drills", "good", "--scale", "0.15")[1]["ran"] == 5
    assert planted("--drills", "good", "--scale", "0.15", "--again")[1]["ran"] == 8
    monkeypatch.setattr(faults, "code_state", lambda: "other code")
    code, found = planted("--drills", "good", "--scale", "0.15")
    assert (code, found["ran"], len(found["bad"]["problems"])) == (0, 11, 2)


def _check(trials: Iterator[Any], at_least: int) -> None:
    found = list(trials)
    assert [(trial.what, trial.problem) for trial in found if trial.problem] == []
    assert len(found) >= at_least


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Any]:
    """A folder whose recipe is one training."""
    from faults_lab import Lab

    lab = Lab(tmp_path, short=True)
    yield lab
    lab.close()


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["terminate", "interrupt"])  # of kills there are tests in tests/pipeline
def test_run_goes_on_after_a_signal(name: str, lab: Any) -> None:
    import faults_kills

    _check(getattr(faults_kills, name)(lab, 2, seed=1), 3)


@pytest.mark.heavy
def test_full_disk_is_said_in_one_line(lab: Any) -> None:
    from faults_processes import NotRunError
    from faults_space import fill_disk

    try:
        _check(fill_disk(lab, 1, seed=0), 2)
    except NotRunError as error:
        pytest.skip(str(error))


@pytest.mark.heavy
def test_run_works_without_asserts_and_docstrings(lab: Any) -> None:
    from faults_places import visit

    _check(visit("optimize-2")(lab, 1, 0), 3)


@pytest.mark.heavy
def test_lost_folders_are_said_in_one_line(lab: Any) -> None:
    from faults_places import lose_folders

    _check(lose_folders(lab, 1, 0), 2)


@pytest.mark.heavy
def test_absurd_recipes_are_refused(lab: Any) -> None:
    from faults_recipes import refuse

    _check(refuse(lab, 9, seed=0), 18)


@pytest.mark.heavy
def test_no_altered_bit_is_accepted(tmp_path: Path, short_timing: None) -> None:
    from faults_bytes import ACCEPTED, FOUND, Bench, choose

    bench = Bench(tmp_path)
    found = [bench.alter(*each) for each in choose(bench, 6, seed=2)]
    assert ACCEPTED not in Counter(altered.outcome for altered in found), found
    for file in ("stages/onnx/model.onnx", "bundle/bundle.json", "report.json"):
        place = (bench.whole / file).read_bytes().index(b'"')
        assert bench.alter(Path(file), place, 0).outcome == FOUND, file
