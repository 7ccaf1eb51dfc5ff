"""Name the network that a file holds in place of a ConvNeXt that is read here, by the names of its weights."""

import re
from collections.abc import Iterable

_SIGNS: tuple[tuple[str, str], ...] = (
    (
        r"dwconv\.kernel",
        "the FCMAE pre-training of ConvNeXt V2, with sparse convolutions; give the weights of its dense encoder",
    ),
    (
        r"stages_\d\.blocks\.0\.conv_dw\.",
        "a ConvNeXt of timm with features_only, without last norm and head; give the whole network",
    ),
    (r"^blocks\.0\.dwconv\.weight", "the isotropic ConvNeXt"),
    (r"(^|\.)cls_token", "a vision transformer"),
    (r"attn_block\.|attn_grid\.|token_mixer", "a MaxViT, MetaFormer or another network of timm"),
    (r"relative_position_bias_table", "a Swin transformer"),
    (r"mlp_tokens", "an MLP-Mixer"),
    (r"patch_embed\.proj\.weight|vision_model\.embeddings|conv_proj\.weight", "a vision transformer"),
    (r"embeddings\.cls_token|vit\.encoder|encoder\.layer\.0\.attention", "a vision transformer"),
    (r"(^|\.)layer1\.0\.conv\d\.weight|resnet\.encoder", "a ResNet"),
    (r"denseblock1\.", "a DenseNet"),
    (r"^(model\.)?\d+\.(conv\.weight|cv\d\.)", "a YOLO of Ultralytics"),
    (r"conv_stem\.weight", "an EfficientNet or MobileNet"),
    (r"features\.0\.0\.weight", "a MobileNet, an EfficientNet or another network of torchvision"),
    (r"features\.0\.weight", "a VGG, an AlexNet or another network of torchvision"),
    (r"trunk_output\.|regnet|(^|\.)s1\.b1\.", "a RegNet"),
    (r"stages\.0\.blocks\.0\.(mlp|norm1|conv)", "a MetaFormer or another network of timm"),
    (r"lora_[AB]\.", "the difference of weights that PEFT trains, and no network; merge it with its base first"),
    (r"(^|\.)embed_tokens|transformer\.h\.0|(^|\.)layers\.0\.self_attn", "a language model"),
)
"""What some of the names of a network's weights look like → what it is, in the order of asking."""


_PARTS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)_?flat_param$", "FSDP's flat shards; save it with StateDictType.FULL_STATE_DICT"),
    (r"^(param_shapes|zero_stage)$", "one part of DeepSpeed's ZeRO; join them with the zero_to_fp32.py beside it"),
)
_IN_CONVNEXT = re.compile(r"(^|\.)(conv_dw|dwconv|depthwise_conv|block\.0)\.")
_CHANGES: tuple[tuple[str, str], ...] = (
    (r"\.lora_[AB]\.|\.base_layer\.", "PEFT's adapters, not merged; merge them first, model.merge_and_unload()"),
    (
        r"\.weight_(orig|mask)$",
        "the masks of torch.nn.utils.prune; make them permanent first, prune.remove(module, 'weight')",
    ),
    (
        r"\.parametrizations\.",
        "parametrizations; remove them first, parametrize.remove_parametrizations(module, 'weight')",
    ),
    (r"\.weight_[gv]$", "torch.nn.utils.weight_norm; remove it first, remove_weight_norm(module)"),
    (
        r"\.(weight_fake_quant|activation_post_process|_packed_params)(\.|$)|\w_quantizer\.(?!(log2_scale|zero_point|zero_point_shift)$)",
        "the quantizers of another tool; give the float weights that it started from",
    ),
)
"""What some names look like → what stands in the place of plain weights, and how to save those: of parts, and in a ConvNeXt."""


def name_change(keys: Iterable[str]) -> str | None:
    """Say what stands in the place of a ConvNeXt's plain weights, one of the names, and what to do; None: nothing that is known."""
    keys = list(keys)
    for pattern, change in (*_PARTS, *(_CHANGES if any(map(_IN_CONVNEXT.search, keys)) else ())):
        found = next((key for key in keys if re.search(pattern, key)), None)
        if found is not None:
            return f"'{found[:80]}' is of {change}"
    return None


def name_network(keys: Iterable[str]) -> str | None:
    """Return what the names of weights are those of, and one of them, as the end of a sentence; None if that is not known."""
    keys = list(keys)
    for pattern, network in _SIGNS:
        found = next((key for key in keys if re.search(pattern, key)), None)
        if found is not None:
            return f"{network} (it has '{found}')"
    return None
