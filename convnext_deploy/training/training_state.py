"""Everything that a training is made of at one step: what is saved, and what a resumed training starts from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from convnext_deploy.errors import OutputError
from convnext_deploy.system.distributed import gather, world

_RANK_STRIDE = 1_000_003  # between the seeds of processes, which neighbouring seeds of users do not reach


@dataclass
class TrainingState:
    """A training between two steps. `step` counts from 0; `sums` are those of the epoch so far, `history` has a row per epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    scaler: torch.amp.GradScaler
    device: str
    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "seconds": 0.0})
    history: list[dict[str, float]] = field(default_factory=list)

    def is_before_evaluation(self, steps: int) -> bool:
        """Whether an epoch of so many steps has ended and its figures have not been written down."""
        return self.step % steps == 0 and self.sums["seconds"] > 0

    def seed(self, seed: int) -> None:
        """Seed stochastic depth and dropout, for each process its own."""
        torch.manual_seed(seed + _RANK_STRIDE * world().rank)

    def snapshot(self) -> dict[str, Any]:
        """Return what `restore` takes, as tensors, numbers and texts. All processes must ask for it together."""
        is_cuda = torch.device(self.device).type == "cuda"
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device) if is_cuda else None}
        if torch.device(self.device).type == "mps":
            random["mps"] = torch.mps.get_rng_state()
        return {
            "step": self.step,
            "sums": dict(self.sums),
            "history": self.history,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": gather(random),
        }

    def restore(self, found: dict[str, Any] | None) -> bool:
        """Take the place of a snapshot, and return whether there was one.

        With another number of processes than in the snapshot the random state stays as it was seeded: stochastic depth then
        differs from that of an uninterrupted run, and nothing else does.

        Raises: OutputError: if the processes found different snapshots.
        """
        steps = gather(None if found is None else int(found["step"]))
        if len(set(steps)) > 1:
            raise OutputError(
                f"the processes found trainings at different steps ({sorted({str(step) for step in steps})}); the output folder "
                "must be one folder that all machines see."
            )
        if found is None:
            return False
        self.model.load_state_dict(found["model"])
        if self.average is not None:
            self.average.load_state_dict(found["average"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.scaler.load_state_dict(found["scaler"])
        if len(found["random"]) == world().size:
            random = found["random"][world().rank]
            torch.set_rng_state(random["cpu"])
            if random["cuda"] is not None and torch.device(self.device).type == "cuda":
                torch.cuda.set_rng_state(random["cuda"], self.device)
            if "mps" in random and torch.device(self.device).type == "mps":
                torch.mps.set_rng_state(random["mps"])
        self.step, self.sums, self.history = found["step"], found["sums"], found["history"]
        return True
