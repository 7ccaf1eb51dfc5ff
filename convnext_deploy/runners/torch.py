"""Run PyTorch networks, float and fake-quantized, in float32; eager, or compiled by `torch.compile`."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.errors import BackendUnavailableError, first_line
from convnext_deploy.runners.graph_io import Images, Outputs, prepare_images, run_in_two_sizes
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.training.torch_compile import check_compiler, compile_alone


class TorchRunner:
    """A PyTorch network in evaluation mode."""

    name = "torch"

    def __init__(
        self, network: nn.Module, device: str, threads: int | None = None, preprocess: Preprocess | None = None
    ) -> None:
        kind = torch.device(device).type
        if (kind == "cuda" and not torch.cuda.is_available()) or (
            kind == "mps" and not torch.backends.mps.is_available()
        ):
            raise BackendUnavailableError("PyTorch finds no GPU; use the device cpu.")
        self.device = device
        self._network, self._threads, self._preprocess = network.to(device), threads, preprocess

    def prepare(self, images: Images) -> NDArray[np.generic]:
        """Return normalized images `(N, C, S, S)` float32."""
        if self._preprocess is None:
            assert images.dtype == np.float32  # who gives pixels says how they are normalized
            return np.ascontiguousarray(images)
        return prepare_images(images, GraphIO(), self._preprocess)

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """Compute the logits or features of prepared images."""
        with torch.inference_mode(), full_float32(), _threads(self._threads):
            return {"logits": self._network(torch.from_numpy(prepared).to(self.device)).cpu().numpy()}

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Return the logits `(N, num_classes)`, or the features, float32 of pixels or normalized images."""
        return self.run(self.prepare(images))["logits"].astype(np.float32, copy=False)

    def close(self) -> None:
        """Let go of the network."""
        del self._network


class CompiledTorchRunner(TorchRunner):
    """A PyTorch network by `torch.compile`. Its first calls compile, which takes from seconds to minutes.

    Kernels for one batch size are the fastest, and each size has to be compiled: they are made for single images and for the first
    larger batch; other batches are run in parts of that size.
    """

    name = "torch-compile"

    def __init__(
        self, network: nn.Module, device: str, threads: int | None = None, preprocess: Preprocess | None = None
    ) -> None:
        check_compiler(is_cuda=torch.device(device).type == "cuda", wanted_by=self.name, instead="use the runner torch")
        super().__init__(network, device, threads, preprocess)
        self._network = compile_alone(self._network)
        self._many = 1

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """Compute the logits of prepared images, in parts of the size that is compiled."""
        if self._many == 1:
            self._many = len(prepared)
        return run_in_two_sizes(prepared, self._run, self._many)

    def _run(self, images: NDArray[np.generic]) -> Outputs:
        try:
            return super().run(images)
        except RuntimeError as error:  # the base of all that Dynamo and Inductor raise
            raise BackendUnavailableError(
                f"torch.compile fails here ({first_line(error)}); use the runner torch."
            ) from None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads in this context; None: with as many as PyTorch has."""
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
