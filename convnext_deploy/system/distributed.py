"""The processes that work on one run together, as `torchrun` starts them; one process needs nothing of it.

Every process runs the same program. The first one writes, decides and speaks; the others follow it through the collectives below,
which run over gloo, on the CPU, beside the group that averages gradients. While they wait for it they do their part of what it
shares out, see `system.shared_work`.
"""

import atexit
import datetime as dt
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from convnext_deploy.errors import ProcessLostError, first_line
from convnext_deploy.system.packing import pack, unpack

T = TypeVar("T")
# The others wait while the first process scores an artifact or exports one, which takes as long as it takes.
_PATIENCE = dt.timedelta(hours=24)
_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_LOST = ("connection", "gloo", "nccl", "socket", "timed out", "timeout", "broken pipe", "store")


@dataclass(frozen=True)
class World:
    """`rank` out of `size` processes, and `local_rank` among those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes; true where there is one alone."""
        return self.rank == 0


def launched() -> World:
    """Return what the environment says of this process (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), without meeting the others."""
    try:
        rank, size, local = (int(os.environ[name]) for name in _PLACES)
    except (KeyError, ValueError):
        return World()
    return World(rank, size, local) if size > 1 else World()


def leave_others() -> None:
    """Be the only process from now on, whatever the environment says."""
    for name in _PLACES:
        os.environ.pop(name, None)


def shares_files() -> bool:
    """Whether several processes were started, and all on this machine, so that one can map a file which another has written."""
    own = launched()
    return own.size > 1 and os.environ.get("LOCAL_WORLD_SIZE") == str(own.size)


@functools.cache
def world() -> World:
    """Return which process this is; the first call meets the others, which must come too.

    Raises: ProcessLostError: if they do not.
    """
    found = launched()
    if found.size == 1:
        return found
    import torch.distributed as dist

    from convnext_deploy.system.cuda_driver import cuda_driver_error

    if not dist.is_initialized():
        backend = "gloo" if cuda_driver_error() else "cpu:gloo,cuda:nccl"
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            dist.init_process_group(backend)
        except (RuntimeError, ValueError) as error:
            raise ProcessLostError(
                f"process {found.rank} of {found.size} did not meet the others at {place}: {first_line(error)}. "
                "Start them all with torchrun and the same --rdzv-endpoint."
            ) from None
        atexit.register(_leave)
    return found


def total(values: Sequence[float]) -> list[float]:
    """Return each number summed over the processes."""
    if world().size == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values, dtype=torch.float64)
    with losing_others():
        dist.all_reduce(tensor, group=_control())
    summed: list[float] = tensor.tolist()
    return summed


def gather(value: T) -> list[T]:
    """Return what every process gave, by rank."""
    if world().size == 1:
        return [value]
    return [unpack(each) for each in _exchange(pack(value), everywhere=True)]


def collect(value: T) -> list[T]:
    """Return what every process gave, by rank, in the first one; in the others nothing."""
    if world().size == 1:
        return [value]
    return [unpack(each) for each in _exchange(pack(value), everywhere=False)]


def own_numbers(numbers: range) -> range:
    """Return which of pieces of work that follow each other are this process's: each `size`-th, always the same ones."""
    own = world()
    return range(numbers.start + (own.rank - numbers.start) % own.size, numbers.stop, own.size)


def batches_of(numbers: range, count: int, batch_size: int) -> list[int]:
    """Return which of so many images are in the batches with these numbers, cut as one process cuts them."""
    return [image for number in numbers for image in range(number * batch_size, min(count, (number + 1) * batch_size))]


def gather_in_order(results: Sequence[T]) -> list[T]:
    """Return in all processes the results of pieces of work from 0 on, of which each gives those of its `own_numbers`."""
    parts = gather(list(results))
    longest = max(map(len, parts))
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def from_first_bytes(packed: bytes) -> bytes:
    """Return in all processes the bytes that the first one has; what the others give is not looked at."""
    import torch.distributed as dist

    found = [packed]
    with losing_others():
        dist.broadcast_object_list(found, src=0, group=_control())
    return found[0]


def _exchange(packed: bytes, *, everywhere: bool) -> list[bytes]:
    """Return the bytes of every process by rank: in all, or in the first one, and then the others get nothing."""
    import torch.distributed as dist

    here = everywhere or world().is_first
    found: list[Any] = [None] * (world().size if here else 0)
    with losing_others():
        if everywhere:
            dist.all_gather_object(found, packed, group=_control())
        else:
            dist.gather_object(packed, found if here else None, dst=0, group=_control())
    return found


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_each() -> int:
    """Return how many CPU cores are for each of the processes on this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched().size > 1 else 1
    return max(1, usable_cores() // here)


@contextmanager
def losing_others() -> Iterator[None]:
    """Turn what gloo and NCCL raise when another process is gone into one clear line.

    Raises: ProcessLostError: then.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if world().size == 1 or not any(word in text for word in _LOST):
            raise
        raise ProcessLostError(
            f"process {world().rank} of {world().size} lost the others ({first_line(error)[:120]}): one of them ended, or its "
            "machine is gone; look for its own message. The same command goes on from the last saved state."
        ) from None


@functools.cache
def _control() -> Any:
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
