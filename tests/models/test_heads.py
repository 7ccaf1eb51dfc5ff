"""Heads with norms, batch norms and without biases answer as in the library that they come from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from tests.models.test_wrappers import CLASSES, answers, timm_network, with_head


def whole_batch_norms(network: nn.Module) -> nn.Module:
    """Return a network whose variances are such as batches have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_var is not None
            module.running_var.abs_().add_(0.1)
    return network


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (nn.Sequential(nn.Linear(128, CLASSES, bias=False)), ["no bias, read as zeros"]),
        (
            nn.Sequential(nn.Linear(128, 12, bias=False), nn.ReLU(), nn.Linear(12, CLASSES, bias=False)),
            ["taken to be ReLU", "no bias, read as zeros"],
        ),
        (
            nn.Sequential(nn.LayerNorm(128), nn.Dropout(0.1), nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, CLASSES)),
            ["LayerNorm of its own", "taken to be ReLU"],
        ),
        (nn.Sequential(nn.BatchNorm1d(128), nn.Dropout(0.1), nn.Linear(128, CLASSES)), ["BatchNorm, which became a part"]),
        (
            nn.Sequential(
                nn.BatchNorm1d(128, affine=False), nn.Linear(128, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(),
                nn.Linear(12, CLASSES),
            ),
            ["BatchNorm, which became a part", "taken to be ReLU"],
        ),
        (
            nn.Sequential(nn.Linear(128, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, CLASSES)),
            ["BatchNorm, which became a part", "taken to be ReLU"],
        ),
    ],
    ids=["no bias", "no biases", "norm and hidden", "batch norm", "batch norms", "batch norm before the last"],
)  # fmt: skip
def test_heads_of_more_modules_give_their_logits(head: nn.Module, said: list[str], tmp_path: Path) -> None:
    network = whole_batch_norms(with_head(timm_network(), copy.deepcopy(head))).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    notes = [note for note in artifact.notes if "the head has" in note]
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))
    torch.testing.assert_close(answers(load_network(artifact)), answers(network), rtol=1e-5, atol=1e-5)
