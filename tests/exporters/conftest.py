"""Fixtures for the exporters: small networks of both versions, their float graphs and their quantized graphs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.graphs.onnx_io import load_onnx, save_onnx
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import QuantizedSite, prepare, read_sites
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.exporters.tensorrt_build import ALL_RELEASES, Build, prepare_build
from tests.exporters.tensorrt_stand_in import Script


@dataclass(frozen=True)
class QuantizedExport:
    """A prepared network, its sites in numbers, and the graph that was made from them."""

    model: ConvNeXt
    sites: dict[str, QuantizedSite]
    graph: onnx.ModelProto


@dataclass(frozen=True)
class Network:
    """A network of version 1 (LayerScale, RGB) or 2 (GRN, grey images) and its graphs, each made once; do not change them."""

    version: int
    folder: Path

    classes = 5
    depths = (1, 1, 2, 1)
    image_size = 32

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return 3 if self.version == 1 else 1

    @cached_property
    def model(self) -> ConvNeXt:
        """The network in float, with random weights everywhere."""
        with torch.random.fork_rng([]):
            torch.manual_seed(self.version)
            model = ConvNeXt(
                self.depths,
                (16, 32, 48, 64),
                num_classes=self.classes,
                in_channels=self.in_channels,
                patch_size=4 if self.version == 1 else 2,
                layer_scale_init=1.0 if self.version == 1 else None,
                use_grn=self.version == 2,
            )
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    nn.init.normal_(module.weight, std=float(module.weight[0].numel()) ** -0.5)
            for name, parameter in model.named_parameters():
                # Biases, norms, LayerScale and GRN: different everywhere, so that no two layers share an initializer.
                if name.rpartition(".")[2] in ("bias", "gamma", "beta") or "norm" in name:
                    parameter.data += 0.3 * torch.randn_like(parameter)
        return model.eval()

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The float graph."""
        return export_float(self.model, self.in_channels, self.image_size)

    @cached_property
    def path(self) -> Path:
        """The float graph in a file."""
        return write_graph(self.graph, self.folder / "float.onnx")

    @cached_property
    def quantized(self) -> QuantizedExport:
        """The network quantized, and its INT8 graph."""
        model = prepare(copy.deepcopy(self.model), resolve_scheme("tensorrt"))
        calibrate(model, [torch.from_numpy(self.images(64, seed=1))], "minmax")
        sites = read_sites(model)
        return QuantizedExport(model, sites, insert_qdq(self.graph, sites))

    @cached_property
    def quantized_path(self) -> Path:
        """The INT8 graph in a file."""
        return write_graph(self.quantized.graph, self.folder / "int8.onnx")

    def images(self, count: int, seed: int = 0) -> NDArray[np.float32]:
        """Return images for this network."""
        return structured_images(count, self.in_channels, self.image_size, seed)


def structured_images(count: int, channels: int, side: int, seed: int = 0) -> NDArray[np.float32]:
    """Return images `(count, channels, side, side)` with structure: each a level, a tilted wave and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    shape = (count, channels, 1, 1)
    wave = np.sin(rng.uniform(0, 12, shape) * rows + rng.uniform(0, 12, shape) * columns + rng.uniform(0, 6, shape))
    noise = rng.normal(0, 0.3, (count, channels, side, side))
    images: NDArray[np.float32] = (rng.normal(0, 1, shape) + wave + noise).astype(np.float32)
    return images


def write_graph(graph: onnx.ModelProto, path: Path) -> Path:
    """Save a copy of a graph."""
    save_onnx(copy.deepcopy(graph), path, {"precision": "any"})
    return path


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Network]:
    """Both networks by name."""
    return {name: Network(int(name[1]), tmp_path_factory.mktemp(name)) for name in ("v1", "v2")}


@pytest.fixture(params=["v1", "v2"])
def network(request: pytest.FixtureRequest, networks: dict[str, Network]) -> Network:
    """Each network."""
    return networks[request.param]


@pytest.fixture(scope="session")
def small_quantized(small_artifacts: dict[str, Artifact]) -> QuantizedExport:
    """The quantization-aware training of the small run, and its INT8 file."""
    model = load_network(small_artifacts["qat"])
    return QuantizedExport(model, read_sites(model), load_onnx(small_artifacts["onnx-int8"].main_file))


@pytest.fixture(params=["v1", "v2", "small-run"])
def export(
    request: pytest.FixtureRequest, networks: dict[str, Network], small_quantized: QuantizedExport
) -> QuantizedExport:
    """Every INT8 graph that there is: of both networks, and of the small run."""
    return small_quantized if request.param == "small-run" else networks[request.param].quantized


@pytest.fixture(params=ALL_RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Each release that there is a list of names of."""
    return str(request.param)


@pytest.fixture
def script() -> Script:
    """What the stand-in of a release is to do."""
    return Script()


@pytest.fixture
def build(release: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build with the stand-in."""
    return prepare_build(release, script, monkeypatch)
