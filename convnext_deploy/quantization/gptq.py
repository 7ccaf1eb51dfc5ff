"""Second-order rounding (GPTQ): each weight goes up or down so that it takes back what those before it changed at the output."""

import contextlib
import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.quantization.bias_correction import correct_block, walk
from convnext_deploy.quantization.fake_quantize import spread
from convnext_deploy.quantization.levels import round_to_level
from convnext_deploy.quantization.prepare import QuantizedLayer, quantized_layers

DAMPING = 0.01  # of the mean diagonal of the Hessian, added to it; as in the paper
_ROWS_PER_INPUT = 32  # more say little more of an input's second moments, and cost
_AT_ONCE = 32  # images
_COLUMNS = 128  # rounded before those that follow learn of it


class InputMoments:
    """Second moments of what the weights of a layer are multiplied with: rows of its quantized input.

    A row is what makes one output: all inputs of a linear layer, the pixels below a kernel, in each group of channels.

    Attributes:
        products: `(groups, K, K)` float64, summed over rows. For the 6144 inputs of the largest linear layer they are 302 MB, so
            they are taken of one layer at a time.
        count: number of rows.
    """

    def __init__(self, layer: QuantizedLayer, images: int) -> None:
        """Args: images: how many there will be, of which as many are taken as it needs."""
        self._layer, self._images, self._seen = layer, images, 0
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        inputs = layer.weight[0].numel()
        self.products = torch.zeros((groups, inputs, inputs), dtype=torch.float64, device=layer.weight.device)
        self.count = 0

    def observe(self, x: Tensor) -> None:
        """Take in the layer's quantized input of some images, or a part of it that lies evenly in it."""
        share = _ROWS_PER_INPUT * self.products.shape[1] * len(x) / self._images
        first, self._seen = self._seen, self._seen + len(x)
        if isinstance(self._layer, nn.Linear):
            rows = x.reshape(-1, x.shape[-1])
            rows = _some(rows, share, first)[:, None]
        else:
            layer = self._layer
            positions = max(1, x.shape[-1] * x.shape[-2] // (layer.stride[0] * layer.stride[1]))
            x = _some(x, share / positions, first)
            assert not isinstance(layer.padding, str)  # networks of this package say it in numbers
            columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            rows = columns.transpose(1, 2).reshape(-1, *self.products.shape[:2])
        by_group = rows.transpose(0, 1)  # (groups, rows, K)
        self.products += (by_group.transpose(1, 2) @ by_group).double()
        self.count += len(rows)

    def hessian(self) -> Tensor:
        """Return the mean products, `(groups, K, K)`; they are used up."""
        return self.products.div_(self.count)


def _some(items: Tensor, wanted: float, turn: int) -> Tensor:
    count = min(len(items), max(1, round(wanted)))
    places = (torch.arange(count, device=items.device) * len(items) // count + 7919 * turn) % len(items)
    return items if count == len(items) else items[places]


class _SeenError(Exception):
    """What comes after the layer need not be computed."""


def adjust_blocks(
    blocks: Sequence[nn.Module], images: Tensor, advance: Callable[[], None] = lambda: None, *, correct_on: int = 0
) -> int:
    """Round the weights of all quantized layers, block after block, each behind those that were rounded before it.

    Args:
        blocks: which, one after the other, make up the network, or its beginning; calibrated.
        images: `(N, C, H, W)`, normalized.
        advance: called after every block.
        correct_on: move the biases of each block behind its new weights, on so many images; 0: leave them.

    Returns: as `walk`.
    """
    reference = copy.deepcopy(list(blocks))
    sources = dict(zip(blocks, reference, strict=True))

    def adjust(block: nn.Module, floats: Tensor, arriving: Tensor, expected: Tensor) -> None:
        round_block(block, arriving)
        if correct_on:
            correct_block(block, sources[block], floats[:correct_on], arriving[:correct_on])

    return walk(blocks, images, adjust, advance, reference)


@torch.no_grad()
def round_block(block: nn.Module, arriving: Tensor) -> None:
    """Round the weights of a block's quantized layers, one after the other.

    A weight that goes to the nearest level stays as it is, so that training starts from float weights; others become that of
    their level.

    Args:
        block: calibrated; its quantizers work.
        arriving: `(N, …)`, what the quantized blocks before it give.
    """
    for _, layer in quantized_layers(block):
        moments = InputMoments(layer, len(arriving))

        def take(layer: nn.Module, inputs: tuple[Tensor], moments: InputMoments = moments) -> None:
            moments.observe(layer.input_quantizer(inputs[0]))  # type: ignore[operator]  # a quantized layer
            raise _SeenError

        hook = layer.register_forward_pre_hook(take)
        try:
            for part in arriving.split(_AT_ONCE):
                with contextlib.suppress(_SeenError):
                    block(part)
        finally:
            hook.remove()
        hessian = moments.hessian()
        if not hessian.isfinite().all():  # values whose squares float32 does not hold; to the nearest, then
            continue
        rounded = round_weight(layer, hessian)
        nearest = layer.weight_quantizer(layer.weight)
        layer.weight.copy_(torch.where(rounded == nearest, layer.weight, rounded))


def round_weight(layer: QuantizedLayer, hessian: Tensor) -> Tensor:
    """Return the layer's weight on its grid, with little squared error `tr(E H E^T)` of the output, `E` what rounding changes.

    With `H = L L^T` the error is the sum over inputs `k` of `(L_kk (E_k + sum_{j > k} E_j L_jk / L_kk))^2`; from the last input to
    the first, each level, an integer or one of FP8, is the one that makes its term least. Inputs of large second moments are
    last, so they are rounded first and others take back what they change. This is GPTQ in the form of LDLQ, which needs no
    inverse. It is factored in float64: GELU's outputs have a common direction, and float32 finds their products not positive
    definite.

    Args:
        layer: whose weight grid is fixed.
        hessian: `(groups, K, K)` float64; used up.

    Sources: Frantar et al. 2022, GPTQ, arXiv 2210.17323; Chee et al. 2023, QuIP, arXiv 2307.13304, theorem 6.
    """
    scale, _ = layer.weight_quantizer.qparams()
    steps = spread(scale, layer.weight)
    scheme = layer.weight_quantizer.scheme
    groups, inputs = hessian.shape[:2]
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1, keepdim=True)
    diagonal += damping + torch.where(damping > 0, 0.0, 1.0)  # of inputs that are always the same
    order = diagonal.argsort(1)
    places = order[:, None].expand(-1, inputs, -1)
    hessian = hessian.gather(2, places).gather(1, places.transpose(1, 2))
    factor = torch.linalg.cholesky(hessian)
    factor = (factor / factor.diagonal(dim1=1, dim2=2)[:, None]).float()
    weight = (layer.weight.float() / steps).reshape(groups, -1, inputs)
    places = order[:, None].expand_as(weight)
    wanted = weight.gather(2, places)
    change = torch.zeros_like(wanted)
    levels = torch.empty_like(wanted)
    for end in range(inputs, 0, -_COLUMNS):
        start = max(0, end - _COLUMNS)
        wanted_here = wanted[..., start:end] + change[..., end:] @ factor[:, end:, start:end]
        for k in range(end - 1, start - 1, -1):
            rest = change[..., k + 1 : end] @ factor[:, k + 1 : end, k : k + 1]
            target = wanted_here[..., k - start] + rest[..., 0]
            levels[..., k] = round_to_level(target, scheme).clamp_(scheme.quant_min, scheme.quant_max)
            change[..., k] = wanted[..., k] - levels[..., k]
    return torch.empty_like(weight).scatter_(2, places, levels).view_as(layer.weight) * steps
