"""Read from the shapes of weights how many hidden units each block of a pruned network has."""

from collections.abc import Mapping

from torch import Tensor

from convnext_deploy.models.variants import Variant, dense_widths


def find_widths(row: Variant, state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the hidden units of each block, 0 for blocks that are not there; None where all are those of the variant.

    A block whose linear layers do not fit each other counts as one of the variant: loading says what is wrong.
    """
    dense, found = dense_widths(row), []
    places = [(stage, number) for stage, depth in enumerate(row.depths) for number in range(depth)]
    for (stage, number), usual in zip(places, dense, strict=True):
        block = f"stages.{stage}.{number}."
        if not any(key.startswith(block) for key in state):
            found.append(0)
            continue
        weights = [state.get(f"{block}{name}.weight") for name in ("pwconv1", "pwconv2")]
        sides = [weight.shape[side] for side, weight in enumerate(weights) if weight is not None and weight.ndim == 2]
        found.append(sides[0] if len(sides) == 2 and sides[0] == sides[1] else usual)
    return None if tuple(found) == dense else tuple(found)
