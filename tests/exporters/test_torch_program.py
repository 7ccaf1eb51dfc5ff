"""Networks as exported PyTorch programs: types of every node, values on the CPU, batch sizes, activations that overflow FP16."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.tensorrt.torch_program import as_half, export_program
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.models.identities import drop_identities
from convnext_deploy.models.variants import VARIANTS
from tests.shared import slow_except
from tests.trained import CLASSES, SIDE, trained_network, wave_images
from tests.weights import random_network

pytestmark = pytest.mark.heavy

PROFILE = Profile(1, 2, 4)
IMAGE = (3, SIDE, SIDE)
KINDS = {
    "v1": "test_convnext",
    "v2": "convnextv2_atto",
    "ols": "convnext_atto_ols",
    "rms": "convnext_zepto_rms_ols",
    "mlp": "test_convnext2",
    "silu": "test_convnext3",
}
"""Short versions of what variants differ in, and a small variant."""
QUICK_KINDS = slow_except(("v2", "rms"), KINDS)
PRODUCTS = ("convolution", "addmm", "mm")
SUMS = ("native_layer_norm", "mean", "sum", "pow", "rsqrt", "sqrt", "linalg_vector_norm", "var", "div")


def small_network(kind: str) -> ConvNeXt:
    """Return a network of one block a stage with random weights, folded for export."""
    name = KINDS[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, name, dataclasses.replace(VARIANTS[name], depths=(1, 1, 1, 1)))
        return for_export(random_network(ModelSpec(name, CLASSES, head_hidden_size=24 if kind == "mlp" else None)))


@cache
def half_program(kind: str) -> ExportedProgram:
    return export_program(small_network(kind), precision="fp16", profile=PROFILE, image=IMAGE)


def for_export(network: ConvNeXt) -> ConvNeXt:
    return drop_identities(fold(network, default_preprocess(SIDE)).network)


def head_norm_first() -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt((1, 1, 1, 1), (8, 8, 8, 8), num_classes=CLASSES, head_norm_first=True).eval()


def types(program: ExportedProgram) -> dict[str, set[torch.dtype]]:
    """Return the types of what each kind of operation reads, after the program is taken apart into core operations."""
    found: dict[str, set[torch.dtype]] = defaultdict(set)
    for node in program.run_decompositions().graph.nodes:
        if node.op == "call_function":
            found[getattr(node.target, "_opname", str(node.target))] |= {t.dtype for t in read_by(node)}
    return found


def read_by(node: fx.Node) -> Iterator[Tensor]:
    for source in node.all_input_nodes:
        value = source.meta["val"]
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            yield value


def run(program: ExportedProgram, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = program.module()(images)
    return logits


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_export_program_sums_in_float32_and_multiplies_in_float16(kind: str) -> None:
    found = types(half_program(kind))
    assert {name: found[name] for name in PRODUCTS if name in found} == {
        name: {torch.float16} for name in PRODUCTS if name in found
    }
    assert {name: found[name] for name in SUMS if name in found} == {
        name: {torch.float32} for name in SUMS if name in found
    }
    assert "convolution" in found
    assert "mean" in found
    assert {"native_layer_norm", "sum", "rsqrt"} & set(found)


@pytest.mark.heavy
def test_export_program_has_float32_norm_before_the_pooling() -> None:
    found = types(export_program(head_norm_first(), precision="fp16", profile=PROFILE, image=IMAGE))
    assert found["native_layer_norm"] == found["mean"] == {torch.float32}
    assert found["addmm"] | found["convolution"] == {torch.float16}


@pytest.mark.heavy
def test_export_program_has_no_float16_in_fp32() -> None:
    found = types(export_program(small_network("v2"), precision="fp32", profile=PROFILE, image=IMAGE))
    assert set().union(*found.values()) == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_export_program_takes_and_gives_float32(kind: str, precision: str) -> None:
    network = small_network(kind)
    program = half_program(kind)
    if precision == "fp32":
        program = export_program(network, precision="fp32", profile=PROFILE, image=IMAGE)
    images = torch.randn(3, *IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
    found = run(program, images)
    assert found.dtype is torch.float32
    assert found.shape == (3, CLASSES)
    tolerance = 1e-5 if precision == "fp32" else 0.01  # float16 has 11 bits
    assert (found - expected).abs().max() <= tolerance * (expected.max() - expected.min())
    assert precision == "fp32" or (found != expected).any()


@pytest.mark.parametrize("version", slow_except((2,), (1, 2)))
def test_export_program_in_fp16_keeps_the_predictions_of_a_trained_network(version: int) -> None:
    network = trained_network(version)
    images = torch.from_numpy(wave_images(40, seed=1)[0])
    program = export_program(for_export(network), precision="fp16", profile=Profile(1, 8, 40), image=IMAGE)
    with torch.no_grad():
        expected = network(images)
    assert torch.equal(run(program, images).argmax(1), expected.argmax(1))


class HalfNorm(nn.Module):
    """A LayerNorm as a converter may write it, in the type of its input; its bias is folded."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight.half(), norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps) * self.weight


