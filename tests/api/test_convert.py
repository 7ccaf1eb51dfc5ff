"""`convert`: every dialect is loaded by the other library itself, computes the same, and reads back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.convnext import checkpoint_filter_fn
from torch import nn

from convnext_deploy.api.convert import Conversion, convert
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.config.choices import Dialect
from convnext_deploy.models.checkpoints.key_maps import DIALECTS
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.pipeline.open_artifact import open_input
from tests.shared import heavy_except
from tests.weights import (
    PREPROCESS,
    assert_equal_states,
    assert_same_logits,
    noise_images,
    random_network,
    write_weights,
)

CLASSES = ("red fox", "Größe", "crane", "crane", "owl")
"""Not plain ASCII, and one of them twice, as in ImageNet."""
ATTO, V2_ATTO = ModelSpec("convnext_atto", 5), ModelSpec("convnextv2_atto", 5)
CASES: list[tuple[Dialect, ModelSpec]] = [
    *((dialect, ATTO) for dialect in DIALECTS),
    *((dialect, V2_ATTO) for dialect in ("timm", "facebook", "huggingface")),
    ("timm", ModelSpec("convnext_atto_ols", 5)),
    ("timm", ModelSpec("convnext_zepto_rms", 5)),
    ("timm", ModelSpec("convnext_zepto_rms_ols", 5)),
    ("timm", ModelSpec("convnext_atto_rms", 5)),
    ("timm", ModelSpec("convnext_tiny_hnf", 5)),
    ("timm", ModelSpec("convnext_atto", 5, head_hidden_size=48)),
    ("timm", ModelSpec("convnext_atto", 5, in_channels=1)),
    ("timm", ModelSpec("convnext_atto", 5, activation="silu", norm_eps=1e-3)),
    ("timm", ModelSpec("test_convnext", 5)),
    ("timm", ModelSpec("test_convnext2", 5)),
    ("timm", ModelSpec("test_convnext3", 5, activation="gelu", norm_eps=1e-6)),
    ("torchvision", ModelSpec("convnext_tiny", 5)),
    ("facebook", ModelSpec("convnextv2_atto", 5, in_channels=1)),
    ("huggingface", ModelSpec("convnext_atto", 5, in_channels=1, head_norm_eps=1e-12)),
    ("huggingface", ModelSpec("convnextv2_atto", 5, patch_size=8, activation="gelu_tanh", head_norm_eps=1e-3)),
]
FILES = {
    "timm": {"README.md", "class_names.txt", "config.json", "model.safetensors"},
    "torchvision": {"README.md", "class_names.txt", "model.pth"},
    "facebook": {"README.md", "class_names.txt", "model.pth"},
    "huggingface": {"README.md", "class_names.txt", "config.json", "model.safetensors", "preprocessor_config.json"},
}


def label(value: object) -> str:
    """Name a case by what is unusual in it."""
    if not isinstance(value, ModelSpec):
        return str(value)
    plain = ModelSpec(value.variant, value.num_classes)
    fields = [f.name for f in dataclasses.fields(value) if getattr(value, f.name) != getattr(plain, f.name)]
    return "-".join([value.variant, *fields])


QUICK = [
    *((dialect, ATTO) for dialect in ("facebook", "torchvision")),
    *((dialect, V2_ATTO) for dialect in ("timm", "huggingface")),
    ("timm", ModelSpec("convnext_zepto_rms_ols", 5)),
    ("timm", ModelSpec("convnext_atto", 5, head_hidden_size=48)),
    ("facebook", ModelSpec("convnextv2_atto", 5, in_channels=1)),
]


@dataclass(frozen=True)
class Written:
    """One case, converted once; do not change its folder."""

    spec: ModelSpec
    source: Path
    result: Conversion


@pytest.fixture(scope="module", params=heavy_except(QUICK, CASES), ids=lambda case: f"{case[0]}-{label(case[1])}")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    dialect, spec = request.param
    folder = tmp_path_factory.mktemp("converted")
    source = write_source(folder, spec)
    yield Written(spec, source, convert(source, dialect, folder / "out"))
    shutil.rmtree(folder)


def write_source(tmp_path: Path, spec: ModelSpec) -> Path:
    usual = default_preprocess(64, 0.8, spec.in_channels)
    preprocess = PREPROCESS if spec.in_channels == 3 else dataclasses.replace(usual, interpolation="bilinear")
    return write_weights(tmp_path / "source.safetensors", spec, CLASSES, preprocess)


def official(version: int) -> Callable[..., ConvNeXt]:
    """Return a stand-in with the signature of the official repositories' class, whose keys are our own."""

    def build(in_chans: int, num_classes: int, depths: list[int], dims: list[int]) -> ConvNeXt:
        scale = 1e-6 if version == 1 else None
        return ConvNeXt(
            depths, dims, num_classes=num_classes, in_channels=in_chans, layer_scale_init=scale, use_grn=version == 2
        )

    return build


