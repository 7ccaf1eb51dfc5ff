"""Losses are summed on the device as the host would sum them, and the first that is not finite is known by its step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import DeployError
from convnext_deploy.training import loss_meter
from convnext_deploy.training.checkpoint_store import TrainingStore
from convnext_deploy.training.loss_meter import LogLines, LossMeter
from tests.training.fake_batches import run_fit, small_network


def test_meter_sums_as_the_host_does_however_often_it_is_read() -> None:
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)) / 3
    expected = 0.0
    often, seldom = LossMeter("cpu"), LossMeter("cpu")
    for first, second in losses.view(25, 2):
        expected += first.item() + second.item()
        for meter in (often, seldom):
            meter.add(first)
            meter.add(second)
            meter.end_step()
        often.read()
    assert often.read().total == seldom.read().total == expected
    assert seldom.read().last == losses[-2].item() + losses[-1].item()


def test_meter_knows_the_first_loss_that_is_not_finite_since_it_was_read() -> None:
    meter = LossMeter("cpu")
    for loss in (1.0, math.inf, math.nan, 2.0):
        meter.add(torch.tensor(loss))
        meter.end_step()
    found = meter.read()
    assert (found.bad_after, found.bad, found.last) == (1, math.inf, 2.0)
    meter.add(torch.tensor(3.0))
    meter.end_step()
    assert meter.read().bad_after is None


def test_lines_come_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("convnext_deploy.training.loss_meter.time.perf_counter", lambda: now)
    lines, gaps, since = LogLines(), [], 0
    for step in range(1, 1001):
        now += 5.0 if step == 1 else 0.01  # the first one is compiled
        if lines.count():
            lines.begin(lines.suggest())
            gaps.append(step - since)
            since = step
    assert gaps == [1, 1, 2, 4, 8, 16, 32, 64, *[100] * 8]


def train(folder: Path, bad_at: int) -> int:
    """Train until a loss that is not finite is found, and return how many steps were taken."""
    taken = 0

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        nonlocal taken
        taken += 1
        loss = nn.functional.cross_entropy(network(batch.images), batch.labels)
        return loss * math.nan if taken == bad_at else loss

    with pytest.raises(DeployError, match=rf"the loss is nan at step {bad_at - 1} \(learning rate \d"):
        run_fit(small_network(), objective=objective, store=TrainingStore(folder, "key", 1e9))
    return taken


@pytest.mark.parametrize(("bad_at", "seen_at"), [(1, 1), (2, 3), (6, 8)])
def test_a_loss_that_is_not_finite_is_named_by_its_step_and_no_state_after_it_is_kept(
    bad_at: int, seen_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_meter, "LINE_EVERY_S", 1e9)  # lines after steps 1, 3, 4 and 8
    assert train(tmp_path, bad_at) == seen_at
    state = TrainingStore(tmp_path, "key").load()
    assert (state is None) == (bad_at <= 4)
    if state is not None:
        assert state["step"] == 4
        assert all(tensor.isfinite().all() for tensor in state["model"].values())
