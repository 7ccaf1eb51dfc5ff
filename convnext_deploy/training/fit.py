"""The one training loop: plain training, distillation and quantization-aware training are losses given to it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convnext_deploy.config.choices import Autocast
from convnext_deploy.data.loaders import Batch, TrainingBatches
from convnext_deploy.errors import DeployError
from convnext_deploy.system.distributed import losing_others, total, world
from convnext_deploy.system.progress import Progress
from convnext_deploy.training.checkpoint_store import TrainingStore
from convnext_deploy.training.ema import ExponentialMovingAverage
from convnext_deploy.training.feature_distillation import PROJECTIONS
from convnext_deploy.training.optimizer import create_optimizer, learning_rate_at, scaled_learning_rate
from convnext_deploy.training.training_state import TrainingState

Objective = Callable[[nn.Module, Batch], Tensor]
"""Maps the network, as it is to be called, and a batch to a scalar loss, a mean over the images."""
Evaluation = Callable[[nn.Module], dict[str, float]]
"""Scores a network on the validation images: at least `validation_top1`."""
_HEAD = ("head.", "pre_logits.", "norm.", "norm_pre.", f"{PROJECTIONS}.")


def autocast_dtype(choice: Autocast, device: str) -> torch.dtype | None:
    """Return bfloat16 where it is faster than float32 (or what is asked for), else None.

    It is faster on GPUs from SM80 on, and on CPUs with native bfloat16 products: AVX512-BF16 or AMX. On other CPUs bfloat16
    is emulated and slower.

    Raises: DeployError: if float16 is asked for on a CPU.
    """
    is_cuda = torch.device(device).type == "cuda"
    if choice == "bf16":
        return torch.bfloat16
    if choice == "fp16":
        if not is_cuda:
            raise DeployError('autocast = "fp16" needs a GPU; on a CPU use "auto", "bf16" or "off".')
        return torch.float16
    if choice == "off":
        return None
    if is_cuda:
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else None
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else None


def fit(
    model: nn.Module,
    batches: TrainingBatches,
    objective: Objective,
    *,
    description: str,
    epochs: int,
    base_learning_rate: float,
    warmup_epochs: float,
    final_learning_rate_ratio: float,
    weight_decay: float,
    autocast: torch.dtype | None,
    seed: int,
    progress: Progress,
    layer_decay: float = 1.0,
    gradient_clip_norm: float | None = None,
    accumulation_steps: int = 1,
    ema_decay: float = 0.0,
    head_only_epochs: float = 0.0,
    evaluate: Evaluation | None = None,
    store: TrainingStore | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place and leave it in evaluation mode, with the averaged weights if there is an average.

    Where there are several processes, each calls this with the same model and its own part of the batches; gradients and losses
    are averaged over all, and every one ends with the same weights.

    Args:
        model: on the device of `batches`.
        batches: its batch size scales `base_learning_rate`, which is given for batch 4096.
        objective: the loss; it runs under autocast.
        description: what the progress display shows.
        epochs: passes over `batches`.
        base_learning_rate: see `scaled_learning_rate`.
        warmup_epochs: length of the linear warm-up, at most half of the training.
        final_learning_rate_ratio: last learning rate over the peak.
        weight_decay: see `create_optimizer`.
        autocast: dtype of the forward pass, None for float32; gradients of float16 are scaled.
        seed: of stochastic depth and dropout; the global random state is left as it was.
        progress: where to report.
        layer_decay: see `layer_scales`.
        gradient_clip_norm: largest L2 norm of all gradients together, or None.
        accumulation_steps: parts into which a batch is cut; the step is taken with the gradient of all of them.
        ema_decay: see `ExponentialMovingAverage`; 0: no average.
        head_only_epochs: at first only the last norm and the head are trained.
        evaluate: called after every epoch, and once more for the average, in all processes.
        store: where the state is kept; a training that it holds goes on where it was.

    Returns: per epoch the mean training loss, the last learning rate, images per second, and what `evaluate` returned.

    Raises:
        DeployError: when the loss is not finite, with the step and the learning rate.
        ProcessLostError: when another process is gone.
    """
    peak = scaled_learning_rate(base_learning_rate, batches.batch_size)
    optimizer = create_optimizer(model, peak, weight_decay, layer_decay)
    total_steps = epochs * len(batches)
    warmup_steps = min(round(warmup_epochs * len(batches)), total_steps // 2)
    head_only_steps = round(head_only_epochs * len(batches))
    body = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(_HEAD)]
    trained = [p for p in model.parameters() if p.requires_grad]
    is_cuda = torch.device(batches.device).type == "cuda"
    average = ExponentialMovingAverage(model, ema_decay) if ema_decay else None
    scaler = torch.amp.GradScaler("cuda", enabled=autocast == torch.float16)
    at = TrainingState(model, optimizer, average, scaler, batches.device)

    def step_on(network: nn.Module, batch: Batch, rate: float) -> tuple[float, bool]:
        """Take one step, and return the loss and whether the state should be saved: the same in all processes."""
        optimizer.zero_grad(set_to_none=True)
        value, parts = 0.0, list(batch.chunk(accumulation_steps))
        for part in parts:
            with _keeping_gradients(network) if part is not parts[-1] else nullcontext():
                with torch.autocast(batch.images.device.type, dtype=autocast, enabled=autocast is not None):
                    loss = objective(network, part) * (len(part) / len(batch))
                is_due = world().is_first and store is not None and store.is_due()
                mean, due = total([loss.item() / world().size, float(is_due)])
                value += mean
                if not math.isfinite(value):
                    raise DeployError(
                        f"{description}: the loss is {value} at step {at.step} (learning rate {rate:.2e}); "
                        'lower base_learning_rate, lengthen warmup_epochs, set gradient_clip_norm or autocast = "off".'
                    )
                scaler.scale(loss).backward()
        if gradient_clip_norm is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, gradient_clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update(at.step)
        return value, bool(due)

    with (
        torch.random.fork_rng([batches.device] if is_cuda else []),
        _trainable(body),
        losing_others(),
        ExitStack() as stack,
    ):
        at.seed(seed)
        if at.restore(store.load() if store is not None else None):
            progress.say(f"{description}: goes on at step {at.step} of {total_steps}")
        task = stack.enter_context(
            progress.task(description, total_steps * batches.batch_size, "images", done=at.step * batches.batch_size)
        )
        model.train()
        network: nn.Module | None = None
        while at.step < total_steps:
            epoch, first = divmod(at.step, len(batches))
            started = time.perf_counter()
            for batch in batches.epoch(epoch, first):
                rate = learning_rate_at(at.step, total_steps, warmup_steps, peak, final_learning_rate_ratio)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["lr_scale"]
                if network is None or at.step == head_only_steps:
                    for parameter in body:
                        parameter.requires_grad_(at.step >= head_only_steps)
                    del network  # its hooks on the gradients go with it, before there are new ones
                    network = _shared(model)
                loss, is_due = step_on(network, batch, rate)
                at.sums["loss"] += loss
                at.step += 1
                task.advance(batches.batch_size, f"epoch {epoch + 1}/{epochs} loss {loss:.3f}")
                if store is not None and is_due and at.step % len(batches):
                    at.sums["seconds"] += time.perf_counter() - started
                    started = time.perf_counter()
                    store.save(at.snapshot())
            at.sums["seconds"] += time.perf_counter() - started
            row = {
                "epoch": epoch + 1,
                "train_loss": at.sums["loss"] / len(batches),
                "learning_rate": rate,
                "images_per_s": len(batches) * batches.batch_size / at.sums["seconds"],
            }
            if evaluate is not None:
                row |= evaluate(model)
                model.train()
                if average is not None:
                    row |= {f"ema_{name}": figure for name, figure in evaluate(average.network).items()}
            at.history.append(row)
            at.sums = {"loss": 0.0, "seconds": 0.0}
            if store is not None:
                _keep(store, at.history, model if average is None else average.network, averaged=average is not None)
                store.save(at.snapshot())
    if average is not None:
        model.load_state_dict(average.network.state_dict())
    model.eval()
    return at.history


def _shared(model: nn.Module) -> nn.Module:
    """Return the network as it is to be called, so that gradients are averaged over the processes while they are computed."""
    if world().size == 1:
        return model
    device = next(model.parameters()).device
    # depthwise weights have a dimension of 1, whose stride autograd and DDP write differently; it costs a small copy
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
    )


def _keeping_gradients(network: nn.Module) -> AbstractContextManager[None]:
    """Leave the gradients of a part of a batch where they are until those of the last part are there too."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def _keep(store: TrainingStore, history: list[dict[str, float]], network: nn.Module, *, averaged: bool) -> None:
    """Write the history, and the weights if no earlier epoch was better."""
    store.save_history(history)
    name = "ema_validation_top1" if averaged else "validation_top1"
    figures = [row[name] for row in history if name in row]
    if figures and figures[-1] >= max(figures):
        weights = network.state_dict()
        store.save_best({key: tensor for key, tensor in weights.items() if not key.startswith(f"{PROJECTIONS}.")})


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Leave parameters trainable, however the block ends."""
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
