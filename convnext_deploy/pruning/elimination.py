"""Remove inputs of a linear layer, the least harmful first, and let the others take over what they can: plain linear algebra.

With `Σ` the covariance of the inputs `h`, the best weights of the inputs that stay are `W_K + W_P Σ_PK Σ_KK⁻¹`, and the error that
is left is `tr(W_P (G_PP)⁻¹ W_Pᵀ)` with `G = Σ⁻¹`. Both hold for any set, so sets can be removed one after the other while `G` is
kept up by block elimination. The bias takes the means, which is why covariances count and not second moments.

Sources: Frantar, Singh and Alistarh 2022, "Optimal Brain Compression", arXiv 2208.11580, sections 3 and 4; Kurtic, Frantar and
Alistarh 2023, "ZipLM", arXiv 2302.04089, section 3.1, for the removal of groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convnext_deploy.models.block_shapes import WIDTH_STEP

DAMPING = 1e-2
"""Share of each variance that is added to it. Relative to their mean, as in GPTQ, units that hardly ever work would count."""
_LEAST_DAMPING = 1e-6  # of the mean variance: units may always be 0
_POOL = 4  # candidates for each unit that is removed: within them the order is that of single removals


@dataclass(frozen=True)
class Elimination:
    """`order`: the inputs, the first to be removed first. `errors`: number that stays → error per position of the layer's output.

    The error is the sum over outputs of the mean square, with the best weights of those that stay and the damping's share.
    """

    order: Tensor
    errors: dict[int, float]


def damped(covariance: Tensor, damping: float = DAMPING) -> Tensor:
    """Return a covariance `(M, M)` that can be inverted, with variances raised by a share of themselves."""
    variances = covariance.diagonal().clamp(min=0)
    return covariance + torch.diag(damping * variances + _LEAST_DAMPING * variances.mean().clamp(min=1e-12))


def eliminate(
    covariance: Tensor, weight: Tensor, granule: int = WIDTH_STEP, order: Tensor | None = None
) -> Elimination:
    """Remove all inputs, a granule at a time, each time those that raise the error least.

    Args:
        covariance: of the inputs, `(M, M)` float64.
        weight: `(C, M)` float64.
        granule: of the widths at which errors are noted.
        order: remove them in this order, `(M,)`.
    """
    inverse = torch.linalg.inv(damped(covariance))
    weight, left = weight.clone(), torch.arange(len(covariance))
    removed: list[Tensor] = []
    errors, error = {len(left): 0.0}, 0.0
    while len(left):
        count = len(left) % granule or granule
        if order is None:
            scores = weight.square().sum(0) / inverse.diagonal()
            pool = scores.topk(min(_POOL * count, len(left)), largest=False).indices
        else:
            pool = torch.stack([(left == unit).nonzero()[0, 0] for unit in order[len(order) - len(left) :][:count]])
        chosen, increase = _remove_within(inverse[pool][:, pool], weight[:, pool], count)
        gone = pool[chosen] if order is None else pool
        stays = torch.ones(len(left), dtype=torch.bool).index_fill_(0, gone, value=False)
        shares = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stays])
        weight = weight[:, stays] - weight[:, gone] @ shares
        inverse = inverse[stays][:, stays] - inverse[stays][:, gone] @ shares
        removed.append(left[gone])
        left, error = left[stays], error + increase
        errors[len(left)] = error
    return Elimination(torch.cat(removed), errors)


def _remove_within(inverse: Tensor, weight: Tensor, count: int) -> tuple[Tensor, float]:
    """Return which `count` of the few inputs given are removed, one after the other, and by how much that raises the error."""
    inverse, weight = inverse.clone(), weight.clone()
    alive = torch.ones(len(inverse), dtype=torch.bool)
    chosen, increase = [], 0.0
    for _ in range(count):
        scores = (weight.square().sum(0) / inverse.diagonal().clamp(min=1e-300)).masked_fill(~alive, torch.inf)
        place = int(scores.argmin())
        increase += scores[place].item()
        row = inverse[place] / inverse[place, place]
        weight -= torch.outer(weight[:, place], row)
        inverse -= torch.outer(inverse[:, place], row)
        alive[place] = False
        chosen.append(place)
    return torch.tensor(chosen), increase
