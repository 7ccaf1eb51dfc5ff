"""The processes that train one network together, as `torchrun` starts them; one process needs nothing of it.

Every process runs the same program. The first one writes, decides and speaks; the others follow it through the collectives below,
which run over gloo, on the CPU, beside the group that averages gradients.
"""

import atexit
import datetime as dt
import functools
import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from convnext_deploy.errors import DeployError, ProcessLostError, first_line

T = TypeVar("T")
# The others wait while the first process scores an artifact or exports one, which takes as long as it takes.
_PATIENCE = dt.timedelta(hours=24)
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
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        return World()
    return World(rank, size, local) if size > 1 else World()


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
    import torch.distributed as dist

    values: list[Any] = [None] * world().size
    with losing_others():
        dist.all_gather_object(values, pack(value), group=_control())
    return [unpack(each) for each in values]


def announce(value: T) -> T:
    """Give a value of the first process to the others, which `receive` it, and return it."""
    _broadcast([value, None])
    return value


def receive() -> Any:
    """Return what the first process announces.

    Raises: DeployError: if that is an error.
    """
    value, error = _broadcast([None, None])
    if error is not None:
        raise error
    return value


def from_first(make: Callable[[], T]) -> T:
    """Let the first process alone make a value, and return it in all.

    Raises: DeployError: in all of them what `make` raised in the first.
    """
    if not world().is_first:
        made: T = receive()
        return made
    try:
        value = make()
    except DeployError as error:
        _broadcast([None, error])
        raise
    return announce(value)


def _broadcast(found: list[Any]) -> list[Any]:
    if world().size > 1:
        import torch.distributed as dist

        packed = [pack(found) if world().is_first else b""]
        with losing_others():
            dist.broadcast_object_list(packed, src=0, group=_control())
        if not world().is_first:
            found = unpack(packed[0])
    return found


def pack(value: Any) -> bytes:
    """Pickle a value, its tensors without their device: each process has a GPU of its own, and would open that of the sender."""
    import torch

    class Pickler(pickle.Pickler):
        def reducer_override(self, part: Any) -> Any:
            if not isinstance(part, torch.Tensor) or part.device.type == "cpu":
                return NotImplemented
            is_parameter = isinstance(part, torch.nn.Parameter)
            return _on_own_device, (part.detach().cpu(), part.device.type, part.requires_grad, is_parameter)

    with io.BytesIO() as file:
        Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()


def unpack(packed: bytes) -> Any:
    """Return what was packed, its tensors on this process's own device of the sender's kind."""
    return pickle.loads(packed)


def _on_own_device(tensor: Any, kind: str, requires_grad: bool, is_parameter: bool) -> Any:
    import torch

    found = tensor.to(kind)
    return torch.nn.Parameter(found, requires_grad) if is_parameter else found.requires_grad_(requires_grad)


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
