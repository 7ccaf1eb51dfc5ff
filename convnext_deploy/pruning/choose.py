"""Choose the widths of all blocks for a share of the multiply-accumulates."""

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.variants import with_widths
from convnext_deploy.models.zoo.cost import count_macs
from convnext_deploy.pruning.importance import Importance


def choose_widths(spec: ModelSpec, importance: Importance, share: float, image_size: int) -> tuple[int, ...]:
    """Return widths with which a network has at most a share of its multiply-accumulates, and loses little.

    Again and again the block gives units that loses least for each multiply-accumulate saved, from its width to any narrower one.

    Args:
        spec: of the network as it is.
        importance: of its blocks.
        share: in (0, 1].
        image_size: side of the images in pixels.

    Raises: RecipeError: if even one block of the least width has more.
    """
    widths = [block.width for block in importance]

    def macs(place: int, width: int) -> int:
        changed = [*widths[:place], width, *widths[place + 1 :]]
        return count_macs(with_widths(spec, changed), image_size) if any(changed) else left

    left = count_macs(spec, image_size)
    most = share * left
    while left > most:
        steps = [
            ((block.losses[width] - block.losses[widths[place]]) / (left - after), place, width, after)
            for place, block in enumerate(importance)
            for width in block.losses
            if width < widths[place] and (after := macs(place, width)) < left
        ]
        if not steps:
            raise RecipeError(
                f"macs_share = {share:g} is out of reach for {spec.variant}: its least network has "
                f"{left / (most / share):.0%} of the multiply-accumulates."
            )
        # of those that reach the aim, the last step may be smaller
        enough = [step for step in steps if step[3] <= most]
        _, place, width, left = min(min(steps), *enough, key=lambda step: step[0]) if enough else min(steps)
        widths[place] = width
    return tuple(widths)
