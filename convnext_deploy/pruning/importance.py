"""In which order the hidden units of each block go, and what the network loses at each width.

| method | order |
|---|---|
| `second-order` | the units whose removal raises the squared error of the block's output least, after the others took over |
| `taylor` | the units with the smallest mean square of `Σ h ∂L/∂h` over the positions of an image |

What a width costs is what counts in the end: the Kullback-Leibler divergence of the network's answers with this block alone at that
width, its second linear layer corrected. It is measured at a few widths of each block, and between them follows the error of the
block's output, so that losses of blocks can be compared and added.

Sources: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv 1906.10771, equation 8, for `taylor`, here
with answers drawn from the network's own probabilities for labels; `elimination.py` has those of `second-order`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext_deploy.config.choices import PruneMethod
from convnext_deploy.models.block_shapes import WIDTH_STEP, candidate_widths
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.pruning.elimination import DAMPING, Elimination, eliminate
from convnext_deploy.pruning.moments import Moments, gather, hidden_units, positions_of, selected, solve
from convnext_deploy.pruning.slicing import blocks_of, outgoing, set_outgoing, sliced
from convnext_deploy.quantization.sensitivity import kl_divergence

AT_ONCE = 32
MOST_BYTES = 1 << 29  # of a tensor between two blocks
_JUDGED_PIXELS = 16 * 224 * 224
_MOST_JUDGED = 256
_ANCHORS = (0.0, 0.25, 0.5, 0.75)  # of the units of a block: where the loss is measured


@dataclass(frozen=True)
class BlockImportance:
    """Of one block: `order` of its hidden units, the first to go first, and figures for each width that it can have.

    `errors`: width → mean square of what the block's output then lacks, relative to its variance. `losses`: width → what the
    network's answers lose, in nats an image, see `measured_loss`. Both are 0 at the width that the block has.
    """

    order: tuple[int, ...]
    errors: Mapping[int, float]
    losses: Mapping[int, float]

    @property
    def width(self) -> int:
        """The units that the block has."""
        return len(self.order)

    def keep(self, width: int) -> Tensor:
        """Return the units that stay at a width, sorted."""
        return torch.tensor(sorted(self.order[len(self.order) - width :]), dtype=torch.long)


Importance = tuple[BlockImportance, ...]
"""Of every block of a network in order; one that was removed before has no units, and a loss of 0 at width 0."""


@torch.no_grad()
def measure_importance(
    network: ConvNeXt,
    images: Tensor,
    method: PruneMethod = "second-order",
    advance: Callable[[], None] = lambda: None,
    *,
    multi_label: bool = False,
    granule: int = WIDTH_STEP,
) -> Importance:
    """Measure every block, each with its inputs in the network as it is.

    Args:
        network: in float, in evaluation mode; left alone.
        images: `(N, C, H, W)` normalized, on the network's device; of large ones as many count as there is memory for.
        method: which units go first.
        advance: called after every block.
        multi_label: each output is an answer of its own.
        granule: the widths are multiples of it.
    """
    scores = _taylor_scores(network, images, multi_label) if method == "taylor" else None
    images = images[: images_in_memory(network, images)]
    judged = images_judged(images)
    reference = _outputs(network, images[:judged])
    x, found = images, []
    blocks = iter(blocks_of(network))
    for part in network.trunk():
        if part in set(network.downsample_layers):
            x = run(part, x)
            continue
        stage, number, block = next(blocks)
        if block is None:
            found.append(BlockImportance((), {0: 0.0}, {0: 0.0}))
        else:
            after = _rest(network, stage, number)
            order = None if scores is None else scores[len(found)]
            judge = _Judge(network, after, x[:judged], reference, multi_label)
            found.append(_measure_block(block, x, order, judge, granule))
            x = run(block, x)
        advance()
    return tuple(found)


def images_in_memory(network: ConvNeXt, images: Tensor) -> int:
    """Return of how many images the tensors between two blocks fit into memory, at least one."""
    largest, x = 1, images[:1]
    for part in network.trunk():
        x = part(x)
        largest = max(largest, x.nbytes)
    return max(1, min(len(images), MOST_BYTES // largest))


def images_judged(images: Tensor) -> int:
    """Return of how many images the loss is measured, at least one."""
    return max(1, min(len(images), _MOST_JUDGED, _JUDGED_PIXELS // (images.shape[2] * images.shape[3])))


def run(part: torch.nn.Module, x: Tensor) -> Tensor:
    """Return what a part of the network gives, computed a few images at a time."""
    return torch.cat([part(some) for some in x.split(AT_ONCE)])


def _outputs(network: ConvNeXt, images: Tensor) -> Tensor:
    return torch.cat([network(some) for some in images.split(AT_ONCE)])


def _rest(network: ConvNeXt, stage: int, number: int) -> list[torch.nn.Module]:
    """Return what comes behind a block, up to the last."""
    trunk = network.trunk()
    return trunk[1 + trunk.index(network.stages[stage][number]) :]  # type: ignore[index]  # a ModuleList does not know what it holds


@dataclass(frozen=True)
class _Judge:
    """What a block's output is judged by: the parts of the network `after` it, inputs of the block, the `reference` answers."""

    network: ConvNeXt
    after: Sequence[torch.nn.Module]
    inputs: Tensor
    reference: Tensor
    multi_label: bool

    def loss(self, block: Callable[[Tensor], Tensor]) -> float:
        """Return what the answers lose with another block in this place."""
        found = []
        for x in self.inputs.split(AT_ONCE):
            y = block(x)
            for part in self.after:
                y = part(y)
            found.append(self.network.after_trunk(y))
        return measured_loss(self.network, self.reference, torch.cat(found), multi_label=self.multi_label)


