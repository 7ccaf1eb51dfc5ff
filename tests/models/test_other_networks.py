"""Files of other networks and of other libraries end in one line that names them, or one of their keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from convnext_deploy.pipeline.open_artifact import open_input
from tests.models.conftest import refusal
from tests.models.test_wrappers import torchvision_network
from tests.shared import heavy_except

TIMM = {
    "vit_tiny_patch16_224": "a vision transformer",
    "deit3_small_patch16_224": "a vision transformer",
    "beit_base_patch16_224": "a vision transformer",
    "eva02_tiny_patch14_224": "a vision transformer",
    "swin_tiny_patch4_window7_224": "a Swin transformer",
    "swinv2_tiny_window8_256": "transformer",
    "resnet50": "a ResNet",
    "resnet10t": "a ResNet",
    "wide_resnet50_2": "a ResNet",
    "densenet121": "a DenseNet",
    "efficientnet_b0": "an EfficientNet or MobileNet",
    "mobilenetv3_small_100": "an EfficientNet or MobileNet",
    "regnetx_002": "a RegNet",
    "poolformer_s12": "MetaFormer",
    "convformer_s18": "MetaFormer",
    "maxvit_tiny_tf_224": "a MaxViT",
    "convmixer_768_32": "it has no 'stages.0.0.dwconv.weight'",
    "mixer_s32_224": "an MLP-Mixer",
    "fastvit_t8": "MetaFormer",
    "repvgg_a0": "stem.",
    "hrnet_w18_small": "a ResNet",
    "xception41": "stem.0.conv.weight",
    "mobilevit_xxs": "stem.conv.weight",
}
TORCHVISION = {
    "resnet18": "a ResNet",
    "mobilenet_v2": "of torchvision",
    "efficientnet_b0": "of torchvision",
    "vgg11": "of torchvision",
    "alexnet": "of torchvision",
    "regnet_x_400mf": "a RegNet",
    "vit_b_16": "a vision transformer",
    "swin_t": "a Swin transformer",
    "densenet121": "a DenseNet",
    "squeezenet1_0": "of torchvision",
}
EMPTY = torch.zeros(0)
TRANSFORMERS = {
    "ViT": "a vision transformer",
    "Swin": "transformer",
    "ResNet": "a ResNet",
    "Dinov2": "a vision transformer",
}


def keys_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: torch.zeros(1) for key in network.state_dict()}


def check(state: object, says: str, folder: Path) -> None:
    torch.save(state, folder / "w.pth")
    message = refusal(lambda: open_input(folder / "w.pth"))
    assert "is not a ConvNeXt checkpoint" in message
    assert says in message


QUICK = (
    "vit_tiny_patch16_224",
    "resnet10t",
    "mobilenetv3_small_100",
    "convmixer_768_32",
    "resnet18",
    "squeezenet1_0",
    "ViT",
)


@pytest.mark.parametrize("name", heavy_except(QUICK, TIMM))
def test_networks_of_timm_are_named(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    check({"state_dict": keys_of(network)}, TIMM[name], tmp_path)


@pytest.mark.parametrize("name", heavy_except(QUICK, TORCHVISION))
def test_networks_of_torchvision_are_named(name: str, tmp_path: Path) -> None:
    network = torchvision.models.get_model(name)
    check({"model": keys_of(network)}, TORCHVISION[name], tmp_path)


@pytest.mark.parametrize("kind", heavy_except(QUICK, TRANSFORMERS))
def test_networks_of_transformers_are_named(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")()
    with torch.device("meta"):
        network = getattr(transformers, f"{kind}ForImageClassification")(config)
    check(keys_of(network), TRANSFORMERS[kind], tmp_path)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("encoder.stages.0.0.dwconv.kernel", "mask_token", "decoder.0.dwconv.weight"), "the FCMAE pre-training"),
        (("model.0.conv.weight", "model.1.cv1.conv.weight"), "a YOLO of Ultralytics"),
        (("base_model.model.stem.lora_A.weight",), "merge it with its base first"),
        (("model.layers.0.self_attn.q_proj.weight",), "a language model"),
        (("a.weight", "b.weight", "c", "d"), "its first keys are a.weight, b.weight, c"),
    ],
)
def test_files_of_other_kinds_are_named(keys: tuple[str, ...], says: str, tmp_path: Path) -> None:
    check(dict.fromkeys(keys, torch.zeros(1)), says, tmp_path)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"epoch": 1, "net": {"module.layer1.0.conv1.weight": torch.zeros(1)}}, "a ResNet"),
        ({"a": {"b": [{"encoder.stages.0.0.dwconv.kernel": torch.zeros(1)}]}}, "the FCMAE pre-training"),
        ({"model": {"_fsdp_wrapped_module._flat_param": torch.zeros(9)}}, "FSDP's flat shards; save it with StateDictType.FULL"),
        ({"optimizer_state_dict": {"zero_stage": 2, "fp32": [torch.zeros(9)]}}, "one part of DeepSpeed's ZeRO"),
        ({"module": {"stem.0.weight": EMPTY, "stages.0.blocks.0.conv_dw.weight": EMPTY}, "param_shapes": 1}, "ZeRO"),
    ],
)  # fmt: skip
def test_what_is_in_tables_is_named_too(state: object, says: str, tmp_path: Path) -> None:
    check(state, says, tmp_path)


@pytest.mark.parametrize(
    ("part", "put", "says"),
    [
        ("mlp.fc1.weight", "mlp.fc1.lora_A.weight", "PEFT's adapters, not merged; merge them first"),
        ("mlp.fc1.weight", "mlp.fc1.weight_orig", "the masks of torch.nn.utils.prune; make them permanent first"),
        ("conv_dw.weight", "conv_dw.parametrizations.weight.original0", "parametrizations; remove them first"),
        ("conv_dw.weight", "conv_dw.weight_fake_quant.scale", "the quantizers of another tool; give the float weights"),
    ],
)
def test_what_was_put_into_a_convnext_is_named(part: str, put: str, says: str, tmp_path: Path) -> None:
    state = timm.create_model("test_convnext2").state_dict()
    check(
        {key.replace(f"stages.2.blocks.0.{part}", f"stages.2.blocks.0.{put}"): v for key, v in state.items()},
        says,
        tmp_path,
    )


def test_features_only_of_timm_is_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = timm.create_model("test_convnext2", features_only=True)
    check(keys_of(network), "a ConvNeXt of timm with features_only", tmp_path)


def test_fastai_is_named(tmp_path: Path) -> None:
    body = {
        f"0.model.{key}": value
        for key, value in timm.create_model("test_convnext2", num_classes=0).state_dict().items()
    }
    torch.save(
        {"model": {**body, "1.2.weight": torch.ones(1024), "1.4.weight": torch.ones(512, 1024)}}, tmp_path / "w.pth"
    )
    assert "is a network of fastai, whose head pools and normalizes in its own way ('1.2.weight')" in refusal(
        lambda: open_input(tmp_path / "w.pth")
    )


def test_fastai_of_torchvision_is_named(tmp_path: Path) -> None:
    body = {f"0.0.{key.removeprefix('features.')}": value for key, value in torchvision_network().state_dict().items()}
    torch.save({"model": {**body, "1.2.weight": torch.ones(640)}, "opt": {}}, tmp_path / "w.pth")
    assert "is a network of fastai, whose head pools" in refusal(lambda: open_input(tmp_path / "w.pth"))


def test_a_network_with_the_names_of_a_convnext_is_no_convnext(tmp_path: Path) -> None:
    torch.save(timm.create_model("edgenext_xx_small").state_dict(), tmp_path / "w.pth")
    assert "w.pth" in refusal(lambda: open_input(tmp_path / "w.pth"))