def with_large_stream(network: ConvNeXt, gain: float) -> ConvNeXt:
    """Return a copy whose residual stream is `gain` times as large, and whose logits are the same: norms divide it again.

    Squares of its values are far beyond float16, as in facebookresearch/ConvNeXt #80 and ConvNeXt-V2 #66.
    """
    large = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in stream_parameters(large):
            parameter.mul_(gain)
        for module in large.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
    return large


def stream_parameters(network: ConvNeXt) -> Iterator[nn.Parameter]:
    norm = network.downsample_layers[0][-1]  # type: ignore[index]  # a ModuleList does not know what it holds
    yield from norm.parameters()
    for layers in network.downsample_layers[1:]:
        yield from layers[1].parameters()  # type: ignore[index]
    for stage in network.stages:
        for block in stage:  # type: ignore[attr-defined]
            yield from block.pwconv2.parameters()


@pytest.mark.heavy
def test_export_program_in_fp16_is_right_where_squares_overflow() -> None:
    network = for_export(trained_network(1))
    large = with_large_stream(network, 1000.0)
    images = torch.from_numpy(wave_images(16, seed=2)[0])
    streams: list[Tensor] = []
    for stage in large.stages:
        stage.register_forward_hook(lambda *call: streams.append(call[2]))
    with torch.no_grad():
        expected = large(images)
        naive = copy.deepcopy(large).half()
        for name, norm in large.named_modules():
            if isinstance(norm, nn.LayerNorm):
                naive.set_submodule(name, HalfNorm(norm))
        overflowed = naive(images.half())
    assert max(stream.square().max() for stream in streams) > 65504
    assert max(stream.abs().max() for stream in streams) < 65504
    assert (overflowed.argmax(1) != expected.argmax(1)).any()
    program = export_program(large, precision="fp16", profile=Profile(1, 8, 16), image=IMAGE)
    found = run(program, images)
    assert (found - expected).abs().max() <= 0.02 * (expected.max() - expected.min())
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_export_program_in_fp16_is_right_where_the_squares_of_grn_overflow() -> None:
    network = for_export(trained_network(2))
    with torch.no_grad():
        for stage in network.stages:
            for block in stage:  # type: ignore[attr-defined]
                # relu passes a gain on, and GRN divides by the mean of norms: only pwconv2 sees it
                block.activation = "relu"
                block.pwconv1.weight *= 1000.0
                block.pwconv1.bias *= 1000.0
                block.pwconv2.weight /= 1000.0
    images = torch.from_numpy(wave_images(8, seed=3)[0])
    inputs: list[Tensor] = []
    for module in network.modules():
        if type(module).__name__ == "GRN":
            module.register_forward_hook(lambda *call: inputs.append(call[1][0]))
    with torch.no_grad():
        expected = network(images)
    assert max(x.square().sum(dim=(1, 2)).max() for x in inputs) > 65504
    found = run(export_program(network, precision="fp16", profile=Profile(1, 8, 8), image=IMAGE), images)
    assert (found - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


def test_as_half_pools_in_float32() -> None:
    network = ConvNeXt((1, 1, 1, 1), (8, 8, 8, 8), num_classes=2, head_norm_first=True).eval()
    pooled: list[Tensor] = []
    half = as_half(network)
    half.head.register_forward_hook(lambda *call: pooled.append(call[1][0]))
    with torch.no_grad():
        logits = half(torch.randn(1, 3, 64, 64).half())
    assert [x.dtype for x in pooled] == [torch.float32]
    assert logits.dtype is torch.float16


def test_as_half_leaves_the_network_alone() -> None:
    network = small_network("v2")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    as_half(network)
    assert {name: tensor.dtype for name, tensor in network.state_dict().items()} == dict.fromkeys(before, torch.float32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_as_half_raises_when_a_weight_is_too_large_for_float16() -> None:
    network = small_network("v1")
    with torch.no_grad():
        network.head.weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"^'head\.1\.weight'[^\n]*65504[^\n]*fp32[^\n]*$"):
        as_half(network)


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("optimal", slow_except((2,), (1, 2, 4)))
def test_export_program_takes_any_batch_of_the_profile(batch: int, optimal: int) -> None:
    network = head_norm_first()
    images = torch.randn(batch, *IMAGE)
    program = export_program(network, precision="fp32", profile=Profile(1, optimal, 4), image=IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(run(program, images), network(images), rtol=1e-4, atol=1e-5)


def test_export_program_takes_no_batch_beyond_the_profile() -> None:
    program = export_program(head_norm_first(), precision="fp32", profile=PROFILE, image=IMAGE)
    with pytest.raises(AssertionError, match="Guard failed"):
        run(program, torch.zeros(5, *IMAGE))


def test_export_program_fixes_the_batch_where_there_is_one() -> None:
    program = export_program(head_norm_first(), precision="fp16", profile=Profile(1, 1, 1), image=IMAGE)
    assert run(program, torch.zeros(1, *IMAGE)).shape == (1, CLASSES)
    with pytest.raises(AssertionError, match="Guard failed"):
        run(program, torch.zeros(2, *IMAGE))


def test_export_program_raises_one_line_when_the_images_are_too_small() -> None:
    with pytest.raises(ExportError, match=r"^torch\.export\.export failed: [^\n]+$"):
        export_program(head_norm_first(), precision="fp32", profile=PROFILE, image=(3, 2, 2))
