"""Build the pruned network: block after block, each fitted to what the dense network gives at this place.

A block sees what the pruned blocks before it give. The weights of its second linear layer are those that bring the residual stream
behind it closest to the dense network's, see `moments.fit`: they also undo a part of what earlier blocks have lost. Where a block
goes, the mean of what it added goes into the bias of what wrote the stream before it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import Activation
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.variants import build_model, complete_spec, with_widths
from convnext_deploy.pruning.importance import AT_ONCE, Importance, images_in_memory, run
from convnext_deploy.pruning.moments import Moments, fit, gather, hidden_units, positions_of
from convnext_deploy.pruning.slicing import blocks_of, outgoing, set_outgoing, shift_stream, sliced


@torch.no_grad()
def prune_network(
    network: ConvNeXt,
    spec: ModelSpec,
    importance: Importance,
    widths: Sequence[int],
    images: Tensor,
    advance: Callable[[], None] = lambda: None,
    *,
    correct: bool = True,
    activation: Activation | None = None,
) -> tuple[ConvNeXt, ModelSpec]:
    """Return a network with so many hidden units in each block, and its spec; `network` is left alone.

    Args:
        network: in float, in evaluation mode.
        spec: of `network`.
        importance: of `measure_importance`: which units stay.
        widths: of each block, over all model stages in order; 0: the block goes. Any number up to those that it has.
        images: `(N, C, H, W)` normalized, on the network's device.
        advance: called after every block.
        correct: fit weights and biases; otherwise those that stay are as they were.
        activation: of the pruned network; None: as before.

    Raises: RecipeError: if the widths are not those of such a network.
    """
    _check_widths(importance, widths)
    pruned = _copy(network, spec, activation)
    images = images[: images_in_memory(network, images)]
    dense_x = pruned_x = images
    places = iter(zip(blocks_of(network), importance, widths, strict=True))
    for part, own in zip(network.trunk(), pruned.trunk(), strict=True):
        if not isinstance(part, Block | nn.Identity):
            dense_x, pruned_x = run(part, dense_x), run(own, pruned_x)
            continue
        (stage, number, block), known, width = next(places)
        if block is not None:
            assert isinstance(own, Block)
            keep = known.keep(width)
            after = run(block, dense_x)
            if width:
                share = _share(block, dense_x, keep) if correct and width < known.width else 1.0
                fitted = sliced(own, keep, share) if width < known.width else own
                if correct and (width < known.width or activation is not None or not torch.equal(dense_x, pruned_x)):
                    _fit(fitted, own, keep, pruned_x, after)
                pruned.stages[stage][number] = fitted  # type: ignore[operator]  # a ModuleList does not know what it holds
                pruned_x = run(fitted, pruned_x)
            else:
                pruned.stages[stage][number] = nn.Identity()  # type: ignore[operator]  # likewise
                shift = (after - pruned_x).double().mean(dim=(0, 1, 2))
                if correct and shift_stream(pruned, stage, number, shift):
                    pruned_x = pruned_x + shift.to(pruned_x)
            dense_x = after
        advance()
    made = with_widths(replace(spec, activation=activation or spec.activation), widths)
    return pruned, made


def _check_widths(importance: Importance, widths: Sequence[int]) -> None:
    if len(widths) != len(importance):
        raise RecipeError(f"widths has {len(widths)} entries; expected {len(importance)}, one for each block.")
    for place, (width, known) in enumerate(zip(widths, importance, strict=True)):
        if not 0 <= width <= known.width:
            raise RecipeError(
                f"widths[{place}] = {width} is out of range; expected 0 to {known.width}, as the block has."
            )
    if not any(widths):
        raise RecipeError("widths are all 0, which leaves no block; expected at least one that is larger.")


def _copy(network: ConvNeXt, spec: ModelSpec, activation: Activation | None) -> ConvNeXt:
    """Return a copy of the network, with another activation if one is asked for."""
    if activation is None or activation == complete_spec(spec).activation:
        return copy.deepcopy(network)
    with torch.device("meta"):
        made = build_model(replace(spec, activation=activation))
    made.load_state_dict(copy.deepcopy(network).state_dict(), assign=True)
    return made.eval()


def _share(block: Block, x: Tensor, keep: Tensor) -> float:
    """Return the part of the sum of GRN's norms that the units that stay have; 1 without GRN."""
    if block.grn is None:
        return 1.0
    norms = torch.stack([found for some in x.split(AT_ONCE) if (found := hidden_units(block, some)[1]) is not None])
    total = norms.sum(0).cpu()
    return (total[keep].sum() / total.sum().clamp(min=1e-12)).item()


def _fit(block: Block, whole: Block, keep: Tensor, x: Tensor, wanted: Tensor) -> None:
    """Give a block the second linear layer with which it comes closest to the output that is `wanted`, in place."""
    generator = torch.Generator().manual_seed(0)

    def half(own: Tensor, target: Tensor) -> Moments:
        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for some, goal in zip(own.split(AT_ONCE), target.split(AT_ONCE), strict=True):
                units, _ = hidden_units(block, some)
                chosen = positions_of(units.shape[:3], len(own), units.shape[3], generator).to(units.device)
                yield units.flatten(0, 2)[chosen], (goal - some).flatten(0, 2)[chosen]

        return gather(parts())

    halves = [half(x[start::2], wanted[start::2]) for start in ((0, 1) if len(x) > 1 else (0, 0))]
    weight, _ = outgoing(whole)
    set_outgoing(block, *fit(halves, weight[:, keep]))
