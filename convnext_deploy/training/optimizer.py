"""AdamW, its parameter groups, the learning rate of every step, and the average of the weights."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convnext_deploy.config.fit import REFERENCE_BATCH_SIZE

_GROUPS = 12  # behind the stem, in networks of many blocks
_LEAST_GROUPED = 27  # blocks in the third model stage, of small and larger
_OFFICIAL_TINY = [3, 3, 9, 3]  # of version 1, which the official code groups as well
_BLOCK_NAME = re.compile(r"stages\.(\d+)\.(\d+)\.")
_DOWNSAMPLE_NAME = re.compile(r"downsample_layers\.(\d+)\.")


def scaled_learning_rate(base_learning_rate: float, batch_size: int) -> float:
    """Scale a learning rate given for batch 4096 linearly to `batch_size` (Goyal et al. 2017, arXiv 1706.02677)."""
    return base_learning_rate * batch_size / REFERENCE_BATCH_SIZE


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float, final_ratio: float) -> float:
    """Linear warm-up to `peak` over `warmup_steps`, then half a cosine down to `peak * final_ratio` at the last step.

    A single step after the warm-up runs at the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def layer_scales(names: Iterable[str], decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter of a ConvNeXt: layer-wise learning-rate decay.

    A layer's factor is `decay ** (groups from it to the last norm and the head)`; these have 1. The groups are those of the
    official code: of the networks with 27 or more blocks in the third model stage, and of version 1's tiny, twelve behind the
    stem (the first two model stages, each three blocks of the third, and the last model stage); of the others each block. A
    downsampling layer belongs with the block that follows it, and so does the stem where each block is a group.

    Args:
        names: of the network's parameters.
        decay: in (0, 1]; 1 treats all alike.

    Source: Bao et al. 2022, arXiv 2106.08254, section 3.2; `get_num_layer_for_convnext` in optim_factory.py of
        facebookresearch/ConvNeXt, and with `layer_decay_type` "group" and "single" of facebookresearch/ConvNeXt-V2.
    """
    names = list(names)
    places = [(int(found[1]), int(found[2])) for name in names if (found := _BLOCK_NAME.match(name))]
    blocks = sorted(set(places))
    depths = [sum(stage == number for stage, _ in blocks) for number in range(4)]
    is_first_version = not any(".grn." in name for name in names)
    if depths[2] >= _LEAST_GROUPED or (is_first_version and depths == _OFFICIAL_TINY):
        groups, group_of = _GROUPS, {block: _official_group(*block) for block in blocks}
        stem = 0
    else:
        groups, group_of = len(blocks), {block: 1 + number for number, block in enumerate(blocks)}
        stem = 1

    def group(name: str) -> int:
        if found := _BLOCK_NAME.match(name):
            return group_of[int(found[1]), int(found[2])]
        if found := _DOWNSAMPLE_NAME.match(name):
            # the block that follows may be one that was removed
            following = (group_of[block] for block in blocks if block[0] >= int(found[1]))
            return next(following, groups) if int(found[1]) else stem
        return groups + 1

    return {name: decay ** (groups + 1 - group(name)) for name in names}


def _official_group(stage: int, block: int) -> int:
    """Return the group of a block, 1 to 12; the third model stage of 27 blocks has 3 to 11."""
    return min(_GROUPS, 3 + block // 3) if stage == 2 else (1, 2, 0, _GROUPS)[stage]


def create_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) that decays the weights of convolutions and linear layers only.

    Norms, biases, LayerScale, GRN and quantizer scales are not decayed. Every parameter group carries `lr_scale`, the factor
    of `layer_scales`, by which the caller multiplies the learning rate of the step.
    """
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales = layer_scales([name for name, _ in model.named_parameters()], layer_decay)
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales[name] for name, _ in named} or {1.0}):
        members = [p for name, p in named if scales[name] == scale]
        for is_decayed in (True, False):
            groups.append(
                {
                    "params": [p for p in members if (id(p) in decayed) == is_decayed],
                    "weight_decay": weight_decay if is_decayed else 0.0,
                    "lr": learning_rate * scale,
                    "lr_scale": scale,
                }
            )
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), fused=True)


class MovingAverage(AveragedModel):
    """Follows the weights slowly: `average = d * average + (1 - d) * weights` after every step.

    `d` is `min(decay, (1 + step) / (10 + step))`, steps counted from 0: a short training would otherwise end with an average of
    its first weights. The average is a copy of the network in evaluation mode, without gradients. Unlike PyTorch's, which it is
    stored as, it counts its steps on the host, so that no step waits for a GPU.

    Source: Polyak and Juditsky 1992; arXiv 2201.03545, table 5 (decay 0.9999 for 300 epochs of ImageNet); the growing decay is
        that of TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self.module.requires_grad_(False).eval()
        self.n_averaged.fill_(1)  # the first weights count, instead of being replaced by those after the first step
        self._count = 1

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights after a step, and buffers as they are."""
        least = self._count / (self._count + 9)
        averages, weights = (list[Tensor](network.parameters()) for network in (self.module, model))
        torch._foreach_lerp_(averages, weights, 1.0 - min(self.decay, least))
        for own, other in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(other)
        self._count += 1

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Return the averages, and how many steps they have taken."""
        self.n_averaged.fill_(self._count)
        return super().state_dict(*arguments, **options)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Take both."""
        found = super().load_state_dict(*arguments, **options)
        self._count = int(self.n_averaged)
        return found
