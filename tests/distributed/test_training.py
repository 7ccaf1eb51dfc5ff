"""Two processes train as one does: the same batches, losses, weights and validation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed import worker
from tests.distributed.launch import run

pytestmark = pytest.mark.heavy  # two processes train

VARIANTS = pytest.mark.parametrize("variant", worker.VARIANTS)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes with 64 images each found."""
    path = tmp_path_factory.mktemp("two") / "results.json"
    code, _, errors = run(["-m", "tests.distributed.worker", str(path)])
    assert code == 0, errors
    assert "Warning" not in errors, errors
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """What this process alone finds with 128 images."""
    results = {name: worker.train(**options) for name, options in worker.VARIANTS.items()}
    found: dict[str, Any] = json.loads(json.dumps(results))
    return found


@VARIANTS
def test_losses_of_two_processes_are_those_of_one(one: dict[str, Any], two: dict[str, Any], variant: str) -> None:
    expected = one[variant]["losses"]
    assert len(expected) == worker.EPOCHS * worker.STEPS * (2 if variant == "everything" else 1)
    assert expected[0] - expected[-1] > 0.02  # something is learned, so that different steps would show
    if variant == "everything":  # the parts of a batch are other rows when processes cut it; their means are the same
        expected, found = (
            [sum(pair) / 2 for pair in zip(x[::2], x[1::2], strict=True)] for x in (expected, two[variant]["losses"])
        )
    else:
        found = two[variant]["losses"]
    assert found == pytest.approx(expected, abs=1e-4)


@VARIANTS
def test_two_processes_share_the_rows_of_every_batch(one: dict[str, Any], two: dict[str, Any], variant: str) -> None:
    rows = {(epoch, row) for epoch, first, count in two[variant]["rows"] for row in range(first, first + count)}
    assert rows == {(epoch, row) for epoch, first, count in one[variant]["rows"] for row in range(first, first + count)}
    assert len(rows) == sum(count for _, _, count in two[variant]["rows"])
    assert max(count for _, _, count in two[variant]["rows"]) == (32 if variant == "everything" else 64)


@VARIANTS
def test_two_processes_end_with_the_same_weights(one: dict[str, Any], two: dict[str, Any], variant: str) -> None:
    assert two[variant]["spread"] == 0.0
    assert two[variant]["weights"] == pytest.approx(one[variant]["weights"], rel=1e-5)


@VARIANTS
def test_two_processes_validate_every_image_once(one: dict[str, Any], two: dict[str, Any], variant: str) -> None:
    assert two[variant]["validated"] == list(range(worker.VALIDATION_IMAGES))
    for found, expected in zip(two[variant]["history"], one[variant]["history"], strict=True):
        assert found.keys() == expected.keys()
        assert found["validation_top1"] == expected["validation_top1"]
        assert found["validation_loss"] == pytest.approx(expected["validation_loss"], abs=1e-4)
        assert found["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-4)
