"""Who a process is, and what a lost connection looks like."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convnext_deploy.errors import DataError, ProcessLostError
from convnext_deploy.system import distributed
from convnext_deploy.system.distributed import World, gather, launched, losing_others, total, world
from convnext_deploy.system.packing import pack, unpack
from convnext_deploy.system.shared_work import from_first
from tests.training.device_copies import DEVICE, counting


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the second of four processes, as far as error texts are concerned."""
    monkeypatch.setattr(distributed, "world", lambda: World(1, 4, 1))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, World()),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, World()),
        ({"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, World(5, 16, 1)),
        ({"RANK": "5", "WORLD_SIZE": "16"}, World()),  # some batch systems set these for jobs of one process
        ({"RANK": "", "WORLD_SIZE": "16", "LOCAL_RANK": "x"}, World()),
    ],
)
def test_launched_reads_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: World
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected
    assert launched().is_first == (expected.rank == 0)


def test_one_process_needs_no_others() -> None:
    assert world() == World()
    assert total([1.5, 2.0]) == [1.5, 2.0]
    assert gather("a") == ["a"]
    assert from_first(lambda: 3) == 3


def test_from_first_raises_what_was_raised() -> None:
    def fail() -> int:
        raise DataError("no images")

    with pytest.raises(DataError, match="no images"):
        from_first(fail)


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:15566",
        "NCCL communicator was aborted on rank 1.",
        "Timed out waiting 1800000ms for recv operation to complete",
    ],
)
@pytest.mark.usefixtures("second")
def test_losing_others_is_one_line(text: str) -> None:
    with pytest.raises(ProcessLostError) as caught, losing_others():
        raise RuntimeError(f"{text}\nmore lines")
    message = str(caught.value)
    assert message.startswith("process 1 of 4 lost the others (")
    assert "\n" not in message
    assert "goes on from the last saved state" in message


@pytest.mark.usefixtures("second")
def test_losing_others_leaves_other_errors_alone() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), losing_others():
        raise RuntimeError("CUDA out of memory")


def test_losing_others_leaves_one_process_alone() -> None:
    with pytest.raises(RuntimeError, match="connection"), losing_others():
        raise RuntimeError("connection refused")


def test_tensors_are_sent_without_the_sender_s_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickle keeps a device with its number, and whoever reads it opens that GPU; the meta device stands in for one."""
    sent = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(DEVICE)
    sent[0].bias = nn.Parameter(torch.ones(2), requires_grad=False)
    with counting(monkeypatch) as copies:
        packed = pack({"network": sent, "host": torch.arange(3.0), "none": None})
        assert len(copies.reads) == len(
            [tensor for tensor in sent.state_dict().values() if tensor.device.type == DEVICE]
        )
    assert b"meta:" not in packed
    got = unpack(packed)
    network = got["network"]
    assert [(name, p.device.type, p.requires_grad) for name, p in network.named_parameters()] == [
        (name, p.device.type, p.requires_grad) for name, p in sent.named_parameters()
    ]
    assert got["host"].tolist() == [0.0, 1.0, 2.0]
    assert network[0].bias.tolist() == [1.0, 1.0]
