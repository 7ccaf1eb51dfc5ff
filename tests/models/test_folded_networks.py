"""A folded network is a network like any other: saved, loaded, converted, quantized, trained and exported."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import Dialect
from convnext_deploy.exporters.onnx.export import export_network
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.models.checkpoints.key_maps import from_native
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.checkpoints.state_dict import infer_model_spec, load_checkpoint, load_into
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.models.identities import drop_identities, identity_parameters
from convnext_deploy.models.variants import VARIANTS, build_model
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, quantized_layers
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.exporters.layer_by_layer import check_every_layer
from tests.models.conftest import assert_equal_logits, assert_equal_states
from tests.models.test_fold import CLASSES, SPECS, few_blocks, images_of, moved, network_of, preprocess_of
from tests.models.test_parity import create_timm, create_transformers
from tests.shared import slow_except

KINDS: list[Any] = ["test_convnext", "convnext_atto_ols", "convnext_atto_rms", "convnext_zepto_rms", "convnextv2_atto"]
KINDS = [*KINDS, "hidden", "grey-v2-patch-2", pytest.param("convnext_tiny_hnf", marks=pytest.mark.heavy)]


def folded_network(name: str) -> ConvNeXt:
    return fold(network_of(SPECS[name]), preprocess_of(SPECS[name])).network


def run(graph: onnx.ModelProto, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def operators(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


@pytest.mark.parametrize("name", KINDS)
def test_folded_weights_are_saved_and_loaded_as_those_of_their_spec(name: str, tmp_path: Path) -> None:
    spec, folded = SPECS[name], folded_network(name)
    path = tmp_path / "model.safetensors"
    save_state(path, folded.state_dict(), {})
    state = load_checkpoint(path).state
    if "patch-2" not in name:
        with few_blocks(spec.variant):
            assert infer_model_spec(state, path).variant == spec.variant
    with few_blocks(spec.variant):
        loaded = build_model(spec).eval()
    load_into(loaded, state, "folded")
    assert_equal_states(loaded.state_dict(), folded.state_dict())
    assert moved(network_of(spec), loaded, images_of(spec)) <= 1e-5


@pytest.mark.parametrize(
    "name", ["test_convnext", "convnext_atto", "convnext_zepto_rms_ols", "convnextv2_atto", "hidden-hnf"]
)
def test_timm_computes_the_same_with_folded_weights(name: str) -> None:
    spec = SPECS[name]
    if name == "hidden-hnf":
        spec = ModelSpec("convnext_tiny_hnf", CLASSES)
    network = network_of(spec)
    with few_blocks(spec.variant) as depths:
        reference = create_timm(spec.variant, depths=depths)
    state = from_native(fold(network, preprocess_of(spec)).network.state_dict(), spec, "timm")
    reference.load_state_dict(state, assign=True)
    assert_equal_logits(network, reference.eval())


def test_timm_reads_folded_weights_in_the_official_form() -> None:
    import timm

    spec = ModelSpec("convnext_atto", CLASSES)
    network = network_of(spec)
    official = from_native(fold(network, preprocess_of(spec)).network.state_dict(), spec, "facebook")
    with few_blocks(spec.variant) as depths:
        reference = create_timm(spec.variant, depths=depths)
    reference.load_state_dict(timm.models.convnext.checkpoint_filter_fn(official, reference), assign=True)
    assert_equal_logits(network, reference.eval())


def test_torchvision_computes_the_same_with_folded_weights() -> None:
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

    spec = ModelSpec("convnext_tiny", CLASSES)
    network = network_of(spec)
    with few_blocks(spec.variant) as depths, torch.device("meta"):
        widths = (*VARIANTS[spec.variant].dims, None)
        stages = [CNBlockConfig(*stage) for stage in zip(widths, widths[1:], depths, strict=False)]
        reference = TorchvisionConvNeXt(stages, num_classes=CLASSES)
    state = from_native(fold(network, preprocess_of(spec)).network.state_dict(), spec, "torchvision")
    reference.load_state_dict(state, assign=True)
    assert_equal_logits(network, reference.eval())


@pytest.mark.parametrize("variant", ["convnext_atto", "convnextv2_atto"])
def test_transformers_computes_the_same_with_folded_weights(variant: str) -> None:
    spec = ModelSpec(variant, CLASSES, head_norm_eps=1e-12)
    dialect: Dialect = "huggingface"
    network = network_of(spec)
    with few_blocks(variant):
        reference = create_transformers(spec)
    state = from_native(fold(network, preprocess_of(spec)).network.state_dict(), spec, dialect)
    reference.load_state_dict(state, assign=True)
    reference.eval()
    assert_equal_logits(network, lambda images: reference(images).logits)


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_drop_identities_changes_no_bit(name: str) -> None:
    folded = folded_network(name)
    images = images_of(SPECS[name])
    expected, neutral = folded(images), identity_parameters(folded)
    norms = {key for key in neutral if key.endswith("weight") and "rms" not in name}
    before = set(folded.state_dict())
    assert drop_identities(folded) is folded
    assert torch.equal(folded(images), expected)
    assert set(folded.state_dict()) == before - (set(neutral) - norms)
    assert set(identity_parameters(folded)) == norms


@torch.inference_mode()
def test_drop_identities_leaves_alone_what_is_not_neutral() -> None:
    network = network_of(SPECS["test_convnext"])
    before = set(network.state_dict())
    assert set(drop_identities(network).state_dict()) == before
    network.stages[0][0].gamma.fill_(1)  # type: ignore[index]  # Sequential; v1 has it
    network.stages[1][0].gamma.fill_(1)[3] = 1 + 2**-20  # type: ignore[index]
    assert set(drop_identities(network).state_dict()) == before - {"stages.0.0.gamma"}


@torch.no_grad()
def test_drop_identities_sees_what_smoothing_wrote() -> None:
    folded = folded_network("test_convnext")
    block = folded.stages[0][0]  # type: ignore[index]  # Sequential
    images = images_of(SPECS["test_convnext"])
    expected = folded(images)
    scale = torch.rand(len(block.norm.weight), generator=torch.Generator().manual_seed(0)) + 0.5
    block.norm.weight /= scale
    block.pwconv1.weight *= scale
    found = drop_identities(folded)(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", slow_except(("test_convnext",), ("test_convnext", "convnext_zepto_rms", "convnextv2_atto"))
)
def test_folded_graph_is_smaller_and_computes_the_same(name: str) -> None:
    spec = SPECS[name]
    network, images = network_of(spec), images_of(spec)
    result = fold(network, preprocess_of(spec))
    before = export_float(network, spec.in_channels, 64)
    after = export_float(drop_identities(result.network), spec.in_channels, 64)
    blocks = sum(step.target.endswith("pwconv1") for step in result.certificate.folded)
    affine = sum(step.rewrite == "norm_affine" for step in result.certificate.folded)
    fewer = operators(before) - operators(after)
    # LayerNormalization has its affine inside, other norms are made of nodes
    expected = {"test_convnext": {"Mul": blocks}, "convnext_zepto_rms": {"Mul": blocks + affine}}
    assert dict(fewer) == expected.get(name, {"Add": blocks})
    assert not operators(after) - operators(before)
    norms = [node for node in after.graph.node if node.op_type == "LayerNormalization"]
    assert sum(len(node.input) == 2 for node in norms) == (0 if name == "convnext_zepto_rms" else affine)
    onnx.checker.check_model(after, full_check=True)
    with torch.no_grad():
        logits = network(images)
    assert (run(after, images) - logits).abs().max() <= 1e-5 * logits.abs().max()


@pytest.mark.heavy
@pytest.mark.parametrize("target", slow_except(("onnxruntime",), ("tensorrt", "onnxruntime")))
@pytest.mark.parametrize("name", slow_except(("convnextv2_atto",), ("test_convnext", "convnextv2_atto")))
def test_folded_network_is_quantized_and_exported(name: str, target: str) -> None:
    spec, scheme = SPECS[name], resolve_scheme(target)
    network, images = network_of(spec), images_of(spec, count=16)
    folded = prepare(fold(network, preprocess_of(spec)).network, scheme)
    names = {site for site, _ in quantized_layers(folded)}
    assert names == {site for site, _ in quantized_layers(prepare(copy.deepcopy(network), scheme))}
    calibrate(folded, [images], "minmax")
    graph = export_network(folded, spec.in_channels, 64).graph
    with torch.no_grad():
        quantized, exact = folded(images), network(images)
    assert (quantized - exact).norm() <= 0.1 * exact.norm()
    check_every_layer(folded, graph, images.numpy())


@pytest.mark.parametrize("name", ["test_convnext", "convnextv2_atto", "convnext_atto_rms"])
def test_training_with_neutral_parameters_frozen_stays_folded(name: str) -> None:
    folded = folded_network(name).train()
    neutral = identity_parameters(folded)
    for key in neutral:
        folded.get_parameter(key).requires_grad_(False)
    trained = [parameter for parameter in folded.parameters() if parameter.requires_grad]
    before = [parameter.clone() for parameter in trained]
    folded(images_of(SPECS[name])).square().mean().backward()
    torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1).step()
    assert identity_parameters(folded) == neutral
    assert not any(torch.equal(old, new) for old, new in zip(before, trained, strict=True))