def measured_loss(network: ConvNeXt, reference: Tensor, found: Tensor, *, multi_label: bool = False) -> float:
    """Return what answers lose: KL divergence in nats an image; of features their squared error relative to their size."""
    if network.num_classes:
        return kl_divergence(reference, found, multi_label=multi_label)
    size = float(reference.double().square().sum())
    return float((found - reference).double().square().sum()) / max(size, 1e-12)


def _measure_block(block: Block, x: Tensor, order: Tensor | None, judge: _Judge, granule: int) -> BlockImportance:
    moments, norms = _moments(block, x)
    weight, _ = outgoing(block)
    elimination = eliminate(moments.hh, weight, granule, order)
    found = BlockImportance(tuple(elimination.order.tolist()), _relative(elimination, moments), {})
    measured = {}
    for anchor in _ANCHORS:
        width = max(w for w in candidate_widths(found.width, granule) if w <= anchor * found.width)
        measured[width] = judge.loss(_narrowed(block, found.keep(width), moments, norms))
    return BlockImportance(found.order, found.errors, spread_losses(found.errors, measured))


def _moments(block: Block, x: Tensor) -> tuple[Moments, Tensor | None]:
    """Return the moments of a block's units with its own output as target, and the sums of GRN's norms."""
    generator = torch.Generator().manual_seed(0)
    norms: list[Tensor] = []
    weight, bias = outgoing(block)

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for some in x.split(AT_ONCE):
            units, own = hidden_units(block, some)
            norms.extend([] if own is None else [own])
            chosen = positions_of(units.shape[:3], len(x), units.shape[3], generator).to(units.device)
            rows = units.flatten(0, 2)[chosen]
            yield rows, rows[:, :0]

    own = gather(parts())
    th = weight @ own.hh
    found = Moments(own.count, own.h, weight @ own.h + bias, own.hh, th, (th * weight).sum(1))
    return found, torch.stack(norms).sum(0).cpu() if norms else None


def _relative(elimination: Elimination, moments: Moments) -> dict[int, float]:
    whole = max(moments.tt.sum().item(), 1e-30)
    return {width: error / whole for width, error in sorted(elimination.errors.items())}