def run_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute the Python lines of the README in its folder and return what they define."""
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for version, module, name in ((1, "convnext", "ConvNeXt"), (2, "convnextv2", "ConvNeXtV2")):
        stand_in = types.ModuleType(f"models.{module}")
        setattr(stand_in, name, official(version))
        monkeypatch.setitem(sys.modules, f"models.{module}", stand_in)
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.chdir(folder)
    defined: dict[str, Any] = {}
    exec(block, defined)
    return defined


def logits_of(model: nn.Module, spec: ModelSpec, side: int) -> torch.Tensor:
    found = model(noise_images(spec.in_channels, side))
    return found if isinstance(found, torch.Tensor) else found.logits


@torch.inference_mode()
def test_convert_writes_what_the_other_library_loads_and_computes_alike(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, spec = written.result, written.spec
    assert set(result.files) == {path.name for path in result.path.iterdir()} == FILES[result.dialect]
    assert (result.variant, result.notes) == (spec.variant, ())
    own = random_network(spec)
    theirs = run_readme(result.path, monkeypatch)["model"]
    assert not theirs.training
    for side in (64, 96):
        assert_same_logits(logits_of(theirs, spec, side), own(noise_images(spec.in_channels, side)))


@torch.inference_mode()
def test_convert_writes_what_reads_back_bit_for_bit(written: Written) -> None:
    out, spec = written.result.path, written.spec
    source, found = open_input(written.source), open_input(out)
    network, own = load_network(found), random_network(spec)
    assert_equal_states(network.state_dict(), own.state_dict())
    assert dataclasses.replace(found.model, head_norm_eps=spec.head_norm_eps) == spec
    images = noise_images(spec.in_channels, 64)
    assert torch.equal(network(images), own(images))
    if written.result.dialect in ("timm", "huggingface"):
        assert (found.class_names, found.preprocess) == (CLASSES, source.preprocess)
    assert (out / "class_names.txt").read_text(encoding="utf-8") == "\n".join(CLASSES) + "\n"


@torch.inference_mode()
@pytest.mark.parametrize("spec", [ATTO, V2_ATTO, ModelSpec("convnextv2_atto", 5, in_channels=1)], ids=label)
def test_convert_writes_what_timm_reads_as_an_official_checkpoint(spec: ModelSpec, tmp_path: Path) -> None:
    convert(write_source(tmp_path, spec), "facebook", tmp_path / "out")
    theirs = timm.create_model(spec.variant, num_classes=spec.num_classes, in_chans=spec.in_channels).eval()
    content = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    theirs.load_state_dict(checkpoint_filter_fn(content, theirs))
    for side in (64, 96):
        own = random_network(spec)(noise_images(spec.in_channels, side))
        assert_same_logits(logits_of(theirs, spec, side), own)


# the first block, the second downsampling layer and the head of arXiv 2201.03545's and 2301.00808's own code, atto with 5 classes
OFFICIAL_SHAPES: dict[str, tuple[int, ...]] = {
    "downsample_layers.0.0.weight": (40, 3, 4, 4),
    "downsample_layers.0.0.bias": (40,),
    "downsample_layers.0.1.weight": (40,),
    "downsample_layers.0.1.bias": (40,),
    "downsample_layers.2.0.weight": (80,),
    "downsample_layers.2.0.bias": (80,),
    "downsample_layers.2.1.weight": (160, 80, 2, 2),
    "downsample_layers.2.1.bias": (160,),
    "stages.0.0.dwconv.weight": (40, 1, 7, 7),
    "stages.0.0.dwconv.bias": (40,),
    "stages.0.0.norm.weight": (40,),
    "stages.0.0.norm.bias": (40,),
    "stages.0.0.pwconv1.weight": (160, 40),
    "stages.0.0.pwconv1.bias": (160,),
    "stages.0.0.pwconv2.weight": (40, 160),
    "stages.0.0.pwconv2.bias": (40,),
    "norm.weight": (320,),
    "norm.bias": (320,),
    "head.weight": (5, 320),
    "head.bias": (5,),
}
OFFICIAL_OWN: dict[str, dict[str, tuple[int, ...]]] = {
    "convnext_atto": {"stages.0.0.gamma": (40,)},
    "convnextv2_atto": {"stages.0.0.grn.gamma": (1, 1, 1, 160), "stages.0.0.grn.beta": (1, 1, 1, 160)},
}


@pytest.mark.parametrize("variant", OFFICIAL_OWN)
def test_convert_writes_the_names_and_shapes_of_the_official_code(variant: str, tmp_path: Path) -> None:
    convert(write_source(tmp_path, ModelSpec(variant, 5)), "facebook", tmp_path / "out")
    content = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    assert list(content) == ["model"]
    shapes = {key: tuple(tensor.shape) for key, tensor in content["model"].items()}
    expected = {**OFFICIAL_SHAPES, **OFFICIAL_OWN[variant]}
    starts = ("downsample_layers.0.", "downsample_layers.2.", "stages.0.0.", "norm.", "head.")
    assert {key: shape for key, shape in shapes.items() if key.startswith(starts)} == expected
    per_block, blocks = (9 if variant == "convnext_atto" else 10), 12
    assert len(shapes) == 4 + 3 * 4 + blocks * per_block + 4


@pytest.mark.parametrize("dialect", ["timm", "huggingface"])
def test_convert_through_all_dialects_ends_with_the_same_bits(dialect: Dialect, tmp_path: Path) -> None:
    path = write_source(tmp_path, ATTO)
    order: tuple[Dialect, ...] = (dialect, "huggingface", "torchvision", "facebook", "timm", dialect)
    for number, step in enumerate(order):
        path = convert(path, step, tmp_path / str(number)).path
    first, last = (load_network(open_input(tmp_path / name)).state_dict() for name in ("source.safetensors", "5"))
    assert_equal_states(last, first)
    assert (tmp_path / "5" / "model.safetensors").read_bytes() == (tmp_path / "0" / "model.safetensors").read_bytes()


def test_convert_takes_a_folder_an_artifact_and_a_file_alike(tmp_path: Path) -> None:
    source = write_source(tmp_path, ATTO)
    convert(source, "timm", tmp_path / "folder")
    again = convert(tmp_path / "folder", "timm", tmp_path / "again")
    for name in ("config.json", "class_names.txt", "model.safetensors"):
        assert (again.path / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


def test_convert_returns_a_record_that_is_json(tmp_path: Path) -> None:
    result: Conversion = convert(write_source(tmp_path, ATTO), "facebook", tmp_path / "out")
    assert json.loads(result.to_json()) == {
        "path": str(tmp_path / "out"),
        "dialect": "facebook",
        "variant": "convnext_atto",
        "files": ["README.md", "class_names.txt", "model.pth"],
        "notes": [],
        "load": result.load,
    }
    assert result.load in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
