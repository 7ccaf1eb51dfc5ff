"""Features of transformers as maps: the patches in their places, without class tokens and registers, as libraries reshape them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convnext_deploy.artifacts.details import ForeignDetails
from convnext_deploy.errors import ArtifactError
from convnext_deploy.training.foreign_libraries import build_timm, build_transformers
from convnext_deploy.training.foreign_network import as_map

SIZES = ((32, 32), (32, 48), (48, 32))


def tokens(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[None, :, None].expand(1, count, 5)


def test_tokens_become_the_grid_of_the_patches() -> None:
    # four patches behind a class token and four registers are nine tokens, and no square of three
    assert as_map(tokens(9), 5, "it", (2, 2))[0, ..., 0].tolist() == [[5, 6], [7, 8]]
    assert as_map(tokens(9), 5, "it", prefix=5)[0, ..., 0].tolist() == [[5, 6], [7, 8]]
    assert as_map(tokens(7), 5, "it", (2, 3), 1)[0, ..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert as_map(tokens(6), 5, "it", (3, 2))[0, ..., 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    # a network that merges patches has fewer tokens than patches, and one that tells nothing a square
    assert as_map(tokens(16), 5, "it", (8, 8)).shape == (1, 4, 4, 5)
    assert as_map(tokens(17), 5, "it")[0, 0, 0, 0] == 1
    for count, grid, prefix in ((7, (2, 3), 2), (40, None, 1), (1, None, 1)):
        with pytest.raises(ArtifactError, match=r"it gives features of shape .*; expected a map, or the tokens"):
            as_map(tokens(count), 5, "it", grid, prefix)


@pytest.mark.parametrize("registers", [0, 4])
def test_maps_of_timms_transformers_are_those_of_its_own_reshaping(registers: int, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2, "reg_tokens": registers}
    arguments["dynamic_img_size"] = True
    name = "vit_tiny_patch16_224"
    network = timm.create_model(name, num_classes=3, **arguments)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    teacher = build_timm(ForeignDetails("timm", name, arguments), tmp_path / "w.pth", 3).eval()
    network.eval()
    for size in SIZES:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = teacher(images)
            (expected,) = network.forward_intermediates(
                images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
            )
            assert torch.equal(logits, network(images))
        assert teacher.features is not None
        assert torch.equal(teacher.features, expected.permute(0, 2, 3, 1))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["Dinov2WithRegisters", "DINOv3ViT", "Dinov2"])
def test_maps_of_transformers_are_those_of_its_backbones(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    settings |= {"intermediate_size": 32} | ({} if kind == "Dinov2" else {"num_register_tokens": 4})
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    network.save_pretrained(tmp_path)
    own = getattr(transformers, f"{kind}Backbone")
    backbone = own.from_pretrained(tmp_path, out_indices=[1], apply_layernorm=False).eval()
    details = ForeignDetails("transformers", kind)
    teacher = build_transformers(details, tmp_path / "model.safetensors", 0).eval()
    for size in SIZES:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert teacher(images).shape == (2, 0)
            expected = backbone(images).feature_maps[-1].permute(0, 2, 3, 1)
        assert teacher.features is not None
        if kind == "DINOv3ViT":  # whose backbone normalizes the last map whatever it is told
            teacher.features = backbone.norm(teacher.features)
        torch.testing.assert_close(teacher.features, expected)
