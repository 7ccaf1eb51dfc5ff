"""ConvNeXt v1 and v2 with the options of all published variants.

Sources: Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545; Woo et al. 2023, "ConvNeXt V2", arXiv 2301.00808; the
overlapping stems, other norms and other heads are those of timm's variants.

The residual stream is kept channels-last, `(N, H, W, C)`, through the whole network: the norms and the two pointwise layers
work on the last dimension, and a convolution sees the same memory as a channels-last `(N, C, H, W)` view, so no layout copy
is ever made. State-dict keys are those of the official repositories; what these do not have is called `norm_pre` (a final
norm before the pooling) and `pre_logits` (the hidden layer of an MLP head), as in timm.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext_deploy.models.depthwise import depthwise_conv2d
from convnext_deploy.models.downsampling import Downsample, Stem
from convnext_deploy.models.layers import ACTIVATIONS, GRN, NORMS, drop_path

MLP_RATIO = 4
_EXPANDED_BYTES = 8 << 20  # measured on two cores: 4 to 16 MiB are equally fast


class Block(nn.Module):
    """Depthwise convolution → norm → linear C→hidden → activation [→ GRN] → linear hidden→C [→ LayerScale], plus the input.

    `hidden` None: 4C.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        norm: Callable[[int], nn.Module],
        activation: str,
        *,
        layer_scale_init: float | None,
        use_grn: bool,
        drop_path_rate: float,
        dilation: int = 1,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or MLP_RATIO * dim
        padding = dilation * (kernel_size // 2)
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=padding, dilation=dilation, groups=dim)
        if dilation == 1:
            # an attribute and not a class of its own: it stays when the layer gets quantizers
            self.dwconv._conv_forward = depthwise_conv2d  # type: ignore[method-assign,assignment]
        self.norm = norm(dim)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.activation = activation
        self.grn = GRN(hidden) if use_grn else None
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = None if layer_scale_init is None else nn.Parameter(torch.full((dim,), layer_scale_init))
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, H, W, C)` to `(N, H, W, C)`."""
        branch = self.before_mlp(x)
        images = self._images_at_once(branch)
        branch = torch.cat([self._mlp(part) for part in branch.split(images)]) if images else self._mlp(branch)
        if self.training and self.drop_path_rate > 0.0:
            branch = drop_path(branch, self.drop_path_rate)
        # one pass over the large tensors for the product and the sum
        return x + branch if self.gamma is None else torch.addcmul(x, self.gamma, branch)

    def before_mlp(self, x: Tensor) -> Tensor:
        """Map the block's input `(N, H, W, C)` to that of its first linear layer, likewise."""
        return self.norm(self._depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]  # as below

    def _depthwise(self, x: Tensor) -> Tensor:
        """Convolve `(N, C, H, W)`; on a CPU in float32 also under autocast.

        There its gradient takes 2.7 times as long in bfloat16, and with it a whole step of a small network 1.4 times as long.
        Without gradients, too, so that a teacher computes as its student does.
        """
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self.dwconv(x)  # type: ignore[no-any-return]  # modules return Any
        with torch.autocast("cpu", enabled=False):
            return self.dwconv(x.float())  # type: ignore[no-any-return]

    def _mlp(self, x: Tensor) -> Tensor:
        x = ACTIVATIONS[self.activation](self.pwconv1(x))
        return self.pwconv2(x if self.grn is None else self.grn(x))  # type: ignore[no-any-return]  # modules return Any

    def _images_at_once(self, x: Tensor) -> int:
        """Return how many images to take through the expanded layers at once; 0: all of them.

        On a CPU the expanded tensor of a batch leaves the caches, and its memory is asked for and given back in every block.
        Few images at a time are a quarter faster. Where gradients are kept or the graph is traced, the batch stays whole.
        """
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return 0
        expanded = x[:1, ..., 0].numel() * self.pwconv1.out_features
        images = max(1, _EXPANDED_BYTES // max(1, expanded * x.element_size()))
        return images if images < len(x) else 0


class ConvNeXt(nn.Module):
    """A ConvNeXt, a classifier or without head a feature extractor.

    Args:
        depths: number of blocks of each of the four model stages.
        dims: channels of each model stage.
        hidden_widths: units between the linear layers of each block, over all stages in order; of 0 an identity stands for the
            block. None: four times the channels.
        num_classes: number of logits; 0: no head, the network gives features.
        in_channels: channels of the input images.
        patch_size: kernel and stride of the patch stem: 4 in the papers, 2 for images of about 32 pixels.
        stem: `patch`, `overlap` or `overlap_act`, the kinds of `Stem`.
        stem_dim: channels between the two convolutions of an overlapping stem; None: `dims[0]`.
        kernel_sizes: of the depthwise convolutions of each model stage, odd.
        norm: `layernorm`, `rmsnorm` or `simplenorm`, everywhere in the network.
        norm_eps: of every norm.
        head_norm_eps: of the last norm; None: `norm_eps`.
        activation: `gelu`, `gelu_tanh`, `silu` or `relu` in blocks and stem.
        strides: of the downsampling before each model stage, 1 or 2; the first one's belongs to the stem.
        dilations: of the depthwise convolutions of each model stage; a stage with stride 1 has one > 1.
        layer_scale_init: initial LayerScale, or None for no LayerScale (v2).
        use_grn: global response normalization after the activation (v2).
        head_norm_first: the last norm comes before the global pooling and not after it.
        head_norm: a LayerNorm of the head's own, with PyTorch's eps, behind pooling and last norm.
        head_hidden_size: width of a hidden layer between pooling and logits, or None.
        head_activation: of the hidden layer.
        drop_path_rate: stochastic depth of the last block; it grows linearly over all blocks of the network.
        head_input_dropout: before the hidden layer.
        head_dropout: before the logits.
        feature_map: without head, give the map `(N, C, H, W)` before the pooling, with the last norm at every place.
        gradient_checkpointing: in training, keep only the inputs of blocks and compute the rest again for the gradient.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        hidden_widths: Sequence[int] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        patch_size: int = 4,
        stem: str = "patch",
        stem_dim: int | None = None,
        kernel_sizes: Sequence[int] = (7, 7, 7, 7),
        norm: str = "layernorm",
        norm_eps: float = 1e-6,
        head_norm_eps: float | None = None,
        activation: str = "gelu",
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        layer_scale_init: float | None = 1e-6,
        use_grn: bool = False,
        head_norm_first: bool = False,
        head_norm: bool = False,
        head_hidden_size: int | None = None,
        head_activation: str = "gelu",
        drop_path_rate: float = 0.0,
        head_input_dropout: float = 0.0,
        head_dropout: float = 0.0,
        feature_map: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()

        def create_norm(channels: int) -> nn.Module:
            return NORMS[norm](channels, norm_eps)

        self.dims = tuple(dims)
        widths = (in_channels, stem_dim or dims[0], dims[0])
        self.downsample_layers = nn.ModuleList(
            [Stem(stem, *widths, patch_size, create_norm, activation, halve=strides[0] > 1)]
            + [
                Downsample(*pair, create_norm, stride, dilation)
                for pair, stride, dilation in zip(itertools.pairwise(dims), strides[1:], dilations[1:], strict=True)
            ]
        )
        # One linspace over the whole depth; it does not restart in each model stage.
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        blocks = iter(zip(rates, hidden_widths or (None,) * sum(depths), strict=True))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.Identity()
                    if hidden == 0
                    else Block(
                        dim,
                        kernel_size,
                        create_norm,
                        activation,
                        layer_scale_init=layer_scale_init,
                        use_grn=use_grn,
                        drop_path_rate=rate,
                        dilation=dilation,
                        hidden=hidden,
                    )
                    for rate, hidden in itertools.islice(blocks, depth)
                )
            )
            for depth, dim, kernel_size, dilation in zip(depths, dims, kernel_sizes, dilations, strict=True)
        )
        last_norm = NORMS[norm](dims[-1], norm_eps if head_norm_eps is None else head_norm_eps)
        self.norm_pre = last_norm if head_norm_first else None
        self.norm = None if head_norm_first else last_norm
        self.feature_map = feature_map and not num_classes
        self.head_norm = nn.LayerNorm(dims[-1]) if head_norm and not self.feature_map else None
        hidden = 0 if self.feature_map else head_hidden_size or 0
        self.pre_logits = nn.Linear(dims[-1], hidden) if hidden else None
        self.head_activation = head_activation
        self.num_features = hidden or dims[-1]
        self.num_classes = num_classes
        self.head: nn.Linear = nn.Linear(self.num_features, num_classes) if num_classes else None  # type: ignore[assignment]  # rare
        self.head_input_dropout, self.head_dropout = nn.Dropout(head_input_dropout), nn.Dropout(head_dropout)
        self.gradient_checkpointing = gradient_checkpointing
        self.apply(initialize)

    @property
    def stem(self) -> Stem:
        """The first of the trunk, which sees the images."""
        stem = self.downsample_layers[0]
        assert isinstance(stem, Stem)
        return stem

    def trunk(self) -> list[nn.Module]:
        """Return stem, blocks and downsampling layers in order: what maps images to the features before the pooling."""
        return [
            part
            for downsample, stage in zip(self.downsample_layers, self.stages, strict=True)
            for part in (downsample, *stage)  # type: ignore[misc]  # a ModuleList does not know what it holds
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C_in, H, W)` to logits `(N, num_classes)`, features `(N, D)` or a feature map `(N, D, H', W')`."""
        x = images
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            if self.gradient_checkpointing and self.training:
                for block in stage:  # type: ignore[attr-defined]  # a ModuleList does not know what it holds
                    x = checkpoint(block, x, use_reentrant=False)
            else:
                x = stage(x)
        return self.after_trunk(x)

    def after_trunk(self, x: Tensor) -> Tensor:
        """Map what the last block gives, `(N, H', W', D)`, to the network's output."""
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        if self.feature_map:
            return (x if self.norm is None else self.norm(x)).permute(0, 3, 1, 2)
        x = x.mean(dim=(1, 2))
        if self.norm is not None:
            x = self.norm(x)
        if self.head_norm is not None:
            x = self.head_norm(x)
        if self.pre_logits is not None:
            x = ACTIVATIONS[self.head_activation](self.pre_logits(self.head_input_dropout(x)))
        return self.head(self.head_dropout(x)) if self.num_classes else x


def initialize(module: Any) -> None:
    """Fill the weights of a convolution or linear layer as the papers do: normal with 0.02, cut at ±2; biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
