"""Finding the network that weights belong to, in every dialect; other networks are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import Dialect
from convnext_deploy.models.checkpoints.key_maps import from_native, to_native
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.checkpoints.state_dict import infer_model_spec, load_checkpoint
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import VARIANTS
from tests.models.conftest import assert_equal_states, meta_state, random_state, refusal
from tests.models.test_dialects import PAIRS

W = Path("w.pth")


@pytest.mark.parametrize(("variant", "dialect"), PAIRS)
def test_infer_model_spec_finds_every_variant_in_every_dialect(variant: str, dialect: Dialect) -> None:
    spec = ModelSpec(variant, 10, 3)
    written = from_native(meta_state(spec), spec, dialect)
    assert infer_model_spec(to_native(written, dialect), W) == spec


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("num_classes", "in_channels", "patch_size"), [(10, 3, 4), (1000, 1, 2), (1, 12, 8)])
def test_infer_model_spec_finds_what_was_built(
    variant: str, num_classes: int, in_channels: int, patch_size: int
) -> None:
    if VARIANTS[variant].stem != "patch":
        patch_size = 4
    spec = ModelSpec(variant, num_classes, in_channels, patch_size)
    assert infer_model_spec(meta_state(spec), W) == spec


@pytest.mark.parametrize(
    ("variant", "hidden", "found_variant", "found_hidden"),
    [
        ("convnext_atto", 24, "convnext_atto", 24),
        ("convnextv2_tiny", 7, "convnextv2_tiny", 7),
        ("convnext_large", 1536, "convnext_large_mlp", None),
        ("convnext_large", 100, "convnext_large", 100),
        ("convnext_large_mlp", 0, "convnext_large", None),
    ],
)
def test_infer_model_spec_finds_the_hidden_layer(
    variant: str, hidden: int, found_variant: str, found_hidden: int | None
) -> None:
    state = meta_state(ModelSpec(variant, 10, head_hidden_size=hidden))
    assert infer_model_spec(state, W) == ModelSpec(found_variant, 10, head_hidden_size=found_hidden)


@pytest.mark.parametrize("variant", ["convnext_atto", "convnext_large_mlp", "convnext_tiny_hnf", "convnextv2_atto"])
def test_infer_model_spec_finds_no_classes_when_there_is_no_head(variant: str) -> None:
    state = meta_state(ModelSpec(variant, 10))
    backbone = {key: t for key, t in state.items() if not key.startswith(("head.", "pre_logits."))}
    found = infer_model_spec(backbone, W)
    assert found.num_classes == 0
    assert VARIANTS[found.variant].dims == VARIANTS[variant].dims


def isotropic() -> dict[str, Tensor]:
    """The names of the isotropic ConvNeXt of the paper's section 3.3: one stem, no downsampling."""
    state = {"stem.weight": torch.zeros(384, 3, 16, 16), "stem.bias": torch.zeros(384)}
    for i in range(18):
        state[f"blocks.{i}.dwconv.weight"] = torch.zeros(384, 1, 7, 7)
        state[f"blocks.{i}.norm.weight"] = torch.zeros(384)
    return {**state, "norm.weight": torch.zeros(384), "head.weight": torch.zeros(1000, 384)}


def test_isotropic_convnext_is_refused_with_its_keys(tmp_path: Path) -> None:
    torch.save({"model": isotropic()}, tmp_path / "w.pth")
    message = refusal(lambda: load_checkpoint(tmp_path / "w.pth"))
    assert (
        "is not a ConvNeXt checkpoint: it looks like the isotropic ConvNeXt (it has 'blocks.0.dwconv.weight')"
        in message
    )


def load_timm(tmp_path: Path, variant: str, **options: Any) -> ModelSpec:
    path = tmp_path / "w.pth"
    torch.save(timm.create_model(variant, num_classes=5, **options).state_dict(), path)
    return infer_model_spec(load_checkpoint(path).state, path)


@pytest.mark.parametrize("patch_size", [1, 3])
def test_timm_network_of_another_patch_size_is_found(tmp_path: Path, patch_size: int) -> None:
    assert load_timm(tmp_path, "convnext_atto", patch_size=patch_size) == ModelSpec("convnext_atto", 5, 3, patch_size)


