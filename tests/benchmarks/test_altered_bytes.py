"""The drill of `benchmarks/altered_bytes.py`, with few bytes: what reads an altered file finds it, or gives the same results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


@pytest.mark.heavy
def test_no_altered_byte_is_accepted(tmp_path: Path, short_timing: None) -> None:
    from altered_bytes import ACCEPTED, FOUND, Drill, choose

    drill = Drill(tmp_path)
    trials = [drill.alter(*each) for each in choose(drill, 6, seed=2)]
    assert ACCEPTED not in Counter(trial.outcome for trial in trials), trials
    for file in ("stages/onnx/model.onnx", "bundle/bundle.json", "report.json"):
        place = (drill.whole / file).read_bytes().index(b'"')
        assert drill.alter(Path(file), place, 0).outcome == FOUND, file
