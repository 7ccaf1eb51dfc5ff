"""What config files may say and what may be wrong with them: read as meant, or refused in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.hub_config import HubConfig, read_hub_config

SPEC = ModelSpec("convnext_atto", 3)
SETTINGS = {
    "input_size": [3, 160, 160],
    "crop_pct": 0.9,
    "interpolation": "bilinear",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}
EXPECTED = Preprocess(160, 0.9, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
IMAGENET = Preprocess(224, 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
PROCESSOR = {"size": {"shortest_edge": 224}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


def read(folder: Path, config: object, processor: object = None, spec: ModelSpec = SPEC) -> HubConfig | None:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    if processor is not None:
        text = processor if isinstance(processor, str) else json.dumps(processor)
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return read_hub_config(folder, spec)


def timm(**changes: Any) -> dict[str, Any]:
    """Return a config of timm; what `SETTINGS` has goes there, all else beside it."""
    inside = {**SETTINGS, **{key: value for key, value in changes.items() if key in (*SETTINGS, "crop_mode")}}
    outside = {key: value for key, value in changes.items() if key not in inside}
    return {"architecture": "convnext_atto", "num_classes": 3, "pretrained_cfg": inside, **outside}


def transformers(**changes: Any) -> dict[str, Any]:
    return {"model_type": "convnext", "architectures": ["ConvNextForImageClassification"], **changes}


def refusal(folder: Path, config: object, processor: object = None) -> str:
    with pytest.raises(CheckpointError) as error:
        read(folder, config, processor)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_read_hub_config_reads_the_old_flat_form_of_timm(tmp_path: Path) -> None:
    names = ["cat", "dog", "owl"]
    for key in ("label_names", "labels"):
        flat = {"architecture": "convnext_atto", "num_classes": 3, "num_features": 320, **SETTINGS, key: names}
        assert read(tmp_path, flat) == HubConfig(EXPECTED, ("cat", "dog", "owl"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog", "owl"], ("cat", "dog", "owl")),
        ({"0": "cat", "1": "dog", "2": "owl"}, ("cat", "dog", "owl")),
        ({"10": "owl", "2": "dog", "1": "cat"}, ("cat", "dog", "owl")),
        (["cat", "dog"], None),
        (["cat", "dog\nowl", "yak"], None),
        (["cat", " ", "owl"], None),
        (["cat", "\ud800", "owl"], None),
        ([], None),
        (None, None),
    ],
)
def test_read_hub_config_takes_class_names_that_are_as_many_as_the_classes(
    names: object, expected: tuple[str, ...] | None, tmp_path: Path
) -> None:
    beside = read(tmp_path, timm(label_names=names))
    assert beside == HubConfig(EXPECTED, expected)
    config = timm()
    config["pretrained_cfg"]["label_names"] = names
    assert read(tmp_path, config) == beside


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"crop_mode": "squash"}, Preprocess(160, 0.9, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash")),
        ({"interpolation": "bicubic"}, Preprocess(160, 0.9, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ({"interpolation": "random"}, Preprocess(160, 0.9, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ({"interpolation": "lanczos"}, Preprocess(160, 0.9, "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ({"mean": [0.5], "std": [0.25]}, Preprocess(160, 0.9, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))),
    ],
    ids=["squash", "bicubic", "random", "lanczos", "one-number"],
)
def test_read_hub_config_reads_the_evaluation_of_timm(
    changes: dict[str, Any], expected: Preprocess | None, tmp_path: Path
) -> None:
    assert read(tmp_path, timm(**changes)) == HubConfig(expected)


def test_images_that_are_not_square_are_read_from_both(tmp_path: Path) -> None:
    found = read(tmp_path, timm(input_size=[3, 160, 224]))
    assert found == HubConfig(replace(EXPECTED, image_size=(160, 224)))
    found = read(tmp_path, transformers(), {**PROCESSOR, "size": {"height": 96, "width": 64}})
    assert found is not None
    assert found.preprocess is not None
    assert (found.preprocess.sides, found.preprocess.crop_mode, found.preprocess.crop_pct) == ((96, 64), "squash", 1.0)


def test_read_hub_config_fills_in_the_defaults_of_timm(tmp_path: Path) -> None:
    settings_ = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    assert read(tmp_path, {"architecture": "convnext_atto", "pretrained_cfg": settings_}) == HubConfig(IMAGENET)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ({"act_layer": "gelu_tanh"}, {"activation": "gelu_tanh"}),
        ({"act_layer": "swish"}, {"activation": "silu"}),
        ({"norm_eps": 1e-5}, {"norm_eps": 1e-5}),
        ({"in_chans": 3, "patch_size": 4, "head_hidden_size": None, "drop_path_rate": 0.1, "global_pool": "avg"}, {}),
        (None, {}),
    ],
)
def test_read_hub_config_reads_the_arguments_of_timm(
    arguments: object, changes: dict[str, Any], tmp_path: Path
) -> None:
    assert read(tmp_path, timm(model_args=arguments)) == HubConfig(EXPECTED, None, changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"crop_mode": "border"}, "has crop_mode 'border'; known are 'center' and 'squash'"),
        ({"input_size": [3, 160, 0]}, "is damaged"),
        ({"global_pool": "max"}, "sets global_pool 'max', which this tool's ConvNeXt does not have"),
        ({"model_args": {"global_pool": "avgmax"}}, "sets global_pool 'avgmax'"),
        ({"model_args": {"act_layer": "mish"}}, "has act_layer 'mish'; known are gelu, gelu_tanh, silu"),
        ({"model_args": {"act_layer": None}}, "has act_layer None; known are"),
        ({"model_args": {"output_stride": 64}}, "sets output_stride 64; timm knows (32, 16, 8)"),
        ({"model_args": {"head_conv": 16}}, "sets model_args.head_conv, which this tool's ConvNeXt"),
        ({"model_args": {"conv_bias": False}}, "sets model_args.conv_bias"),
        ({"model_args": 5}, "is damaged"),
        ({"model_args": {"norm_eps": "small"}}, "is damaged"),
        ({"model_args": {"norm_eps": math.nan}}, "is damaged"),
        ({"model_args": {"norm_eps": -1.0}}, "is damaged"),
        ({"input_size": 224}, "is damaged"),
        ({"input_size": [3, 0, 0]}, "is damaged"),
        ({"input_size": [3, math.inf, math.inf]}, "is damaged"),
        ({"crop_pct": "0.9"}, "is damaged"),
        ({"crop_pct": 0}, "is damaged"),
        ({"crop_pct": 1.5}, "is damaged"),
        ({"std": [0.5, 0.0, 0.5]}, "is damaged"),
        ({"std": [math.nan, 0.5, 0.5]}, "is damaged"),
        ({"mean": ["a", "b", "c"]}, "is damaged"),
        ({"label_names": 3}, "is damaged"),
        ({"label_names": {"cat": 0}}, "is damaged"),
    ],
    ids=repr,
)
def test_read_hub_config_refuses_what_timm_has_and_this_tool_does_not(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert expected in refusal(tmp_path, timm(**changes))


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (None, None),
        ({"size": 224}, Preprocess(224, 0.875, "bicubic", (0.5,) * 3, (0.25,) * 3)),
        ({"size": 384}, Preprocess(384, 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3, "squash")),
        ({"size": 224, "crop_pct": None}, Preprocess(224, 0.875, "bicubic", (0.5,) * 3, (0.25,) * 3)),
        ({"size": {"height": 96, "width": 96}}, Preprocess(96, 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3, "squash")),
        ({"resample": 2}, Preprocess(224, 0.875, "bilinear", (0.5,) * 3, (0.25,) * 3)),
        ({"image_mean": [0.5], "image_std": [0.5]}, None),
    ],
    ids=["no-file", "int", "int-384", "crop-null", "height-width", "bilinear", "other-channels"],
)
def test_read_hub_config_reads_every_form_of_an_image_processor(
    processor: dict[str, Any] | None, expected: Preprocess | None, tmp_path: Path
) -> None:
    found = read(tmp_path, transformers(), None if processor is None else {**PROCESSOR, **processor})
    assert found == HubConfig(expected, None, {"head_norm_eps": 1e-12})


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({"hidden_act": "quick_gelu"}, {}, "has hidden_act 'quick_gelu'; known are gelu"),
        ({"hidden_act": 3}, {}, "has hidden_act 3; known are gelu"),
        ({"layer_norm_eps": "x"}, {}, "is damaged"),
        ({"id2label": ["cat", "dog", "owl"]}, {}, "is damaged"),
        ({"id2label": {"cat": "0"}}, {}, "is damaged"),
        ({}, {"size": {"height": 96}}, "has size {'height': 96}; expected a shortest_edge, or height and width"),
        ({}, {"size": {"longest_edge": 96}}, "expected a shortest_edge, or height and width"),
        (
            {},
            {"size": 96, "crop_size": {"height": 96, "width": 64}},
            "crops 96×64 pixels out of 96; expected squares, or no",
        ),
        ({}, {"size": "big"}, "is damaged"),
        ({}, {"size": math.inf}, "is damaged"),
        ({}, {"rescale_factor": 0}, "is damaged"),
        ({}, {"image_mean": None}, "is damaged"),
        ({}, {"image_std": [0.0, 0.5, 0.5]}, "is damaged"),
        ({}, {"crop_pct": -1}, "is damaged"),
    ],
    ids=repr,
)
def test_read_hub_config_refuses_what_transformers_has_and_this_tool_does_not(
    config: dict[str, Any], processor: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert expected in refusal(tmp_path, transformers(**config), {**PROCESSOR, **processor})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[1]", "holds a list; expected a JSON object"),
        ("null", "holds a NoneType; expected a JSON object"),
    ],
    ids=["empty", "cut", "deep", "list", "null"],
)
def test_read_hub_config_refuses_when_a_file_is_no_json_object(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path, text)
    assert expected in refusal(tmp_path, transformers(), text)


def test_read_hub_config_refuses_when_a_file_is_no_text_or_huge(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"architecture": "\xff"}')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        read_hub_config(tmp_path, SPEC)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**9)  # a hole, not a gigabyte
    with pytest.raises(CheckpointError, match="has 1000000000 bytes; expected a config file of a few thousand"):
        read_hub_config(tmp_path, SPEC)


@pytest.mark.parametrize("config", [{}, {"model_type": "resnet"}, {"model_type": ["convnext"]}, {"lora_alpha": 8}])
def test_read_hub_config_returns_none_when_the_config_is_of_another_tool(config: object, tmp_path: Path) -> None:
    assert read_hub_config(tmp_path, SPEC) is None
    assert read(tmp_path, config) is None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 999)
    | st.floats()
    | st.sampled_from(["avg", "gelu", "squash", "x", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "1", "x", "height"]), inner, max_size=3)
    ),
    max_leaves=4,
)
TIMM_KEYS = (
    *SETTINGS,
    "crop_mode",
    "label_names",
    "model_args",
    "global_pool",
    "pretrained_cfg",
    "act_layer",
    "norm_eps",
)
THEIR_KEYS = ("hidden_act", "layer_norm_eps", "id2label")
PROCESSOR_KEYS = (*PROCESSOR, "crop_pct", "resample", "rescale_factor", "do_normalize", "do_rescale")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_read_hub_config_reads_sound_settings_or_refuses_whatever_the_values(
    library: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    keys = TIMM_KEYS if library == "timm" else THEIR_KEYS
    config = {key: data.draw(VALUES) for key in data.draw(st.sets(st.sampled_from(keys), max_size=2))}
    places = data.draw(st.sets(st.sampled_from(PROCESSOR_KEYS), max_size=2))
    processor = {**PROCESSOR, **{key: data.draw(VALUES) for key in places}}
    try:
        found = read(folder, timm(**config) if library == "timm" else transformers(**config), processor)
    except CheckpointError as error:
        if "\n" in str(error):
            raise
        return
    assert found is not None
    assert all(value > 0 for key, value in found.changes.items() if key.endswith("eps"))
    assert found.class_names is None or len(found.class_names) == 3
    if found.preprocess is not None:
        p = found.preprocess
        assert (min(p.sides) >= 1, 0 < p.crop_pct <= 1, p.crop_mode in ("center", "squash")) == (True, True, True)
        assert all(math.isfinite(value) for value in (*p.mean, *p.std))
        assert min(p.std) > 0
