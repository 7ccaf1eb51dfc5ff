"""Safetensors files, headers of this tool and config files beside weights that are damaged or lie."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from convnext_deploy.artifacts.spec import Preprocess, file_header
from convnext_deploy.models.checkpoints.safe_reader import METADATA_KEY, save_state
from tests.models.bad_files import SPEC, Bad, good_state, raw

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(header: object, data: bytes = bytes(16)) -> Callable[[Path], Path]:
    """Make a safetensors file of any header: JSON, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(struct.pack("<Q", len(text)) + text + data, "bad.safetensors")


def entry(**changes: object) -> Callable[[Path], Path]:
    return safetensors({"w": {**F32, **changes}})


def saved(**tensors: torch.Tensor) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        changes = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
        save_file({**good_state(), **changes}, folder / "bad.safetensors")
        return folder / "bad.safetensors"

    return make


DUPLICATED = (
    b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
)

SAFETENSORS = [
    Bad("header of 100 GB", raw(struct.pack("<Q", 10**11) + b"{}", "bad.safetensors"), "header of 100000000000 bytes"),
    Bad("header of 2**64", raw(b"\xff" * 8 + b"{}", "bad.safetensors"), "header of 18446744073709551615 bytes"),
    Bad("header beyond the file", raw(struct.pack("<Q", 50) + b"{}", "bad.safetensors"), "header of 50 bytes in a file of 10"),
    Bad("seven bytes", raw(b"1234567", "bad.safetensors"), "not a readable safetensors"),
    Bad("header of nothing", safetensors(b""), "not a readable safetensors"),
    Bad("header is no JSON", safetensors(b"{this is no JSON}"), "not a readable safetensors"),
    Bad("header is a list", safetensors([F32]), "not a readable safetensors"),
    Bad("header is no text", safetensors(b'{"\xff\xfe": 1}'), "not a readable safetensors"),
    Bad("header is deep", safetensors(b'{"w":' + b"[" * 100_000), "not a readable safetensors"),
    Bad("header of spaces", safetensors(b" " * 1000), "not a readable safetensors"),
    Bad("weights of torch.save", raw(b"PK\3\4" + bytes(30), "bad.safetensors"), "is a file of torch.save by its content"),
    Bad("no tensors", safetensors({}, b""), "holds no state dict"),
    Bad("offsets beyond the file", entry(data_offsets=[0, 8_000_000], shape=[2_000_000]), "not a readable safetensors"),
    Bad("negative offsets", entry(data_offsets=[-8, 0]), "not a readable safetensors"),
    Bad("reversed offsets", entry(data_offsets=[8, 0]), "not a readable safetensors"),
    Bad("overlapping offsets", safetensors({"v": F32, "w": F32}), "not a readable safetensors"),
    Bad("hole", safetensors({"w": {**F32, "data_offsets": [8, 16]}}), "not a readable safetensors"),
    Bad("bytes left over", safetensors({"w": F32}, bytes(100)), "not a readable safetensors"),
    Bad("duplicated keys", safetensors(DUPLICATED), "not a readable safetensors"),
    Bad("unknown dtype", entry(dtype="F31"), "not a readable safetensors"),
    Bad("dtype is a number", entry(dtype=32), "not a readable safetensors"),
    Bad("shape of another size", entry(shape=[3]), "not a readable safetensors"),
    Bad("shape that overflows", entry(shape=[2**40, 2**40, 2**40]), "not a readable safetensors"),
    Bad("negative shape", entry(shape=[-2]), "not a readable safetensors"),
    Bad("shape of text", entry(shape="2"), "not a readable safetensors"),
    Bad("metadata of numbers", safetensors({"__metadata__": {"a": 1}, "w": F32}, bytes(8)), "not a readable safetensors"),
    Bad("entry of nothing", safetensors({"w": {}}), "not a readable safetensors"),
    Bad("line break in name", safetensors({"a\nb": F32}, bytes(8)), "bad.safetensors"),
    Bad("complex in safetensors", saved(head__bias=torch.ones(10, dtype=torch.complex64)), "complex tensor"),
    Bad("4-bit floats", saved(head__bias=torch.zeros(10, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)), "'head.bias'"),
    Bad("nan in safetensors", saved(head__bias=torch.full((10,), float("nan"))), "not finite"),
]  # fmt: skip

HEADER = file_header(SPEC, Preprocess(32, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3), None, "fp32")


