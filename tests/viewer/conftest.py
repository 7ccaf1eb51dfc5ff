"""A folder with runs of every state, and the server of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext_deploy.reports.record import Report
from convnext_deploy.viewer.library import Library
from convnext_deploy.viewer.server import RunServer
from tests.reports.conftest import BASELINE_ROW, INT8_ROW, PASSED_ROW, create_report

EPOCHS = [
    {"epoch": epoch, "train_loss": 2.0 / epoch, "validation_loss": 1.5 / epoch, "validation_top1": 1 - 0.5 / epoch}
    for epoch in (1, 2, 3)
]
HOSTILE = "<img src=x onerror=alert(1)>"


def write_run(folder: Path, report: Report | None) -> Path:
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    if report is not None:
        (folder / "report.json").write_text(report.to_json())
        (folder / "report.html").write_text(f"<title>{report.recipe}</title>")
    return folder


def write_history(folder: Path, stage: str, epochs: object = EPOCHS) -> None:
    (folder / "checkpoints" / stage).mkdir(parents=True)
    (folder / "checkpoints" / stage / "history.json").write_text(json.dumps(epochs))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run, a failed one, one that trains, one that is damaged, and beside them what is none."""
    root = tmp_path / "runs"
    write_run(root / "photos" / "good", create_report(BASELINE_ROW, PASSED_ROW))
    write_run(root / "bad", create_report(BASELINE_ROW, INT8_ROW))
    write_history(write_run(root / HOSTILE, None), "student")
    write_run(root / "damaged", None).joinpath("report.json").write_text("{")
    (root / "notes").mkdir()
    (root / "secret.txt").write_text("secret")
    return root


@pytest.fixture
def server(runs: Path) -> Iterator[RunServer]:
    """The server of these runs, at a free port."""
    import threading

    found = RunServer(Library(runs), 0)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()
