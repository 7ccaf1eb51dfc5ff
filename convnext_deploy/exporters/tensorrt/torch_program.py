"""Export a float network as a PyTorch program with explicit types: FP32, or FP16 with FP32 where that overflows."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.config.choices import Precision
from convnext_deploy.errors import ExportError, first_line
from convnext_deploy.models.convnext import ConvNeXt


class _Float32(nn.Module):
    """A module that computes in float32 between casts from and to the dtype of its input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.float()).to(x.dtype)  # type: ignore[no-any-return]  # modules return Any


class _Cast(nn.Module):
    """A cast as a module, so that it can stand between layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class _Program(nn.Module):
    """A network that takes and gives float32, whatever it computes in."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.dtype)).float()  # type: ignore[no-any-return]  # modules return Any


def as_half(network: ConvNeXt) -> ConvNeXt:
    """Return a copy that takes and gives float16 and has float32 where squares or pixels are summed: norms, GRN, the pooling.

    `models.layers` sums its squares in float32 itself. Of a LayerNorm, Torch-TensorRT makes a normalization layer in the type of
    its input, so casts are written around it; its weights stay float32. The copy is for export alone.

    Raises: ExportError: if a weight is too large for float16.
    """
    half = copy.deepcopy(network).half()
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm):
            half.set_submodule(name, _Float32(copy.deepcopy(module)))
    # From the last block to the head all is float32: a norm before or after the pooling, and the pooling itself.
    half.stages[-1].append(_Cast(torch.float32))  # type: ignore[operator]  # a ModuleList does not know what it holds
    first = "head" if network.pre_logits is None else "pre_logits"
    half.set_submodule(first, nn.Sequential(_Cast(torch.float16), half.get_submodule(first)))
    for name, parameter in half.named_parameters():
        if not parameter.isfinite().all():
            raise ExportError(
                f"'{name}' holds values that float16 cannot hold (over 65504); export it with precision 'fp32'."
            )
    return half


def export_program(
    network: ConvNeXt, *, precision: Precision, profile: Profile, image: tuple[int, int, int], device: str = "cpu"
) -> ExportedProgram:
    """Trace a network in evaluation mode: input `images (batch, C, S, S)` float32, output logits `(batch, classes)` float32.

    Args:
        network: float32; it is left alone.
        precision: of MatMul and Conv, of what is added to the residual stream, and of the stream.
        profile: the batch sizes that the program accepts; where there is only one, the batch is fixed.
        image: `(C, S, S)`.
        device: where its weights are to be.

    Raises: ExportError: if the tracing fails, or a weight is too large for the precision.
    """
    inner = as_half(network) if precision == "fp16" else copy.deepcopy(network)
    program: nn.Module = _Program(inner, torch.float16 if precision == "fp16" else torch.float32).to(device).eval()
    try:
        with torch.no_grad():
            return torch.export.export(
                program, (example_images(profile, image, device),), dynamic_shapes=dynamic_shapes(profile)
            )
    except Exception as error:
        # torch.export raises whatever its many layers raise; all of it means the same to a user
        raise ExportError(f"torch.export.export failed: {first_line(error)}") from error


def example_images(profile: Profile, image: tuple[int, int, int], device: str) -> Tensor:
    """Return images `(N, C, S, S)` to trace with, of a batch size that the profile allows."""
    # A dynamic batch must not be traced at 1, which torch.export takes for a constant.
    batch = profile.maximum if profile.minimum == profile.maximum else max(2, profile.optimal)
    return torch.zeros(batch, *image, device=device)


def dynamic_shapes(profile: Profile) -> Any:
    """Return the shapes of the arguments as `torch.export` wants them: a dynamic batch, or None where it is fixed."""
    if profile.minimum == profile.maximum:
        return None
    return ({0: Dim("batch", min=profile.minimum, max=profile.maximum)},)
