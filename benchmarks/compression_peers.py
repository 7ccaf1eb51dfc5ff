"""The peers of `compression.py`: networks of timm's class, pruned by Torch-Pruning or scaled, trained and quantized as ours are."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compression_table import PRUNED, SCALED
from latency_files import export_timm
from quantization_peers import run_method
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ProcessFailedError
from convnext_deploy.models.checkpoints.key_maps import from_native
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.variants import complete_spec
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.distill import Teachers, cached, distillation_of
from convnext_deploy.stages.teachers import distillation_objective
from convnext_deploy.stages.training_setup import fit_network

_MULTIPLE = 8  # of channels, as both libraries round
_GRID = {PRUNED: np.linspace(0.1, 0.75, 14), SCALED: np.linspace(0.9, 0.35, 12)}
_TAYLOR_BATCH = 64


@dataclass(frozen=True)
class Size:
    """A peer's network before training: which way, how far it goes, and the file of its INT8 form, which tells its time."""

    way: str
    amount: float
    folder: Path


def sizes(way: str, source: Artifact, work: Path, arguments: argparse.Namespace) -> Iterator[tuple[Size, Artifact]]:
    """Write INT8 files of a peer's networks from the largest to the smallest, to be timed; untrained."""
    for amount in _GRID[way]:
        folder = work / f"{way}-{amount:.2f}"
        size = Size(way, float(amount), folder)
        yield size, quantized(functools.partial(build, size, source, work), folder, arguments)


def build(size: Size, source: Artifact, work: Path) -> TimmConvNeXt:
    """Return a peer's network before training: with the dense weights that are left, or fresh ones."""
    row, spec = complete_spec(source.model), source.model
    share = size.amount if size.way == SCALED else 1.0
    dims = tuple(max(_MULTIPLE, round(share * dim / _MULTIPLE) * _MULTIPLE) for dim in row.dims)
    torch.manual_seed(0)
    network = TimmConvNeXt(
        num_classes=spec.num_classes,
        depths=tuple(row.depths),
        dims=dims,
        use_grn=row.version == 2,
        ls_init_value=None if row.version == 2 else 1e-6,
    )
    # with a patch size of 2 timm would halve the map in the first model stage too
    network.stem[0] = nn.Conv2d(spec.in_channels, dims[0], spec.patch_size, spec.patch_size)
    if size.way == PRUNED:
        renamed = from_native(load_network(source).state_dict(), dataclasses.replace(spec, patch_size=4), "timm")
        # linear layers also where timm's own network of that name has convolutions of 1x1: their INT8 form is faster
        network.load_state_dict(
            {key: w.flatten(1) if ".mlp.fc" in key and w.ndim == 4 else w for key, w in renamed.items()}
        )
        prune(network, size.amount, torch.from_numpy(np.load(work / "calibration.npy")))
    return network


def prune(network: TimmConvNeXt, ratio: float, images: Tensor) -> None:
    """Take channels of least importance, first order, of the whole network at once, among layers of one kind.

    Source: Fang et al. 2024, "Isomorphic Pruning for Vision Models", arXiv 2407.04616, which prunes ConvNeXt so.
    """
    torch_pruning = importlib.import_module("torch_pruning")
    network.eval()
    for batch in images.split(_TAYLOR_BATCH):
        logits = network(batch)
        nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    pruner = torch_pruning.pruner.BasePruner(
        network,
        images[:2],
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        global_pruning=True,
        isomorphic=True,
        round_to=_MULTIPLE,
        ignored_layers=[network.head.fc],
    )
    pruner.step()
    network.zero_grad()


def train(network: TimmConvNeXt, source: Artifact, config: DistillConfig, context: StageContext) -> None:
    """Let a network learn from the dense one exactly as ours does: the loop, the crops, their order and the loss are ours."""
    data = context.need_data()
    teachers = Teachers(config, source.preprocess, data, context)
    # what the verb has computed of its teacher, which sees the same crops
    logits = cached(teachers, config, source.preprocess, data, context)
    objective = distillation_objective(logits, distillation_of(config, context))
    fit_network(network, source.preprocess, config.fit, context, objective)
    network.eval()


def quantized(make: Callable[[], TimmConvNeXt], folder: Path, arguments: argparse.Namespace) -> Artifact:
    """Make, export and quantize a network by NNCF with the calibration images of the folder above, unless its file is there.

    Raises: ProcessFailedError: if NNCF fails.
    """
    made = folder / "nncf-onnx" / "model.onnx"
    if not made.exists():
        folder.mkdir(exist_ok=True)
        export_timm(make().eval(), arguments.image_size, folder / "float.onnx")
        images = folder / "calibration.npy"
        if not images.exists():
            images.symlink_to(folder.parent / "calibration.npy")
        settings = {**vars(arguments), "work": folder, "threads": None, "batch_size": 32, "timeout": 3600.0}
        found = run_method("nncf-onnx", argparse.Namespace(**settings))
        if "failure" in found:
            raise ProcessFailedError(found["failure"])
    return open_input(made, asked=PreprocessSettings(image_size=arguments.image_size))
