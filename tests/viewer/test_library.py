"""Runs are found and read as they lie on disk, whatever state they are in."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline import run_folder
from convnext_deploy.viewer import library
from convnext_deploy.viewer.library import Library, best_artifact
from convnext_deploy.viewer.pages import live_run
from tests.reports.conftest import BASELINE_ROW, INT8_ROW, PASSED_ROW, change, create_report
from tests.viewer.conftest import EPOCHS, HOSTILE, write_history, write_run


def states(root: Path) -> dict[str, str]:
    return {run.name: run.state for run in Library(root).runs()}


def test_every_run_is_found_with_its_state(runs: Path) -> None:
    assert states(runs) == {"photos/good": "complete", "bad": "complete", HOSTILE: "recent", "damaged": "unreadable"}
    damaged = Library(runs).run("damaged")
    assert damaged is not None
    assert "is not a report of this tool" in (damaged.problem or "")
    assert Library(runs).run("../runs/bad") is None
    assert [run.name for run in Library(runs / "bad").runs()] == ["bad"]


def test_a_run_that_was_left_is_called_stopped(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_FRESH_S", -1.0)
    assert states(runs)[HOSTILE] == "stopped"
    (runs / "bad" / "report.json").write_text(create_report(BASELINE_ROW, complete=False).to_json())
    assert states(runs)["bad"] == "stopped"


def test_a_run_whose_lock_is_held_is_running(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = (runs / "bad" / ".lock").stat()
    place = f"{os.major(own.st_dev):02x}:{os.minor(own.st_dev):02x}:{own.st_ino}"
    table = tmp_path / "locks"
    monkeypatch.setattr(library, "_LOCKS", table)
    table.write_text(f"1: POSIX  ADVISORY  WRITE 41 {place} 0 EOF\n2: FLOCK  ADVISORY  WRITE 7 00:19:6 0 EOF\n")
    assert states(runs)["bad"] == "running"
    assert states(runs)["photos/good"] == "complete"
    table.write_text(f"1: -> POSIX  ADVISORY  WRITE 41 {place} 0 EOF\n")
    assert states(runs)["bad"] == "complete"
    monkeypatch.setattr(library, "_LOCKS", tmp_path / "none")
    assert states(runs)["bad"] == "complete"


def test_a_run_of_another_machine_goes_on_while_its_lock_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_LOCKS", tmp_path / "none")
    monkeypatch.setattr(run_folder, "_BEAT_S", 0.01)
    folder = write_run(tmp_path / "run", None)
    write_history(folder, "long epochs")
    lock = folder / ".lock"

    def leave() -> None:
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (1e9, 1e9))

    leave()
    assert states(tmp_path) == {"run": "stopped"}
    with run_folder.claim(folder):
        leave()
        while lock.stat().st_mtime == 1e9:
            time.sleep(0.01)
        assert states(tmp_path) == {"run": "recent"}
    leave()
    time.sleep(0.05)
    assert states(tmp_path) == {"run": "stopped"}


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="there is no /proc/locks")
def test_the_lock_of_this_very_process_is_seen_and_kept(runs: Path) -> None:
    import fcntl

    with (runs / "bad" / ".lock").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert states(runs)["bad"] == "running"
        assert states(runs)["bad"] == "running", "to look does not release it"
    assert states(runs)["bad"] == "complete"


def test_epochs_come_from_the_report_and_from_trainings_that_go_on(tmp_path: Path) -> None:
    row = change(BASELINE_ROW, epochs=({"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}))
    folder = write_run(tmp_path / "run", create_report(row, complete=False))
    write_history(folder, row.name)
    write_history(folder, "next", [*EPOCHS, "no record", {"epoch": True, "loss": "high"}])
    write_history(folder, "broken", {"epoch": 1})
    run = Library(tmp_path).run("run")
    assert run is not None
    trainings = run.trainings or {}
    assert [epoch["train_loss"] for epoch in trainings[row.name]] == [2.0, 1.0]
    assert list(trainings["next"]) == [*EPOCHS, {}]
    assert "broken" not in trainings


def test_what_changed_last_comes_first_and_a_changed_report_is_read_again(runs: Path) -> None:
    shown = Library(runs)
    assert (before := shown.run("bad")) is not None
    assert before.report is not None
    later = time.time() + 50
    (runs / "bad" / "report.json").write_text(create_report(BASELINE_ROW, recipe="again").to_json())
    os.utime(runs / "bad" / "report.json", (later, later))
    first = shown.runs()[0]
    assert (first.name, first.report and first.report.recipe) == ("bad", "again")


def test_links_are_not_followed_out_of_the_folder(runs: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", create_report(BASELINE_ROW))
    (runs / "linked").symlink_to(other)
    assert "linked" not in states(runs)
    folder = write_run(runs / "inside", None)
    (folder / "report.json").symlink_to(other / "report.json")
    (folder / "report.html").symlink_to(runs / "secret.txt")
    run = Library(runs).run("inside")
    assert run is not None
    assert (run.state, run.report) == ("unreadable", None)
    assert "a link that leads out of the run" in (run.problem or "")
    assert Library(runs).file(run, "report.html") is None


def test_best_artifact_is_the_fastest_graph_that_failed_no_gate() -> None:
    onnx = change(PASSED_ROW, name="onnx", format="onnx", p50_ms=5.0)
    slower = change(onnx, name="slower", p50_ms=9.0, size_bytes=1)
    assert (best := best_artifact(create_report(BASELINE_ROW, slower, onnx, INT8_ROW))) is not None
    assert best.name == "onnx"
    busy = change(onnx, name="busy", p50_ms=1.0, loaded="load 9 on 2 cores")
    assert (best := best_artifact(create_report(BASELINE_ROW, busy, onnx))) is not None
    assert best.name == "onnx"
    untimed = [change(row, latency=None) for row in (onnx, slower)]
    assert (best := best_artifact(create_report(BASELINE_ROW, *untimed))) is not None
    assert best.name == "slower"
    assert best_artifact(create_report()) is None


def test_what_was_brought_is_not_what_to_ship() -> None:
    source = change(BASELINE_ROW, name="source", kind="source")
    assert best_artifact(create_report(source)) is None
    simulated = change(PASSED_ROW, name="quantize", kind="quantize", format="torch", p50_ms=99.0)
    assert (best := best_artifact(create_report(source, simulated))) is not None
    assert best.name == "quantize"
    assert (best := best_artifact(create_report(source, BASELINE_ROW, simulated))) is not None
    assert best.name == "student"


@pytest.mark.parametrize("name", ["none", "secret.txt"])
def test_a_folder_that_is_none_is_refused_in_one_line(runs: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="; expected the folder of a run, or of several") as caught:
        Library(runs / name)
    assert "\n" not in str(caught.value)


def test_folders_of_images_hide_no_run_and_a_search_that_ends_early_is_told(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in range(12):
        (runs / "an-image-folder" / "train" / f"{name}").mkdir(parents=True)
    shown = Library(runs)
    every = {run.name for run in shown.runs()}
    assert shown.is_whole
    monkeypatch.setattr(library, "MOST_FOLDERS", 10)
    assert {run.name for run in shown.runs()} == every, "what is least deep comes first"
    assert not shown.is_whole


def test_what_diverged_is_no_figure(tmp_path: Path) -> None:
    write_run(tmp_path / "run", None)
    write_history(tmp_path / "run", "model", [EPOCHS[0], {"epoch": 2, "train_loss": float("inf"), "grad": -(10**400)}])
    (run,) = Library(tmp_path).runs()
    assert (run.trainings or {})["model"] == (EPOCHS[0], {"epoch": 2})
    plots = json.loads(live_run(run), parse_constant=pytest.fail)["plots"]
    assert [plot["epochs"] for plot in plots] == [[1, 2], [1, 2]], "all plots of a training have one axis"
