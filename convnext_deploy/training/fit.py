"""The one training loop: plain training, distillation and quantization-aware training are losses given to it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext_deploy.data.loaders import Batch, TrainingBatches
from convnext_deploy.errors import DataError, DeployError, LoaderError, OutputError, first_line
from convnext_deploy.metrics.epochs import best_epoch
from convnext_deploy.system.distributed import losing_others, total, world
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.interruption import Interrupted, Postponement, postponed
from convnext_deploy.system.progress import Task
from convnext_deploy.training.checkpoint_store import LAST, TrainingStore
from convnext_deploy.training.feature_distillation import PROJECTIONS
from convnext_deploy.training.optimizer import create_optimizer, moving_average, scaled_learning_rate
from convnext_deploy.training.parallel import keeping_gradients, shared
from convnext_deploy.training.schedule import Schedule
from convnext_deploy.training.scoring import NOT_SCORED, EpochLines, Scoring, describe_choice
from convnext_deploy.training.training_state import TrainingState

Objective = Callable[[nn.Module, Batch], Tensor]
"""Maps the network, as it is to be called, and a batch to a scalar loss, a mean over the images."""
_HEAD = ("head.", "pre_logits.", "norm.", "norm_pre.", f"{PROJECTIONS}.")


def fit(
    model: nn.Module,
    batches: TrainingBatches,
    objective: Objective,
    schedule: Schedule,
    execution: Execution,
    *,
    description: str,
    scoring: Scoring = NOT_SCORED,
    store: TrainingStore | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place and leave it in evaluation mode, with the averaged weights if there is an average.

    The last weights are the result; with patience those after the best epoch, see `Schedule`.

    Where there are several processes, each calls this with the same model and its own part of the batches; gradients and losses
    are averaged over all, and every one ends with the same weights.

    A signal that asks this process to end, or in one process an image that cannot be loaded, ends the training between two steps,
    after its state was saved.

    Args:
        model: on the device of `batches`.
        batches: of all epochs.
        objective: the loss; it runs under autocast.
        schedule: how the network learns.
        execution: its seed is that of stochastic depth and dropout; the global random state is left as it was.
        description: what the progress display shows.
        scoring: by what the network is scored after an epoch, and its average too, in all processes.
        store: where the state is kept; a training that it holds goes on where it was.

    Returns: per epoch the mean training loss, the last learning rate, images per second, and what `scoring` gave.

    Raises:
        DeployError: when the loss is not finite, with the step and the learning rate.
        ProcessLostError: when another process is gone.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    body = [parameter for name, parameter in trained.items() if not name.startswith(_HEAD)]
    state, progress = _first_state(model, batches, schedule), execution.progress
    total_steps = schedule.epochs * len(batches)
    is_cuda = torch.device(batches.device).type == "cuda"
    with (
        torch.random.fork_rng([batches.device] if is_cuda else []),
        _trainable(body),
        losing_others(),
        postponed() as signals,
    ):
        parts = body, list(trained.values())
        loop = _Loop(batches, objective, schedule, description, scoring, store, state, *parts, signals)
        state.seed(execution.seed)
        if _goes_on(state, store):
            progress.say(f"{description}: goes on at step {state.step} of {total_steps}")
        lines = EpochLines(progress, description, schedule.epochs, state.step / total_steps)
        images = batches.batch_size
        with progress.task(description, total_steps * images, "images", done=state.step * images) as task:
            model.train()
            while not _is_over(loop, total_steps):
                if not state.is_before_evaluation(len(batches)):
                    _train_epoch(loop, task)
                _end_epoch(loop)
                if scoring.validate is not None:
                    lines.say(state.history)
    if state.best is not None:
        model.load_state_dict(state.best)
        best = best_epoch(state.history, "selection")
        progress.say(f"{description}: {describe_choice(state.history, best or 0)}")
    elif state.average is not None:
        model.load_state_dict(state.average.module.state_dict())
    model.eval()
    return state.history


def _goes_on(state: TrainingState, store: TrainingStore | None) -> bool:
    """Take the state that is kept, and return whether there is one. Raises: OutputError: if it is none for this training."""
    if store is None:
        return state.restore(None)
    try:
        return state.restore(store.load())
    except ValueError as error:
        raise OutputError(
            f"{store.folder / LAST} is no state that this training can go on from ({first_line(error)}); move it away, and the "
            "training begins anew."
        ) from None


@dataclass
class _Loop:
    """What every step of a training needs.

    `state` is where it stands, `body` what waits while the head is trained alone, `network` the model as it is to be called.
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

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, before the factors of the layers."""
        return self.schedule.rate_at(step, len(self.batches), self.batches.batch_size)


def _is_over(loop: _Loop, total_steps: int) -> bool:
    """Whether all steps are done, or so many epochs brought nothing better as `Schedule.patience` says."""
    state, patience = loop.state, loop.schedule.patience
    if state.is_before_evaluation(len(loop.batches)):
        return False
    best = best_epoch(state.history, "selection")
    waited = 0 if best is None else len(state.history) - 1 - best
    return state.step >= total_steps or (patience > 0 and waited >= patience)


def _first_state(model: nn.Module, batches: TrainingBatches, schedule: Schedule) -> TrainingState:
    peak = scaled_learning_rate(schedule.base_learning_rate, batches.batch_size)
    return TrainingState(
        model,
        create_optimizer(model, peak, schedule.weight_decay, schedule.layer_decay),
        moving_average(model, schedule.ema_decay) if schedule.ema_decay else None,
        torch.amp.GradScaler("cuda", enabled=schedule.autocast == torch.float16),
        batches.device,
    )


def _train_epoch(loop: _Loop, task: Task) -> None:
    """Take the steps of an epoch that are left."""
    state, steps, store = loop.state, len(loop.batches), loop.store
    head_only_steps = round(loop.schedule.head_only_epochs * steps)
    epoch, first = divmod(state.step, steps)
    batches = loop.batches.epoch(epoch, first)
    started = time.perf_counter()
    while (batch := _next(loop, batches)) is not None:
        if loop.network is None or state.step == head_only_steps:
            for parameter in loop.body:
                parameter.requires_grad_(state.step >= head_only_steps)
            loop.network = None  # its hooks on the gradients go with it, before there are new ones
            loop.network = shared(state.model)
        loss, is_due, is_last = _step(loop, loop.network, batch)
        now = time.perf_counter()
        state.sums["seconds"] += now - started
        started = now
        if is_last:
            _save(loop)
            raise Interrupted(loop.signals.request())
        task.advance(loop.batches.batch_size, f"epoch {epoch + 1}/{loop.schedule.epochs} loss {loss:.3f}")
        if store is not None and is_due and state.step % steps:
            store.save(state.snapshot())


def _next(loop: _Loop, batches: Iterator[Batch]) -> Batch | None:
    """Return the next batch, or None after the last one."""
    with _between_steps(loop):
        return next(batches, None)


@contextmanager
def _between_steps(loop: _Loop) -> Iterator[None]:
    """Save the state when a signal or an image ends the block; of several processes all would have to, and wait for the block."""
    if world().size > 1:
        yield
        return
    try:
        with loop.signals.raising():
            yield
    except (Interrupted, LoaderError, DataError):
        _save(loop)
        raise


def _save(loop: _Loop) -> None:
    state = loop.state
    if loop.store is not None:
        loop.store.save(state.snapshot())
        loop.signals.saved = f"{loop.description} is saved at step {state.step}"


def _step(loop: _Loop, network: nn.Module, batch: Batch) -> tuple[float, bool, bool]:
    """Take one step; return the loss, whether the state should be saved, and whether to end: the same in all processes."""
    state, optimizer, scaler = loop.state, loop.state.optimizer, loop.state.scaler
    rate = loop.rate_at(state.step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.zero_grad(set_to_none=True)
    loss, is_due, is_last = 0.0, False, False
    parts = list(batch.chunk(loop.schedule.accumulation_steps))
    for part in parts:
        with keeping_gradients(network) if part is not parts[-1] else nullcontext():
            of_part, is_due, is_last = _backward(loop, network, part, len(part) / len(batch))
            loss += of_part
    if loop.schedule.gradient_clip_norm is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(loop.trained, loop.schedule.gradient_clip_norm)
    scaler.step(optimizer)
    scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.sums["loss"] += loss
    state.step += 1
    return loss, is_due, is_last


def _backward(loop: _Loop, network: nn.Module, part: Batch, share: float) -> tuple[float, bool, bool]:
    """Add the gradients of a part of a batch; return its `share` of the loss, and what `_step` returns after that."""
    dtype, store = loop.schedule.autocast, loop.store
    with torch.autocast(part.images.device.type, dtype=dtype, enabled=dtype is not None):
        loss = loop.objective(network, part) * share
    is_due = world().is_first and store is not None and store.is_due()
    mean, due, ending = total([loss.item() / world().size, float(is_due), float(loop.signals.requested)])
    if not math.isfinite(mean):
        step = loop.state.step
        raise DeployError(
            f"{loop.description}: the loss is {mean} at step {step} (learning rate {loop.rate_at(step):.2e}); "
            'lower base_learning_rate, lengthen warmup_epochs, set gradient_clip_norm or autocast = "off".'
        )
    loop.state.scaler.scale(loss).backward()
    return mean, bool(due), bool(ending)


def _end_epoch(loop: _Loop) -> None:
    """Evaluate, and write down what the epoch gave."""
    state, store, steps = loop.state, loop.store, len(loop.batches)
    row = {
        "epoch": state.step // steps,
        "train_loss": state.sums["loss"] / steps,
        "learning_rate": loop.rate_at(state.step - 1),
        "images_per_s": steps * loop.batches.batch_size / state.sums["seconds"],
    }
    with _between_steps(loop):
        number = len(state.history) + 1
        row |= loop.scoring.score(state.model, number, loop.schedule.epochs)
        state.model.train()
        if state.average is not None:
            averaged = loop.scoring.score(state.average.module, number, loop.schedule.epochs)
            row |= {f"ema_{name}": figure for name, figure in averaged.items()}
    state.history.append(row)
    state.sums = {"loss": 0.0, "seconds": 0.0}
    result = state.model if state.average is None else state.average.module
    chooses = loop.scoring.choose is not None
    is_best = best_epoch(state.history, "selection" if chooses else "validation") == len(state.history) - 1
    if is_best and chooses:
        state.best = {name: tensor.detach().cpu().clone() for name, tensor in result.state_dict().items()}
    if store is not None:
        store.save_history(state.history)
        if is_best:
            weights = result.state_dict()
            store.save_best({key: tensor for key, tensor in weights.items() if not key.startswith(f"{PROJECTIONS}.")})
        store.save(state.snapshot())


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Leave parameters trainable, however the block ends."""
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
