"""Two and three processes find what one finds, bit for bit: ranges, networks, judgements, sensitivities, scores, validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.launch import run
from tests.distributed.shared_results import CACHE, results
from tests.distributed.threads import as_processes


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this process alone finds."""
    return results(tmp_path_factory.mktemp("one"))


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every bit counts, but for the cache: its images come in parts of the training's batches, and are kept in half precision."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if name != CACHE and json.dumps(found[name]) != json.dumps(expected[name])] == []
    np.testing.assert_allclose(found[CACHE], expected[CACHE], rtol=2e-3)


def test_threads_that_stand_for_processes_find_what_one_finds(
    one: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = as_processes(3, monkeypatch)
    first, second, third = threads.run(lambda: results(tmp_path))
    assert_same(first, one)
    assert first == second == third
    ranges = one["uneven: ranges"]
    assert len({json.dumps(each) for each in ranges}) == len(ranges)  # sites have something to tell apart
    assert "judged=2" in one["uneven: steps"][0]  # ended after the first batch, as by one process
    assert "judged=None" in one["uneven: steps"][1]


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_find_what_one_finds(one: dict[str, Any], tmp_path: Path, processes: int) -> None:
    code, _, errors = run(["-m", "tests.distributed.shared_results", str(tmp_path)], processes)
    assert code == 0, errors
    found = json.loads((tmp_path / "results.json").read_text())
    assert_same(found, one)