@pytest.mark.parametrize(
    ("options", "nearest", "differing"),
    [
        ({"depths": (3, 3, 9, 2)}, "convnext_tiny", "depths (3, 3, 9, 2) instead of (3, 3, 9, 3)"),
        ({"dims": (96, 192, 384, 700)}, "convnext_tiny", "dims (96, 192, 384, 700) instead of (96, 192, 384, 768)"),
        ({"use_grn": True, "depths": (2, 2, 8, 2), "dims": (80, 160, 320, 648)}, "convnextv2_nano", "(80, 160, 320, 648)"),
        ({"kernel_sizes": (7, 7, 7, 5)}, "convnext_tiny", "kernel_sizes (7, 7, 7, 5) instead of (7, 7, 7, 7)"),
        ({"norm": "rmsnorm"}, "convnext_tiny", "norm_bias False instead of True"),
        ({"stem": "overlap", "stem_dim": 48}, "convnext_tiny", "stem overlap instead of patch"),
        ({"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "head_norm_first": True}, "convnext_atto", "head_norm_first"),
    ],
)  # fmt: skip
def test_custom_networks_are_refused_with_the_nearest_variant(
    options: dict[str, Any], nearest: str, differing: str
) -> None:
    whole = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768), **options}
    if whole.get("use_grn"):
        whole["layer_scale_init"] = None
    with torch.device("meta"):
        state = ConvNeXt(whole.pop("depths"), whole.pop("dims"), num_classes=2, **whole).state_dict()
    message = refusal(lambda: infer_model_spec(state, W))
    assert f"The nearest is {nearest}, but the file has " in message
    assert differing in message


def test_timm_network_with_another_depth_is_refused_with_the_nearest_variant(tmp_path: Path) -> None:
    message = refusal(lambda: load_timm(tmp_path, "convnext_femto", depths=(2, 2, 7, 2)))
    assert "The nearest is convnext_femto, but the file has depths (2, 2, 7, 2) instead of (2, 2, 6, 2)." in message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("downsample_layers.0.0.weight", (40,)),
        ("downsample_layers.0.0.weight", ()),
        ("head.weight", ()),
        ("head.weight", (3, 320, 1, 1)),
        ("stages.2.0.dwconv.weight", ()),
        ("pre_logits.weight", ()),
        ("pre_logits.weight", (320,)),
        ("downsample_layers.0.0.weight", (40, 0, 4, 4)),
        ("downsample_layers.0.0.weight", (40, 3, 0, 0)),
    ],
)
def test_infer_model_spec_refuses_when_a_shape_is_none_of_a_network(key: str, shape: tuple[int, ...]) -> None:
    state = {**meta_state(ModelSpec("convnext_atto", 3)), key: torch.zeros(shape)}
    message = refusal(lambda: infer_model_spec(state, W))
    assert message.startswith("w.pth is not a ConvNeXt checkpoint")
    assert str(shape) in message


@pytest.mark.parametrize("i", range(4))
def test_infer_model_spec_names_the_first_key_that_is_missing(i: int) -> None:
    state = meta_state(ModelSpec("convnext_atto", 3))
    del state[f"stages.{i}.0.dwconv.weight"]
    assert f"it has no 'stages.{i}.0.dwconv.weight'" in refusal(lambda: infer_model_spec(state, W))


@pytest.mark.parametrize("dialect", ["timm", "torchvision", "facebook", "huggingface"])
def test_load_checkpoint_tells_dialect_entry_and_dtype(tmp_path: Path, dialect: Dialect) -> None:
    spec = ModelSpec("convnext_atto", 3)
    state = random_state(spec)
    written = {key: tensor.half() for key, tensor in from_native(state, spec, dialect).items()}
    torch.save({"state_dict_ema": written, "state_dict": {}}, tmp_path / "w.pth")
    found = load_checkpoint(tmp_path / "w.pth")
    assert found.dialect == dialect
    assert_equal_states(found.state, {key: tensor.half() for key, tensor in state.items()})
    assert found.notes == (
        f"w.pth: weights in the names of {dialect}",
        "w.pth: took the weights under 'state_dict_ema'",
        "w.pth: weights in float16 are converted to float32",
    )


def test_load_checkpoint_notes_only_the_dialect_when_nothing_else_is_unusual(tmp_path: Path) -> None:
    save_state(tmp_path / "w.safetensors", random_state(ModelSpec("test_convnext", 3)), {})
    found = load_checkpoint(tmp_path / "w.safetensors")
    assert found.notes == ("w.safetensors: weights in the names of facebook",)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "convnext.", "_orig_mod.convnext.", "module.model."], ids=lambda text: text
)
def test_load_checkpoint_understands_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    spec = ModelSpec("test_convnext", 3)
    native = random_state(spec)
    dialect: Dialect = "timm"
    if "convnext." in prefix:
        spec, dialect = ModelSpec("convnext_atto", 3), "huggingface"
        native = {key: t for key, t in random_state(spec).items() if not key.startswith("head.")}
        written = {k.removeprefix("convnext."): t for k, t in from_native(native, spec, dialect).items()}
    else:
        written = from_native(native, spec, dialect)
    torch.save({prefix + key: tensor for key, tensor in written.items()}, tmp_path / "w.pth")
    assert_equal_states(load_checkpoint(tmp_path / "w.pth").state, native)
