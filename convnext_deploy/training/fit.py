"""The one training loop: plain training, distillation and quantization-aware training are losses given to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from convnext_deploy.data.loaders import TrainingBatches
from convnext_deploy.errors import DeployError
from convnext_deploy.progress import Progress
from convnext_deploy.training.optimizer import create_optimizer, learning_rate_at, scaled_learning_rate

Objective = Callable[[Tensor, Tensor], Tensor]
"""Maps images `(N, C, H, W)` and labels `(N,)` to a scalar loss."""


def autocast_dtype(choice: Literal["auto", "off", "bf16"], device: str) -> torch.dtype | None:
    """Return bfloat16 where it is faster than float32 (or asked for), else None.

    It is faster on GPUs from SM80 on, and on CPUs with native bfloat16 products: AVX512-BF16 or AMX. On other CPUs bfloat16
    is emulated and slower.
    """
    if choice == "bf16":
        return torch.bfloat16
    if choice == "off":
        return None
    if torch.device(device).type == "cuda":
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
) -> list[dict[str, float]]:
    """Train `model` in place and leave it in evaluation mode.

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
        autocast: dtype of the forward pass, None for float32.
        seed: of stochastic depth; the global random state is left as it was.
        progress: where to report.

    Returns: per epoch the mean training loss and the last learning rate.
    Raises: DeployError: when the loss is not finite, with the step and the learning rate.
    """
    peak = scaled_learning_rate(base_learning_rate, batches.batch_size)
    optimizer = create_optimizer(model, peak, weight_decay)
    total_steps = epochs * len(batches)
    warmup_steps = min(round(warmup_epochs * len(batches)), total_steps // 2)
    history: list[dict[str, float]] = []
    step = 0
    devices = [batches.device] if torch.device(batches.device).type == "cuda" else []
    with torch.random.fork_rng(devices), progress.task(description, total_steps) as task:
        torch.manual_seed(seed)
        model.train()
        for epoch in range(epochs):
            total_loss = 0.0
            for images, labels in batches.epoch(epoch):
                rate = learning_rate_at(step, total_steps, warmup_steps, peak, final_learning_rate_ratio)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
                    loss = objective(images, labels)
                value = loss.item()
                if not math.isfinite(value):
                    raise DeployError(
                        f"{description}: the loss is {value} at step {step} (learning rate {rate:.2e}); "
                        'lower base_learning_rate, lengthen warmup_epochs or set autocast = "off".'
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total_loss += value
                step += 1
                task.advance(note=f"epoch {epoch + 1}/{epochs} loss {value:.3f}")
            history.append({"epoch": epoch + 1, "train_loss": total_loss / len(batches), "learning_rate": rate})
    model.eval()
    return history
