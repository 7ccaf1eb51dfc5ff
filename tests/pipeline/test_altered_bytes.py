"""One altered byte of a run folder is found by its reader, or says nothing else: `benchmarks/faults_bytes.py` in short."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.errors import DeployError
from convnext_deploy.evaluation.measure import Measurement, read_kept
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.reports.record import read_report
from convnext_deploy.training.checkpoint_store import TrainingStore

BYTES = 200


def equal(one: Any, other: Any) -> bool:
    """Compare what may hold tensors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def hash_of(weights: Path) -> str:
    return open_input(weights).sha256


def readers(out: Path) -> dict[Path, Callable[[], Any]]:
    """Return file → what reads it in this folder: what it says, None or an error."""
    found: dict[Path, Callable[[], Any]] = {out / "report.json": partial(read_report, out)}
    for path in sorted(out.glob("stages/*/*")):
        found[path] = partial(read_artifact, path.parent)
    for path in sorted(out.glob("scores/*.json")):
        found[path] = partial(read_kept, Measurement, path, json.loads(path.read_text())["key"])
    for path in sorted(out.glob("checkpoints/*/last.pt")):
        found[path] = TrainingStore(path.parent, torch.load(path, weights_only=True)["key"]).load
    for path in sorted(out.glob("checkpoints/*/*")):
        if path.name in ("best.safetensors", "SHA256SUMS"):
            found[path] = partial(hash_of, path.parent / "best.safetensors")
    return found


@pytest.mark.heavy
def test_no_altered_byte_of_a_run_folder_is_accepted(copied: Path) -> None:
    known, rng = readers(copied), random.Random(0)
    assert Counter(path.relative_to(copied).parts[0] for path in known).keys() == {
        "report.json",
        "stages",
        "scores",
        "checkpoints",
    }
    expected = {path: read() for path, read in known.items()}
    assert None not in expected.values()
    found = 0
    for _ in range(BYTES):
        path = rng.choice(list(known))
        whole = path.read_bytes()
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            says = known[path]()
        except DeployError:
            says = None
        path.write_bytes(whole)
        found += says is None
        assert says is None or equal(says, expected[path]), (path, place, bit)
    assert found > BYTES * 0.9
