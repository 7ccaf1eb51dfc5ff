"""The GPU of a Mac, of which there is none here: who is sent there, what is kept from it, and that training needs no float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.errors import BackendUnavailableError, DeployError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import SCHEMES
from convnext_deploy.runners.torch import TorchRunner
from convnext_deploy.system.distributed import launched
from convnext_deploy.system.execution import Execution, resolve_device
from convnext_deploy.training import loss_meter
from convnext_deploy.training.schedule import autocast_dtype
from convnext_deploy.training.scoring import evaluate_classifier
from tests.training.fake_batches import fit_with

Patch = pytest.MonkeyPatch


class _NoFloat64(TorchDispatchMode):
    """Refuses what Metal has no type for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        wide = [x for x in tree_leaves((args, found)) if isinstance(x, Tensor) and x.dtype == torch.float64 and x.ndim]
        if wide:
            raise TypeError(f"{func}: Cannot convert a MPS Tensor to float64")
        return found


@contextmanager
def metal(monkeypatch: Patch, *, built: bool, there: bool) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_built", lambda: built)
        patch.setattr(torch.backends.mps, "is_available", lambda: there)
        yield


def test_device_is_taken_where_there_is_one(monkeypatch: Patch) -> None:
    with metal(monkeypatch, built=True, there=True):
        assert resolve_device("mps") == "mps"
        assert resolve_device("auto") in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("built", "what"), [(True, "no GPU that Metal knows"), (False, "a PyTorch without Apple's Metal")]
)
def test_device_that_is_missing_is_one_line(built: bool, what: str, monkeypatch: Patch) -> None:
    expected = rf"^--device mps was asked for, but here is {what}; use --device cpu\.$"
    with metal(monkeypatch, built=built, there=False), pytest.raises(BackendUnavailableError, match=expected):
        resolve_device("mps")
    with (
        metal(monkeypatch, built=built, there=False),
        pytest.raises(BackendUnavailableError, match="use the device cpu"),
    ):
        TorchRunner(network(), "mps")


def test_several_processes_do_not_share_it(monkeypatch: Patch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launched().size == 2
    with metal(monkeypatch, built=True, there=True), pytest.raises(BackendUnavailableError, match="for one process"):
        resolve_device("mps")


def test_networks_are_calibrated_where_there_is_float64() -> None:
    assert [Execution(device).exact_device for device in ("cpu", "cuda", "mps")] == ["cpu", "cuda", "cpu"]


@pytest.mark.parametrize("choice", ["bf16", "fp16"])
def test_training_is_in_float32(choice: Any) -> None:
    assert autocast_dtype("auto", "mps") is None
    assert autocast_dtype("off", "mps") is None
    with pytest.raises(
        DeployError, match=rf'^autocast = "{choice}" is not tested on mps; use "auto" or "off"[^\n]*\.$'
    ):
        autocast_dtype(choice, "mps")


def network() -> ConvNeXt:
    return ConvNeXt((1, 1, 1, 1), (8, 8, 16, 16), num_classes=3, drop_path_rate=0.2, layer_scale_init=0.1)


@pytest.mark.parametrize("quantized", [False, True])
def test_training_and_evaluation_need_no_float64(
    quantized: bool, small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loss_meter.widest_dtype("mps") == torch.float32
    monkeypatch.setattr(loss_meter, "widest_dtype", lambda device: torch.float32)
    model, preprocess = network(), default_preprocess(32)
    if quantized:
        prepare(model, SCHEMES["tensorrt"])
    batches = TrainingBatches(small_data.train, preprocess, BatchPlan(12, 3, Augmentation(0.5), seed=1))
    with _NoFloat64():
        fit_with(model, batches, lambda called, batch: F.cross_entropy(called(batch.images), batch.labels), epochs=1)
        score = evaluate_classifier(model, EvaluationBatches(small_data.validation, preprocess, 4), "cpu")
        assert TorchRunner(model.eval(), "cpu").logits(torch.zeros(1, 3, 32, 32).numpy()).shape == (1, 3)
    assert 0 <= score["validation_top1"] <= 1


def test_what_refuses_float64_finds_it() -> None:
    with _NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.zeros(2).double()
