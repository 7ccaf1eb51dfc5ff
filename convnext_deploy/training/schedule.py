"""How a network learns, from the first step to the last."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from convnext_deploy.config.choices import Autocast
from convnext_deploy.errors import DeployError
from convnext_deploy.training.optimizer import learning_rate_at, scaled_learning_rate


@dataclass(frozen=True)
class Schedule:
    """The optimizer, the learning rate and what is done to the weights over the length of a training.

    Attributes:
        epochs: passes over the batches.
        base_learning_rate: for batch 4096; it is scaled linearly to the size of the batches.
        warmup_epochs: length of the linear warm-up, at most half of the training.
        final_learning_rate_ratio: last learning rate over the peak.
        weight_decay: of the weights of convolutions and linear layers.
        layer_decay: factor of the learning rate from one group of layers to the one before it, see `layer_scales`.
        gradient_clip_norm: largest L2 norm of all gradients together, or None.
        accumulation_steps: parts into which a batch is cut; the step is taken with the gradient of all of them.
        ema_decay: of the average of the weights that becomes the result, see `MovingAverage`; 0: no average.
        head_only_epochs: at first only the last norm and the head are trained.
        autocast: dtype of the forward pass, None for float32; gradients of float16 are scaled.
        patience: the training ends when so many epochs have brought nothing better on the images set aside; 0: it does not.
    """

    epochs: int
    base_learning_rate: float
    warmup_epochs: float = 0.0
    final_learning_rate_ratio: float = 0.0
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    gradient_clip_norm: float | None = None
    accumulation_steps: int = 1
    ema_decay: float = 0.0
    head_only_epochs: float = 0.0
    autocast: torch.dtype | None = None
    patience: int = 0

    def rate_at(self, step: int, steps_per_epoch: int, batch_size: int) -> float:
        """Return the learning rate of a step, before the factors of the layers."""
        total_steps = self.epochs * steps_per_epoch
        return learning_rate_at(
            step,
            total_steps,
            min(round(self.warmup_epochs * steps_per_epoch), total_steps // 2),
            scaled_learning_rate(self.base_learning_rate, batch_size),
            self.final_learning_rate_ratio,
        )


def autocast_dtype(choice: Autocast, device: str) -> torch.dtype | None:
    """Return bfloat16 where it is faster than float32 (or what is asked for), else None.

    It is faster on GPUs from SM80 on, and on CPUs with native bfloat16 products: AVX512-BF16 or AMX. On other CPUs bfloat16
    is emulated and slower. On Apple's GPUs training is in float32.

    Raises: DeployError: if float16 is asked for on a CPU, or any of the two on a GPU of Apple.
    """
    is_cuda = torch.device(device).type == "cuda"
    if torch.device(device).type == "mps":
        if choice in ("bf16", "fp16"):
            raise DeployError(
                f'autocast = "{choice}" is not tested on mps; use "auto" or "off", which train in float32.'
            )
        return None
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
    return torch.bfloat16 if _multiplies_bfloat16() else None


def autocasting(dtype: torch.dtype | None, kind: str) -> AbstractContextManager[object]:
    """Return a block in which forward passes on a kind of device are in `dtype`; None: in float32."""
    return nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype)


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    # releases of PyTorch up to 2.10 tell it under these names alone
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
