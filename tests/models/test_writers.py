"""Every library's files are read, trained from, converted and exported as the table of the how-to page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.writers import BEGIN, END, PAGE, WRITERS, row, try_writer
from tests.shared import slow_except

NAMES = {writer.name: writer for writer in WRITERS}
SHOWN = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
CHOSEN = (
    "timm, `patch_size=2`",
    "timm, backbone, and beside it norm",
    "torchvision, head: hidden layer",
    "mmpretrain, names",
)


def test_the_table_has_every_writer() -> None:
    rows = [line.split(" | ")[:2] for line in SHOWN if line.startswith("| ")][1:]
    assert rows == [[f"| {writer.library}", writer.form] for writer in WRITERS], "run python -m tests.golden.writers"


@pytest.mark.heavy
@pytest.mark.parametrize("name", slow_except(CHOSEN, NAMES))
def test_writers_are_read_as_the_table_says(name: str, tmp_path: Path) -> None:
    outcome = try_writer(NAMES[name], tmp_path)
    assert max(outcome.read, outcome.export) < 1e-5
    assert row(NAMES[name], outcome) in SHOWN
