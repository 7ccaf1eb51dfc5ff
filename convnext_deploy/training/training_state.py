"""Everything that a training is made of at one step: what is saved, and what a resumed training starts from."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convnext_deploy.config.records import between
from convnext_deploy.errors import OutputError, first_line
from convnext_deploy.system.distributed import gather, world
from convnext_deploy.system.memory_faults import out_of_memory
from convnext_deploy.training.loss_meter import LossMeter

_RANK_STRIDE = 1_000_003  # between the seeds of processes, which neighbouring seeds of users do not reach


@dataclass(frozen=True)
class _Sums:
    loss: float
    seconds: float


@dataclass(frozen=True)
class _RandomState:
    cpu: Tensor
    cuda: Tensor | None
    mps: Tensor | None = None


@dataclass(frozen=True)
class _Snapshot:
    """The shape of what `snapshot` returns and a file gives back. Figures of epochs may be anything, such as NaN."""

    step: Annotated[int, between(0, 2**53)]
    sums: _Sums
    history: list[dict[str, float]]
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    random: list[_RandomState]
    best: dict[str, Tensor] | None = None
    losses: list[float] | None = None


@dataclass
class TrainingState:
    """A training between two steps. `step` counts from 0; `sums` are those of the epoch so far, `history` has a row per epoch.

    `best`: the weights after the best epoch, where that is to be the result; which it is `history` tells. `meter`: the losses of
    this process, `own_losses` their sum in the epoch when they were last read.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    scaler: torch.amp.GradScaler
    device: str
    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "seconds": 0.0})
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    own_losses: float = 0.0

    def __post_init__(self) -> None:
        """Measure nothing yet."""
        self.meter = LossMeter(self.device)

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
            "losses": gather(self.own_losses),
            "best": self.best,
        }

    def restore(self, found: dict[str, Any] | None) -> bool:
        """Take the place of a snapshot, and return whether there was one.

        With another number of processes than in the snapshot the random state stays as it was seeded: stochastic depth then
        differs from that of an uninterrupted run, and nothing else does.

        Raises:
            OutputError: if the processes found different snapshots.
            ValueError: if it is no snapshot, or one of another network or optimizer.
        """
        saved = None if found is None else _read(found)
        steps = gather(None if saved is None else saved.step)
        if len(set(steps)) > 1:
            raise OutputError(
                f"the processes found trainings at different steps ({sorted({str(step) for step in steps})}); the output folder "
                "must be one folder that all machines see."
            )
        if found is None or saved is None:
            return False
        try:
            self._take(saved)
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            if out_of_memory(error) is not None:
                raise  # which says nothing of the state
            raise ValueError(f"it does not fit the network or its optimizer: {first_line(error)}") from None
        self.step, self.sums, self.history = found["step"], found["sums"], found["history"]  # integers as integers
        return True

    def _take(self, saved: _Snapshot) -> None:
        self.model.load_state_dict(saved.model)
        if self.average is not None:
            self.average.load_state_dict(saved.average or {})
        self.optimizer.load_state_dict(saved.optimizer)
        self.scaler.load_state_dict(saved.scaler)
        self.best = saved.best
        own, losses = world(), saved.losses or []
        # sums of other parts of the batches add up to the same mean
        whole = saved.sums.loss * own.size if own.is_first else 0.0
        self.own_losses = losses[own.rank] if len(losses) == own.size else whole
        self.meter.forget(self.own_losses)
        if len(saved.random) == world().size:
            random = saved.random[world().rank]
            torch.set_rng_state(random.cpu)
            if random.cuda is not None and torch.device(self.device).type == "cuda":
                torch.cuda.set_rng_state(random.cuda, self.device)
            if random.mps is not None and torch.device(self.device).type == "mps":
                torch.mps.set_rng_state(random.mps)


def _read(found: dict[str, Any]) -> _Snapshot:
    """Return a state whose parts are what they should be. Raises: ValueError."""
    try:
        return msgspec.convert(found, _Snapshot)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}") from None