def header(content: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        save_file(good_state(), folder / "bad.safetensors", metadata={METADATA_KEY: text})
        return folder / "bad.safetensors"

    return make


def model(**changes: object) -> Callable[[Path], Path]:
    return header({**HEADER, "model": {**dataclasses.asdict(SPEC), **changes}})


def preprocess(**changes: object) -> Callable[[Path], Path]:
    return header({**HEADER, "preprocess": {**HEADER["preprocess"], **changes}})


MODEL_VALUES: dict[str, tuple[object, ...]] = {
    "variant": (5, None, [], {}),
    "num_classes": ("ten", 2.5, None, -3, 10**12, 10**30, [10]),
    "in_channels": ("three", 0, -1, 10**12, None),
    "patch_size": ("four", 0, -4, 10**12, 4.0),
    "head_hidden_size": ("wide", -1, 10**12, 2.5),
    "activation": ("nonsense", 3, ["gelu"]),
    "head_activation": ("nonsense", None),
    "norm_eps": ("small", float("nan"), -1.0, []),
    "head_norm_eps": ("small", float("nan"), -1.0),
    "unknown_field": (1,),
}
PREPROCESS_VALUES: dict[str, tuple[object, ...]] = {
    "image_size": ("large", 0, -32, 10**9, 2.5, None),
    "crop_pct": ("all", 0, -1.0, float("nan"), 1e-12),
    "interpolation": ("nonsense", 3, []),
    "mean": ([0.5], "abc", None, [None] * 3, [float("nan")] * 3),
    "std": ([0.0] * 3, [0.5], 7, [float("nan")] * 3),
    "crop_mode": ("nonsense", None),
}
HEADER_VALUES: dict[str, tuple[object, ...]] = {
    "model": ([], "tiny", None, 3),
    "preprocess": ([], None),
    "class_names": (7, ["a"] * 3, [1, None] * 5),
    "precision": ([], 7),
    "details": (
        [],
        "x",
        {"target": 7},
        {"target": "tensorrt", "sites": []},
        {"target": "tensorrt", "sites": {"head": 1}},
    ),
}
HEADERS = [
    Bad("no JSON in own header", header("{"), "not a readable safetensors"),
    Bad("own header lacks everything", header({"a": 1}), "damaged header"),
    Bad("header of another variant", model(variant="convnext_tiny"), "the network needs"),
    Bad("header of no variant", model(variant="resnet50"), "resnet50"),
    *(
        Bad(f"{field} {value!r}", model(**{field: value}), "bad.safetensors")
        for field, values in MODEL_VALUES.items()
        for value in values
    ),
    *(
        Bad(f"{field} {value!r}", preprocess(**{field: value}), "bad.safetensors")
        for field, values in PREPROCESS_VALUES.items()
        for value in values
    ),
    *(
        Bad(f"header with {field} {value!r}", header({**HEADER, field: value}), "bad.safetensors")
        for field, values in HEADER_VALUES.items()
        for value in values
    ),
    Bad("unknown target", header({**HEADER, "details": {"target": "nonsense"}}), "target = 'nonsense' is unknown"),
]


def config(content: object, processor: object = None) -> Callable[[Path], Path]:
    """Make a folder of good weights with a config file, and with a preprocessor's if there is one."""

    def make(folder: Path) -> Path:
        place = folder / "bad"
        place.mkdir()
        save_state(place / "model.safetensors", good_state(), {})
        for name, found in (("config.json", content), ("preprocessor_config.json", processor)):
            if found is not None:
                (place / name).write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
        return place

    return make


def timm(cfg: object = None, **changes: object) -> Callable[[Path], Path]:
    usual = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    cfg = {**usual, **cfg} if isinstance(cfg, dict) else usual if cfg is None else cfg
    return config({"architecture": "test_convnext", "pretrained_cfg": cfg, **changes})


def transformers(processor: object, **changes: object) -> Callable[[Path], Path]:
    usual = {"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_pct": 1.0}
    found = {**usual, **processor} if isinstance(processor, dict) else processor
    return config({"model_type": "convnext", **changes}, found)


INFINITE = b'{"architecture": "a", "input_size": [3, 1e400, 1e400], "mean": [1, 1, 1], "std": [1, 1, 1]}'
HUGE = b"9" * 10_000
TIMM_VALUES: tuple[object, ...] = (
        [], "x",
        {"input_size": [3, 32]}, {"input_size": "abc"}, {"input_size": "224"}, {"input_size": [3, 6.4, 6.4]}, {"input_size": None},
        {"crop_pct": 0}, {"crop_pct": "x"}, {"crop_pct": float("nan")}, {"crop_pct": 1e-300}, {"std": [0.0] * 3}, {"std": "abc"},
        {"std": [float("nan")] * 3}, {"mean": [None] * 3}, {"mean": [float("inf")] * 3}, {"crop_mode": "nonsense"},
        {"crop_mode": []},
)  # fmt: skip
PROCESSOR_VALUES: tuple[object, ...] = (
        [], b"{", {"size": "x"}, {"size": 0}, {"size": -3}, {"size": {}}, {"size": 10**9},
        {"crop_pct": -1}, {"image_std": [0, 0, 0]}, {"image_mean": 7}, {"resample": []}, {"rescale_factor": 0},
        {"rescale_factor": "x"}, {"image_std": [float("nan")] * 3},
)  # fmt: skip
CONFIGS = [
    Bad("config is no JSON", config(b"{"), "config.json"),
    Bad("config is a list", config([1]), "holds a list"),
    Bad("config is deep", config(b"[" * 200_000), "config.json"),
    Bad("config is no text", config(b"\xff\xfe\x00"), "config.json"),
    Bad("config of a huge number", config(b'{"architecture": "a", "num_classes": ' + HUGE + b"}"), "config.json"),
    Bad("config asks for a huge image", timm({"input_size": [3, 10**9, 10**9]}), "config.json"),
    Bad("config asks for an infinite image", config(INFINITE), "config.json"),
    *(Bad(f"timm {c!r}", timm(c), "config.json") for c in TIMM_VALUES),
    *(Bad(f"timm with {key} {value!r}", timm(None, **{key: value}), "config.json") for key, value in (
        ("model_args", [1]), ("model_args", {"act_layer": "nonsense"}), ("model_args", {"act_layer": []}),
        ("model_args", {"norm_eps": "x"}), ("model_args", {"norm_eps": float("nan")}), ("model_args", {"norm_eps": 10**400}),
        ("model_args", {"attention": True}), ("global_pool", "max"), ("label_names", 7), ("label_names", {"x": "y"}),
    )),
    *(Bad(f"transformers {c!r}", transformers(c), "config.json") for c in PROCESSOR_VALUES),
    *(Bad(f"transformers with {key} {value!r}", transformers({}, **{key: value}), "config.json") for key, value in (
        ("hidden_act", "nonsense"), ("hidden_act", 7), ("layer_norm_eps", "x"), ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", -1.0), ("layer_norm_eps", 10**400), ("id2label", [1, 2]), ("id2label", {"x": "y"}),
    )),
]  # fmt: skip
