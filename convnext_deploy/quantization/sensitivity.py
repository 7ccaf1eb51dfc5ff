"""Measure what quantizing each layer alone does to the logits, and choose the layers to keep in float."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode

from convnext_deploy.quantization.prepare import Floats, quantized_layers, quantizers_disabled

_MOST_TRIALS = 12


@dataclass(frozen=True)
class Effect:
    """What quantizing one layer alone does to the logits.

    `kl` is the mean over images of the Kullback-Leibler divergence from the float to the quantized class probabilities, in nats,
    infinite if a logit is not finite; `changed` the fraction of images whose first guess is another; `macs` the layer's
    multiply-accumulates per image.
    """

    layer: str
    kl: float
    changed: float
    macs: int


def kl_divergence(logits: Tensor, other: Tensor, *, multi_label: bool = False) -> float:
    """Return the mean over rows of KL(softmax(logits) || softmax(other)), both `(N, classes)`, in nats, >= 0.

    Where each output is an answer of its own, it is the sum of the divergences of these, yes or no. It is infinite where `other` is
    not finite.
    """
    if not other.isfinite().all():
        return math.inf
    if multi_label:
        own, others = logits.double(), other.double()
        yes = own.sigmoid() * (logsigmoid(own) - logsigmoid(others))
        no = (-own).sigmoid() * (logsigmoid(-own) - logsigmoid(-others))
        return max(0.0, (yes + no).sum(1).mean().item())
    first, second = logits.double().log_softmax(1), other.double().log_softmax(1)
    return max(0.0, (first.exp() * (first - second)).sum(1).mean().item())


def signal_to_noise_db(logits: Tensor, other: Tensor) -> float:
    """Return ten times the decimal logarithm of the power of `logits` over that of the difference, both `(N, classes)`.

    It is infinite where there is no difference, and minus infinity where `other` is not finite.
    """
    if not other.isfinite().all():
        return -math.inf
    noise = (logits - other).double().square().sum().item()
    return 10 * math.log10(max(logits.double().square().sum().item(), 1e-300) / noise) if noise else math.inf


@torch.no_grad()
def compute_logits(model: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Return the logits `(N, classes)` of images `(N, C, H, W)`."""
    return torch.cat([model(part) for part in images.split(batch_size)])


def measure_sensitivity(
    model: nn.Module,
    images: Tensor,
    reference: Tensor,
    macs: Mapping[str, int],
    *,
    floats: Floats | None = None,
    multi_label: bool = False,
    to_logits: Callable[[Tensor], Tensor] = lambda outputs: outputs,
) -> Iterator[Effect]:
    """Measure layers, each alone, all others in float, and yield what it does to the logits.

    Args:
        model: calibrated.
        images: `(N, C, H, W)`, normalized.
        reference: float logits `(N, classes)` of the same images.
        macs: of which layers, from `count_macs`.
        floats: what the layers in float compute with, as of `quantizers_disabled`.
        multi_label: each output is an answer of its own; `changed` are then these.
        to_logits: maps what the model gives to logits, where these are something else.
    """

    def answers(logits: Tensor) -> Tensor:
        return logits > 0 if multi_label else logits.argmax(1)

    for name, count in macs.items():
        with quantizers_disabled(model, [name], floats):
            found = to_logits(compute_logits(model, images))
        changed = (answers(found) != answers(reference)).double().mean().item()
        yield Effect(name, kl_divergence(reference, found, multi_label=multi_label), changed, count)


def by_harm(effects: Iterable[Effect]) -> tuple[Effect, ...]:
    """Return effects in order, the most harmful first."""
    return tuple(sorted(effects, key=lambda effect: (-effect.kl, effect.layer)))


@torch.no_grad()
def count_macs(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates of every quantized layer for one image, by running one, `(1, C, H, W)`."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    counts = counter.get_flop_counts()
    # a multiplication and an addition count as two; names begin with the class of the model
    return {name: sum(counts[f"{type(model).__name__}.{name}"].values()) // 2 for name, _ in quantized_layers(model)}


def choose_float_layers(
    model: nn.Module,
    effects: Sequence[Effect],
    passes: Callable[[], bool],
    most: int = _MOST_TRIALS,
    floats: Floats | None = None,
) -> tuple[str, ...] | None:
    """Choose layers to keep in float so that the rest passes: the most harm per multiply-accumulate goes first.

    Then every chosen layer that is not needed goes back, the dearest first, so that few and cheap ones stay.

    Args:
        model: calibrated; its quantizers work again as before when this returns.
        effects: of `measure_sensitivity`.
        passes: whether the model, with the quantizers that work now, is good enough.
        most: number of layers that may be in float.
        floats: what these compute with, as of `quantizers_disabled`.

    Returns: their names, None if no choice passes.
    """
    order = sorted(effects, key=lambda effect: -effect.kl / max(1, effect.macs))
    names = [effect.layer for effect in effects]
    macs: Mapping[str, int] = {effect.layer: effect.macs for effect in effects}

    def good(in_float: Sequence[str]) -> bool:
        with quantizers_disabled(model, [name for name in names if name not in in_float], floats):
            return passes()

    chosen: list[str] = []
    for effect in order[: min(most, len(order) - 1)]:
        chosen.append(effect.layer)
        if good(chosen):
            break
    else:
        return None
    for name in sorted(chosen[:-1], key=lambda name: -macs[name]):
        fewer = [kept for kept in chosen if kept != name]
        if good(fewer):
            chosen = fewer
    return tuple(chosen)
