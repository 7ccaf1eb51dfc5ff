"""Give the weights of libraries that name them in their own way the names of the official repositories.

| library | its names |
|---|---|
| mmpretrain, `ConvNeXt` | `backbone.stages.0.0.depthwise_conv`, `backbone.norm3`, `head.fc` |
| transformers, `DINOv3ConvNextModel` | `stages.0.downsample_layers.0`, `stages.0.layers.0.depthwise_conv`, `layer_norm` |

`nn.Sequential(*network.children())` of timm and torchvision has numbers for the names of the parts. What is read and never written,
so one direction is enough.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_MMPRETRAIN = "stages.0.0.depthwise_conv.weight"
_DINOV3 = "stages.0.layers.0.depthwise_conv.weight"
# how the names begin that Sequential gives to the parts of a network, and what the library calls these
_CHILDREN: dict[str, dict[str, str]] = {
    "0.1.0.block.0.weight": {"0": "features", "2": "classifier"},
    "1.0.blocks.0.conv_dw.weight": {"0": "stem", "1": "stages", "2": "norm_pre", "3": "head"},
}
_LAYERS = (("depthwise_conv", "dwconv"), ("pointwise_conv", "pwconv"), ("layer_norm", "norm"))
_STAGE_DOWNSAMPLING = re.compile(r"stages\.(\d)\.downsample_layers\.")
_STAGE_LAYER = re.compile(r"stages\.(\d)\.layers\.")
# what torch.compile, FSDP and activation checkpointing put in where they wrapped a part of a network, and not the whole
_WRAPPED_PART = re.compile(
    r"((?:^|\.)(?:stem|stages|features|head|classifier|embeddings|encoder|\d+)\.)"
    r"(?:_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.)+"
)


def with_official_names(table: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """Return a table of tensors under the names of the official repositories, and whose names which prefix had.

    Names of other networks, and those that the libraries do not have, stay as they are.
    """
    table = _without_numbered_parts(_without_wrapped_parts(table))
    keys = [key for key in table if isinstance(key, str)]
    renamed: dict[Any, Any] = dict(table)
    libraries = {}
    for ending, library, rename in (
        (_MMPRETRAIN, "mmpretrain", _rename_mmpretrain),
        (_DINOV3, "transformers' DINOv3", _rename_dinov3),
    ):
        for prefix in prefixes_before(keys, ending):
            outer = prefix.removesuffix("backbone.") if library == "mmpretrain" else prefix.removesuffix("model.")
            libraries[outer] = library
            for key in keys:
                if key.startswith(outer) and key in renamed:
                    renamed[outer + rename(key.removeprefix(outer), prefix.removeprefix(outer))] = renamed.pop(key)
    return (renamed, libraries) if libraries else (table, {})


def _without_wrapped_parts(table: Mapping[Any, Any]) -> Mapping[Any, Any]:
    names = {key: _WRAPPED_PART.sub(r"\1", key) for key in table if isinstance(key, str)}
    if len(set(names.values())) < len(names) or all(key == name for key, name in names.items()):
        return table
    return {names.get(key, key): value for key, value in table.items()}


def _without_numbered_parts(table: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for ending, parts in _CHILDREN.items():
        for prefix in prefixes_before((key for key in table if isinstance(key, str)), ending):
            names = {}
            for key in table:
                part, dot, rest = key.removeprefix(prefix).partition(".") if isinstance(key, str) else ("", "", "")
                if dot and key.startswith(prefix) and part in parts:
                    names[key] = f"{prefix}{parts[part]}.{rest}"
            if not {*names.values()} & table.keys():
                table = {names.get(key, key): value for key, value in table.items()}
    return table


def prefixes_before(keys: Iterable[str], ending: str) -> list[str]:
    """Return what stands before the names that end so, where that is nothing or ends with a dot."""
    prefixes = [key.removesuffix(ending) for key in keys if key.endswith(ending)]
    return [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]


def _rename_layers(name: str) -> str:
    for theirs, ours in _LAYERS:
        name = name.replace(theirs, ours)
    return name


def _rename_mmpretrain(name: str, backbone: str) -> str:
    if name.startswith("head.fc."):
        return name.replace("head.fc.", "head.")
    name = name.removeprefix(backbone)
    return _rename_layers(re.sub(r"^norm3\.", "norm.", name))


def _rename_dinov3(name: str, encoder: str) -> str:
    name = name.removeprefix(encoder) if name.startswith(f"{encoder}stages.") else name
    name = _STAGE_DOWNSAMPLING.sub(r"downsample_layers.\1.", name)
    return _rename_layers(_STAGE_LAYER.sub(r"stages.\1.", name))
