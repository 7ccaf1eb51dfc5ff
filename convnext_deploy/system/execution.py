"""How work is done on this machine, as one record that is made once and handed on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.system.cuda_driver import cuda_driver_error
from convnext_deploy.system.distributed import cores_of_each, launched
from convnext_deploy.system.progress import Progress, SilentProgress


@dataclass(frozen=True)
class Execution:
    """How work is done, never what is done.

    Attributes:
        device: where PyTorch runs, `cpu`, `cuda` or `mps`.
        workers: processes that decode images; 0: this one does.
        seed: of weights, crops and the choice of calibration images, >= 0.
        progress: where to report.
        cache_dir: keeps decoded small images and teachers' predictions for other runs too; None: the former stay in memory, the
            latter in the run's own folder.
    """

    device: str = "cpu"
    workers: int = 0
    seed: int = 0
    progress: Progress = field(default_factory=SilentProgress)
    cache_dir: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Send other processes all but the progress, which is shown here."""
        return Execution, (self.device, self.workers, self.seed, SilentProgress(), self.cache_dir)

    @property
    def exact_device(self) -> str:
        """Where networks are calibrated and compared, which takes float64: the device, but for Apple's, which has none."""
        return "cpu" if self.device == "mps" else self.device


def resolve_device(device: str) -> str:
    """Return `cpu`, `mps`, or `cuda`, which is then this process's own GPU, for one of those or `auto`.

    Raises: BackendUnavailableError: if a GPU was asked for and there is none, or more processes than GPUs.
    """
    if device == "mps":
        return _require_mps()
    missing = cuda_driver_error()
    if device == "cuda" and missing:
        raise BackendUnavailableError(f"--device cuda was asked for, but here is {missing}; use --device cpu.")
    found = ("cpu" if missing else "cuda") if device == "auto" else device
    if found == "cuda" and launched().size > 1:
        import torch

        own, count = launched().local_rank, torch.cuda.device_count()
        if own >= count:
            raise BackendUnavailableError(
                f"process {own + 1} of this machine has no GPU, there are {count}; start torchrun with --nproc-per-node {count}."
            )
        torch.cuda.set_device(own)
    return found


def _require_mps() -> str:
    import torch

    if launched().size > 1:
        raise BackendUnavailableError(
            "--device mps is one GPU, for one process; leave torchrun out, or use --device cpu."
        )
    if not torch.backends.mps.is_available():
        missing = "no GPU that Metal knows" if torch.backends.mps.is_built() else "a PyTorch without Apple's Metal"
        raise BackendUnavailableError(f"--device mps was asked for, but here is {missing}; use --device cpu.")
    return "mps"


def decoding_processes() -> int:
    """Return how many processes decode images on this machine where nobody said it: one per core, at most 8."""
    return min(8, cores_of_each())
