"""The one training loop: plain training, distillation and quantization-aware training are losses given to it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from convnext_deploy.data.loaders import Batch, TrainingBatches
from convnext_deploy.errors import DataError, LoaderError, OutputError, first_line
from convnext_deploy.metrics.epochs import best_epoch
from convnext_deploy.system.distributed import losing_others, total, world
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.interruption import Interrupted, postponed
from convnext_deploy.system.progress import Task
from convnext_deploy.system.random_state import forked_random
from convnext_deploy.training.checkpoint_store import LAST, TrainingStore
from convnext_deploy.training.feature_distillation import PROJECTIONS
from convnext_deploy.training.optimizer import MovingAverage, create_optimizer, scaled_learning_rate
from convnext_deploy.training.parallel import shared
from convnext_deploy.training.schedule import Schedule
from convnext_deploy.training.scoring import NOT_SCORED, EpochLines, Scoring, describe_choice
from convnext_deploy.training.step import Loop, Objective, look, save_before_end, take_step
from convnext_deploy.training.training_state import TrainingState

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
        execution: its seed is that of stochastic depth and dropout; the global random state is left as it was. Of several
            threads one trains, and the others wait.
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
    with forked_random(batches.device, say=progress.say), _trainable(body), losing_others(), postponed() as signals:
        parts = body, list(trained.values())
        loop = Loop(batches, objective, schedule, description, scoring, store, state, *parts, signals)
        state.seed(execution.seed)
        if _goes_on(state, store):
            progress.say(f"{description}: goes on at step {state.step} of {total_steps}")
        lines = EpochLines(progress, description, schedule.epochs, state.step / total_steps)
        images = batches.batch_size
        with (
            _written(store),
            progress.task(description, total_steps * images, "images", done=state.step * images) as task,
        ):
            model.train()
            while not _is_over(loop):
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


@contextmanager
def _written(store: TrainingStore | None) -> Iterator[None]:
    """Leave the block when all states are written. Raises: OutputError: if the block does not, and one could not be."""
    try:
        yield
    except BaseException:
        if store is not None:
            with suppress(Exception):
                store.finish()
        raise
    if store is not None:
        store.finish()


def _is_over(loop: Loop) -> bool:
    """Whether all steps are done, or so many epochs brought nothing better as `Schedule.patience` says."""
    state, patience = loop.state, loop.schedule.patience
    if state.is_before_evaluation(len(loop.batches)):
        return False
    best = best_epoch(state.history, "selection")
    waited = 0 if best is None else len(state.history) - 1 - best
    return state.step >= loop.schedule.epochs * len(loop.batches) or (patience > 0 and waited >= patience)


def _first_state(model: nn.Module, batches: TrainingBatches, schedule: Schedule) -> TrainingState:
    peak = scaled_learning_rate(schedule.base_learning_rate, batches.batch_size)
    return TrainingState(
        model,
        create_optimizer(model, peak, schedule.weight_decay, schedule.layer_decay),
        MovingAverage(model, schedule.ema_decay) if schedule.ema_decay else None,
        torch.amp.GradScaler("cuda", enabled=schedule.autocast == torch.float16),
        batches.device,
    )


def _train_epoch(loop: Loop, task: Task) -> None:
    """Take the steps of an epoch that are left."""
    state, steps, store = loop.state, len(loop.batches), loop.store
    head_only_steps = round(loop.schedule.head_only_epochs * steps)
    epoch, first = divmod(state.step, steps)
    batches = loop.batches.epoch(epoch, first)
    state.meter.forget(state.own_losses)
    loop.read_at = state.step
    loop.lines.begin(loop.lines.steps)
    started = time.perf_counter()
    while (batch := _next(loop, batches)) is not None:
        if loop.network is None or state.step == head_only_steps:
            for parameter in loop.body:
                parameter.requires_grad_(state.step >= head_only_steps)
            loop.network = None  # its hooks on the gradients go with it, before there are new ones
            loop.network = shared(state.model)
        take_step(loop, loop.network, batch)
        is_due, is_last = look(loop)
        now = time.perf_counter()
        state.sums["seconds"] += now - started
        started = now
        if is_last:
            save_before_end(loop)
            raise Interrupted(loop.signals.request())
        task.advance(loop.batches.batch_size, f"epoch {epoch + 1}/{loop.schedule.epochs} loss {loop.loss:.3f}")
        if store is not None and is_due and state.step % steps:
            store.save_meanwhile(state.snapshot())


def _next(loop: Loop, batches: Iterator[Batch]) -> Batch | None:
    """Return the next batch, or None after the last one."""
    with _between_steps(loop):
        return next(batches, None)


@contextmanager
def _between_steps(loop: Loop) -> Iterator[None]:
    """Save the state when a signal or an image ends the block; of several processes all would have to, and wait for the block."""
    if world().size > 1:
        yield
        return
    try:
        with loop.signals.raising():
            yield
    except (Interrupted, LoaderError, DataError):
        save_before_end(loop)
        raise


def _end_epoch(loop: Loop) -> None:
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
    state.sums, state.own_losses = {"loss": 0.0, "seconds": 0.0}, 0.0
    result = state.model if state.average is None else state.average.module
    chooses = loop.scoring.choose is not None
    is_best = best_epoch(state.history, "selection" if chooses else "validation") == len(state.history) - 1
    if is_best and chooses:
        state.best = {name: tensor.detach().cpu().clone() for name, tensor in result.state_dict().items()}
    if store is not None:
        store.save_history(state.history)
        saves = total([float(world().is_first and (store.is_cheap() or _is_over(loop)))])[0] > 0
        best = None
        if is_best:
            weights = result.state_dict()
            best = {key: tensor for key, tensor in weights.items() if not key.startswith(f"{PROJECTIONS}.")}
        store.save_meanwhile(state.snapshot() if saves else None, best)


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Leave parameters trainable, however the block ends."""
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
