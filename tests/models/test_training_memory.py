"""What training keeps in memory: by the rules of GPU autocast, and as the peak of a whole step with and without checkpointing."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.models.zoo.cost import activation_bytes
from convnext_deploy.models.zoo.ranking import BYTES_PER_VALUE
from tests.models.test_complexity import kept_bytes, meta_images, meta_network


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Autocast to bfloat16 by the rules of the GPU; `torch.autocast` refuses where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("variant", ["convnext_zepto_rms", "convnext_tiny", "convnextv2_atto"])
def test_bytes_per_value_is_what_bfloat16_autocast_keeps(variant: str) -> None:
    spec = ModelSpec(variant, 10)
    network = copy.deepcopy(meta_network(spec))
    with FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast():
        network = network.to_empty(device="cuda")

        def kept(count: int) -> int:
            # weights are kept in bfloat16 as well, so only the difference between two batches counts
            return kept_bytes(network, lambda: network(torch.empty(count, 3, 224, 224, device="cuda")))

        per_image = (kept(5) - kept(1)) / 4
    width = BYTES_PER_VALUE[VARIANTS[variant].version]
    assert activation_bytes(spec, 224, width) == pytest.approx(per_image, rel=0.1)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and that are still referenced, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def peak_per_image(spec: ModelSpec, size: int, gradient_checkpointing: bool) -> float:
    """Peak of the bytes per image over a forward and backward pass in float32."""

    def peak(count: int) -> int:
        network = copy.deepcopy(meta_network(spec, gradient_checkpointing))
        live = LiveBytes()
        with live:
            network(meta_images(spec, size, count)).sum().backward()
        return live.peak

    # the gradients of weights do not depend on the batch
    return (peak(12) - peak(4)) / 8


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("variant", ["convnext_atto", "convnextv2_nano"])
def test_activation_bytes_is_the_peak_of_a_training_step(variant: str, gradient_checkpointing: bool) -> None:
    spec = ModelSpec(variant, 10)
    estimate = activation_bytes(spec, 224, 4, gradient_checkpointing=gradient_checkpointing)
    assert estimate == pytest.approx(peak_per_image(spec, 224, gradient_checkpointing), rel=0.15)
