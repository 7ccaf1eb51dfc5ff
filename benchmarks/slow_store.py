"""How long processes that train together wait for a store with latency and failures: the package's loader, a store that sleeps.

    torchrun --nproc-per-node 2 benchmarks/slow_store.py [--latency-ms 20] [--failures 0.01] [--workers 4] [--out FILE.json]

Each process loads its part of every batch with its own workers. Reading an image takes the latency; a share of the reads fails and
is asked for again after a second. A step takes `--step-ms`, and no process begins the next before all have done it, as with
gradients that are averaged. The idle time is what of a step was spent waiting for images; beside it stands what the formula of
`recipes/how-to/several-gpus.md` expects.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.workers import Loader
from convnext_deploy.system.distributed import gather, total, world

_RETRY_S = 1.0
_WARM_UP = 10  # steps that do not count: processes start, and batches are made ahead


@dataclass(frozen=True)
class SlowItems:
    """Images that take `latency_s` to read, of which a share fails the first time."""

    latency_s: float
    failures: float
    shape: tuple[int, int, int] = (32, 32, 3)

    def load(self, index: int, epoch: int) -> NDArray[np.uint8]:
        """Wait as a read does."""
        rng = np.random.default_rng((epoch, index))
        time.sleep(self.latency_s)
        if rng.uniform() < self.failures:
            time.sleep(_RETRY_S + self.latency_s)
        return np.full(self.shape, index % 256, np.uint8)

    def name(self, index: int) -> str:
        """Return its number."""
        return f"image {index}"


def expected_idle(batch: int, latency_s: float, failures: float, workers: int, step_s: float) -> float:
    """Return the share of the time that a process waits, with workers that never stop: 1 - images made over images wanted."""
    per_image = latency_s + failures * (_RETRY_S + latency_s)
    return max(0.0, 1.0 - workers / per_image * step_s / batch)


def main() -> None:
    """Print the idle time of all processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--failures", type=float, default=0.01)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16, help="of each process")
    parser.add_argument("--step-ms", type=float, default=150.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    latency, step_s, own = arguments.latency_ms / 1000, arguments.step_ms / 1000, world()
    rows = np.arange(arguments.steps * arguments.batch_size * own.size).reshape(arguments.steps, own.size, -1)
    loader = Loader(SlowItems(latency, arguments.failures), arguments.batch_size, arguments.workers)
    waited, started = 0.0, time.perf_counter()
    batches = loader.load([chunk[own.rank] for chunk in rows])
    for step in range(arguments.steps):
        if step == _WARM_UP:
            waited, started = 0.0, time.perf_counter()
        asked = time.perf_counter()
        pixels, errors = next(batches)
        assert len(pixels) == arguments.batch_size
        assert not errors
        total([0.0])  # all have their part
        waited += time.perf_counter() - asked
        time.sleep(step_s)
    seconds = time.perf_counter() - started
    loader.close()
    shares = gather(waited / seconds)
    expected = expected_idle(arguments.batch_size, latency, arguments.failures, arguments.workers, step_s)
    if own.is_first:
        line = f"{own.size} processes, latency {arguments.latency_ms:g} ms, {100 * arguments.failures:g} % failures"
        print(
            f"{line}, {arguments.workers} workers each: idle {100 * max(shares):.1f} %, by the formula {100 * expected:.1f} %"
        )
        if arguments.out is not None:
            settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
            record = {"settings": settings, "processes": own.size, "idle": shares, "expected": expected}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
