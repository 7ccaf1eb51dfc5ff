"""A network with fewer hidden units in each block is described, built, saved, read and exported like any other."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess, file_header
from convnext_deploy.config.choices import Dialect
from convnext_deploy.config.records import read_record
from convnext_deploy.errors import CheckpointError, RecipeError
from convnext_deploy.models.checkpoints.key_maps import check_writable, from_native
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.checkpoints.state_dict import infer_model_spec, load_checkpoint
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.models.variants import build_model, complete_spec, dense_widths, with_widths
from convnext_deploy.pipeline.open_checkpoint import open_checkpoint
from convnext_deploy.training.optimizer import layer_scales

WIDTHS = (32, 0, 128, 96, 64, 0, 192, 0, 256)  # of test_convnext, whose depths are 1, 2, 4 and 2
FIRST_GONE = (0, 128, 128, 96, 64, 0, 192, 0, 256)
SPEC = ModelSpec("test_convnext", 5, hidden_widths=WIDTHS)
V2 = ModelSpec("convnextv2_atto", 5, patch_size=2, hidden_widths=(0, 32, 64, 0, 160, 0, 192, 0, 640, 32, 0, 96))


def network(spec: ModelSpec) -> ConvNeXt:
    torch.manual_seed(0)
    return build_model(spec, layer_scale_init=0.5).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_widths_are_checked_against_the_blocks_of_the_variant() -> None:
    for widths, found in (
        ((32,), r"^hidden_widths has 1 entries; expected 9, one for each block of test_convnext\.$"),
        (
            (0,) * 9,
            r"^hidden_widths = \[0, .*\] is out of range; expected numbers >= 0, and at least one of them > 0\.$",
        ),
        ((-32, *WIDTHS[1:]), r"^hidden_widths = \[-32, .*\] is out of range"),
    ):
        with pytest.raises(RecipeError, match=found):
            build_model(replace(SPEC, hidden_widths=widths))
    with pytest.raises(ValueError, match=r"hidden_widths\[0\] = -1 is out of range; expected 0 to 1e\+06\."):
        read_record(ModelSpec, {**asdict(SPEC), "hidden_widths": [-1, 2]}, "model")


def test_all_widths_of_the_table_are_no_pruning() -> None:
    dense = dense_widths(complete_spec(SPEC))
    assert dense == (96, 128, 128, 192, 192, 192, 192, 256, 256)
    assert with_widths(SPEC, dense).hidden_widths is None
    # reports tell the networks apart, and compare times and sizes of files of one network only
    assert (with_widths(SPEC, dense).name, SPEC.name) == ("test_convnext", "pruned test_convnext")
    assert with_widths(ModelSpec("test_convnext", 5), WIDTHS) == SPEC
    assert complete_spec(SPEC).block_widths == ((32,), (0, 128), (96, 64, 0, 192), (0, 256))


def test_records_of_networks_that_were_not_pruned_stay_as_they_were() -> None:
    plain = file_header(ModelSpec("convnext_atto", 5), default_preprocess(32), None, "fp32")
    assert "hidden_widths" not in plain["model"]
    assert read_record(ModelSpec, plain["model"], "model") == ModelSpec("convnext_atto", 5)
    written = json.loads(json.dumps(file_header(SPEC, default_preprocess(32), None, "fp32")["model"]))
    assert read_record(ModelSpec, written, "model") == SPEC


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, hidden_widths=FIRST_GONE), V2], ids=["v1", "first", "v2"])
def test_files_with_and_without_header_are_read_back(spec: ModelSpec, tmp_path: Path) -> None:
    made = network(spec)
    expected = made(images())
    path = tmp_path / "own.safetensors"
    save_state(path, made.state_dict(), file_header(spec, default_preprocess(32), None, "fp32"))
    artifact = open_checkpoint(path)
    assert artifact.model == spec
    assert torch.equal(load_network(artifact)(images()), expected)

    if spec.hidden_widths == FIRST_GONE:
        return  # only the header tells how a model stage without any block was
    bare = tmp_path / "bare.pth"
    torch.save({"model": made.state_dict()}, bare)
    inferred = infer_model_spec(load_checkpoint(bare).state, bare)
    assert (inferred.variant, inferred.hidden_widths) == (spec.variant, spec.hidden_widths)


def test_a_block_whose_layers_do_not_fit_each_other_is_refused(tmp_path: Path) -> None:
    state = dict(network(ModelSpec("test_convnext", 5)).state_dict())
    state["stages.0.0.pwconv1.weight"] = state["stages.0.0.pwconv1.weight"][:32]
    path = tmp_path / "damaged.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"'stages\.0\.0\.pwconv1\.weight' has shape \(32, 24\)"):
        load_network(open_checkpoint(path))


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_other_libraries_have_no_such_network(dialect: Dialect) -> None:
    with pytest.raises(
        CheckpointError,
        match=rf"^test_convnext cannot be written for {dialect}, .* lacks blocks of different hidden widths",
    ):
        from_native({}, SPEC, dialect)
    check_writable(replace(SPEC, hidden_widths=None), "timm")


def test_folding_and_layer_decay_know_blocks_that_are_not_there() -> None:
    made = network(SPEC)
    folding = fold(made, default_preprocess(32), images())
    assert folding.certificate.holds
    scales = layer_scales([name for name, _ in made.named_parameters()], 0.5)
    # stem and first block, then one for each block that is left; a downsampling belongs with the block behind it
    assert scales["downsample_layers.3.1.weight"] == scales["stages.3.1.pwconv1.weight"] == 0.5
    assert scales["downsample_layers.1.1.weight"] == scales["stages.1.1.pwconv1.weight"] == 0.5**5
