"""PyTorch's global random generator, of which a process has one: weights are drawn from it, stochastic depth and dropout."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 1.0
"""How long nothing is said of waiting."""
_TAKEN = threading.RLock()


@contextmanager
def forked_random(
    device: str = "cpu", seed: int | None = None, say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Have the generator alone within the block, and leave it as it was.

    Other threads that ask for it so wait: trainings that took turns with it would give what no seed gives again.

    Args:
        device: whose generator is left as it was, besides that of the CPU.
        seed: what it begins with; None: with what there is.
        say: told when another thread has it for long, because it trains.
    """
    import torch

    if not _TAKEN.acquire(timeout=PATIENCE_S):
        say("another thread of this process is training; this one waits for it, so that each does what its seed says")
        _TAKEN.acquire()
    try:
        with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        _TAKEN.release()
