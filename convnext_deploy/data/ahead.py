"""How batches reach a GPU without keeping it waiting: copies that the host does not wait for, and a stream of their own."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor


class HasTensors(Protocol):
    """A record with tensors on a device."""

    def on_device(self) -> Iterable[Tensor]:
        """Return them."""


Made = TypeVar("Made", bound=HasTensors)


def upload(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Return a tensor of the host on a device.

    To a GPU of NVIDIA it goes from pinned memory, which PyTorch keeps and uses again, so that the host does not wait for the copy.
    """
    kind = torch.device(device).type
    if kind == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    # Metal may read the host's memory later, when it holds something else
    return tensor.to(device, non_blocking=kind != "mps")


def on_own_stream(made: Iterator[Made], device: str) -> Iterator[Made]:
    """Yield what an iterator makes, on a GPU of NVIDIA on another stream than what is computed with it.

    The host runs ahead of the GPU: when it asks for the next batch, the GPU has yet to compute with the last one, and does both
    at once. On other devices this changes nothing.
    """
    if torch.device(device).type != "cuda":
        yield from made
        return
    own = torch.cuda.Stream()
    own.wait_stream(torch.cuda.current_stream())  # which may still copy what batches are made of
    while True:
        with torch.cuda.stream(own):
            found = next(made, None)
        if found is None:
            return
        current = torch.cuda.current_stream()
        current.wait_stream(own)
        for tensor in found.on_device():
            tensor.record_stream(current)  # its memory is used again only after what reads it
        yield found
