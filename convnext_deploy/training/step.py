"""One step of a training, in which the host does not wait for the device, and what is looked at between two steps."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from convnext_deploy.data.loaders import Batch, TrainingBatches
from convnext_deploy.errors import DeployError
from convnext_deploy.system.distributed import gather, total, world
from convnext_deploy.system.interruption import Postponement
from convnext_deploy.training.checkpoint_store import TrainingStore
from convnext_deploy.training.loss_meter import LogLines
from convnext_deploy.training.parallel import keeping_gradients
from convnext_deploy.training.schedule import Schedule, autocasting
from convnext_deploy.training.scoring import Scoring
from convnext_deploy.training.training_state import TrainingState

Objective = Callable[[nn.Module, Batch], Tensor]
"""Maps the network, as it is to be called, and a batch to a scalar loss, a mean over the images."""


@dataclass
class Loop:
    """What every step of a training needs.

    `state` is where it stands, `body` what waits while the head is trained alone, `network` the model as it is to be called; `loss`
    the last one that was looked at, and `read_at` the step before which that was.
    """

    batches: TrainingBatches
    objective: Objective
    schedule: Schedule
    description: str
    scoring: Scoring
    store: TrainingStore | None
    state: TrainingState
    body: list[nn.Parameter]
    trained: list[nn.Parameter]
    signals: Postponement
    network: nn.Module | None = None
    lines: LogLines = field(default_factory=LogLines)
    loss: float = math.nan
    read_at: int = 0

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, before the factors of the layers."""
        return self.schedule.rate_at(step, len(self.batches), self.batches.batch_size)


def save_before_end(loop: Loop) -> None:
    """Save the state before the training ends. Raises: DeployError: if it is not worth it, because the loss is not finite."""
    state = loop.state
    if loop.store is not None:
        read_losses(loop)
        loop.store.save(state.snapshot())
        loop.signals.saved = f"{loop.description} is saved at step {state.step}"


def take_step(loop: Loop, network: nn.Module, batch: Batch) -> None:
    """Take one step, without waiting for the device."""
    state, optimizer, scaler = loop.state, loop.state.optimizer, loop.state.scaler
    rate = loop.rate_at(state.step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.zero_grad(set_to_none=True)
    parts = list(batch.chunk(loop.schedule.accumulation_steps))
    for part in parts:
        with keeping_gradients(network) if part is not parts[-1] else nullcontext():
            with autocasting(loop.schedule.autocast, part.images.device.type):
                loss = loop.objective(network, part) * (len(part) / len(batch))
            state.meter.add(loss)
            scaler.scale(loss).backward()
    state.meter.end_step()
    if loop.schedule.gradient_clip_norm is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(loop.trained, loop.schedule.gradient_clip_norm)
    scaler.step(optimizer)
    scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.step += 1


def look(loop: Loop) -> tuple[bool, bool]:
    """Return whether the state should be saved, and whether to end: the same in all processes, which agree at log lines alone.

    Raises: DeployError: if a loss since the last look is not finite.
    """
    is_alone, store = world().size == 1, loop.store
    is_line = loop.lines.count() or loop.state.step % len(loop.batches) == 0
    if not is_line and not is_alone:
        return False, False
    due = world().is_first and store is not None and store.is_due()
    ending = loop.signals.requested
    if is_line or due or ending:
        read_losses(loop)
    if is_line:
        steps = loop.lines.suggest() if world().is_first else 0
        due_somewhere, ending_somewhere, steps_of_all = total([float(due), float(ending), float(steps)])
        due, ending = due_somewhere > 0, ending_somewhere > 0
        loop.lines.begin(int(steps_of_all))
    return due, ending


def read_losses(loop: Loop) -> None:
    """Take down what the losses have been; of several processes all must do so together.

    Raises: DeployError: if one is not finite, with the first step where it was so.
    """
    state, size = loop.state, world().size
    since, found = loop.read_at, state.meter.read()
    loop.read_at = state.step
    state.own_losses = found.total
    state.sums["loss"], loop.loss, are_bad = total([found.total / size, found.last / size, found.bad_after is not None])
    if are_bad:
        # of processes with the same first step the one that knows a value that is not finite says which
        step, loss = min((since + each.bad_after, each.bad) for each in gather(found) if each.bad_after is not None)
        raise DeployError(
            f"{loop.description}: the loss is {loss} at step {step} (learning rate {loop.rate_at(step):.2e}); "
            'lower base_learning_rate, lengthen warmup_epochs, set gradient_clip_norm or autocast = "off".'
        )