def _narrowed(block: Block, keep: Tensor, moments: Moments, norms: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return the block with the units `keep` alone, corrected; without any, what adds the mean of the block's output."""
    if not len(keep):
        return lambda x: x + moments.t.to(x)
    narrow = sliced(block, keep, 1.0 if norms is None else (norms[keep].sum() / norms.sum()).item())
    weight, _ = outgoing(block)
    set_outgoing(narrow, *solve(selected(moments, keep), weight[:, keep], DAMPING))
    return narrow


def spread_losses(errors: Mapping[int, float], measured: Mapping[int, float]) -> dict[int, float]:
    """Return a loss for each width of which the error is known, from those that were measured at some of them.

    Between two measured widths the logarithm of the loss follows that of the error; beyond the widest one the loss is proportional
    to the error. A wider block never loses more than a narrower one.
    """
    floor = 1e-30
    known = sorted((max(errors[width], floor), max(loss, floor)) for width, loss in measured.items())

    def at(error: float) -> float:
        if error <= known[0][0] or len(known) == 1:
            return known[0][1] * error / known[0][0]
        upper = next((place for place, (own, _) in enumerate(known) if own >= error), len(known) - 1)
        (low, low_loss), (high, high_loss) = known[upper - 1], known[upper]
        share = math.log(error / low) / math.log(high / low) if high > low else 1.0
        return low_loss * math.pow(high_loss / low_loss, min(share, 1.0))

    found, most = {}, 0.0
    for width in sorted(errors, reverse=True):
        most = max(most, measured.get(width, at(errors[width])) if errors[width] > 0 else 0.0)
        found[width] = most
    return dict(sorted(found.items()))


def _taylor_scores(network: ConvNeXt, images: Tensor, multi_label: bool) -> list[Tensor]:
    """Return the order in which the units of each block go, `(M,)`, the least important first; empty where a block was removed."""
    generator = torch.Generator().manual_seed(0)
    blocks = [block for _, _, block in blocks_of(network)]
    sums = [torch.zeros(0 if block is None else block.pwconv2.in_features, dtype=torch.float64) for block in blocks]
    seen: dict[int, Tensor] = {}

    def keep(place: int) -> Callable[[object, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(_: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen[place] = inputs[0].detach().requires_grad_()
            return (inputs[0] + (seen[place] - seen[place].detach()),)

        return hook

    handles = [
        block.pwconv2.register_forward_pre_hook(keep(place)) for place, block in enumerate(blocks) if block is not None
    ]
    try:
        with torch.enable_grad():
            for some in images.split(AT_ONCE):
                drawn = _drawn(network, network(some), multi_label, generator)
                gradients = torch.autograd.grad(drawn, [seen[place] for place in sorted(seen)])
                for place, gradient in zip(sorted(seen), gradients, strict=True):
                    effect = (gradient * seen[place].detach()).flatten(1, -2).sum(1)
                    sums[place] += effect.double().square().sum(0).cpu()
    finally:
        for handle in handles:
            handle.remove()
    return [each.argsort() for each in sums]


def _drawn(network: ConvNeXt, outputs: Tensor, multi_label: bool, generator: torch.Generator) -> Tensor:
    """Return the log likelihood of answers drawn from the network's own probabilities; of features a random sum of them."""
    if not network.num_classes:
        signs = torch.randn(outputs.shape, generator=generator).sign()
        return (outputs * signs.to(outputs)).sum()
    if multi_label:
        yes = torch.rand(outputs.shape, generator=generator).to(outputs) < outputs.detach().sigmoid()
        return torch.nn.functional.logsigmoid(torch.where(yes, outputs, -outputs)).sum()
    chosen = torch.multinomial(outputs.detach().softmax(1).cpu(), 1, generator=generator).to(outputs.device)
    return outputs.log_softmax(1).gather(1, chosen).sum()
