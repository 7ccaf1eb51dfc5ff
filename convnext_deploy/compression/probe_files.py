"""Networks with random weights and given hidden widths, as INT8 files as their target writes them, to be timed."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import PTQRecord, TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.compression.cut_graph import cut_graph
from convnext_deploy.config.choices import Activation, Target
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.models.layers import GRN
from convnext_deploy.models.variants import build_model, complete_spec, with_widths
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import fit_scheme, prepare, without_quantizers
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.onnx import run as export
from convnext_deploy.stages.ptq_steps import open_folded
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.files import write_bytes
from convnext_deploy.system.random_state import forked_random

_IMAGES = 2  # of noise: the time depends on no value


@dataclass(frozen=True)
class ProbeForm:
    """What a file is made for: the dense network, how images are made ready, the target, and the pruned network's activation.

    `activation` None: that of the dense network.
    """

    spec: ModelSpec
    preprocess: Preprocess
    target: Target
    activation: Activation | None = None

    @property
    def pruned_spec(self) -> ModelSpec:
        """The dense network with the activation of the pruned one."""
        return self.spec if self.activation is None else replace(self.spec, activation=self.activation)


class ProbeWriter:
    """Writes INT8 files of a form for choices of hidden widths: its network is traced once, and the graph cut for each choice."""

    def __init__(self, form: ProbeForm) -> None:
        self.form = form
        self._whole: dict[ModelSpec, tuple[Artifact, onnx.ModelProto]] = {}

    def write(self, widths: Sequence[int], folder: Path, *, as_it_is: bool = False) -> Artifact:
        """Write the file of a network whose blocks have so many hidden units, over all model stages, into a new folder.

        `as_it_is`: with the dense network's activation, and not that of pruned ones.
        """
        dense = self.form.spec if as_it_is else self.form.pruned_spec
        if dense not in self._whole:
            with tempfile.TemporaryDirectory(prefix="convnext-deploy-") as name:
                artifact = write_probe(self.form, dense, Path(name))
                self._whole[dense] = artifact, onnx.load(artifact.main_file)
        whole, model = self._whole[dense]
        spec = with_widths(dense, widths)
        folder.mkdir()
        path = folder / "model.onnx"
        cut = cut_graph(model, complete_spec(dense).block_widths, complete_spec(spec).block_widths)
        write_bytes(path, cut.SerializeToString(deterministic=True))
        return replace(whole, path=folder, model=spec, files=(describe_file(path),))


def write_probe(form: ProbeForm, spec: ModelSpec, folder: Path) -> Artifact:
    """Write a network of fresh weights as an INT8 file into a new folder, traced for itself, and return it.

    Args:
        form: what it is made for.
        spec: that of the form, with hidden widths.
        folder: is made.
    """
    context = _context(folder / "float")
    source = write_torch_artifact(
        _fresh_network(spec),
        context,
        model=spec,
        preprocess=form.preprocess,
        class_names=None,
        precision="fp32",
        details=TorchDetails(),
        source=None,
    )
    scheme = resolve_scheme(form.target)
    folding = open_folded(source, scheme, context)
    scheme = fit_scheme(scheme, folding.network)
    network = prepare(without_quantizers(folding.network), scheme)
    noise = torch.randn((_IMAGES, spec.in_channels, *form.preprocess.sides), generator=torch.Generator().manual_seed(0))
    calibrate(network, [noise], "minmax")
    quantized = write_torch_artifact(
        network,
        _context(folder / "int8"),
        model=spec,
        preprocess=folding.preprocess,
        class_names=None,
        precision=scheme.precision,
        details=TorchDetails(**scheme.details(), folding=folding.certificate, ptq=PTQRecord(_IMAGES)),
        source=source,
    )
    return export(ONNXConfig(), quantized, _context(folder / "onnx"))


def _fresh_network(spec: ModelSpec) -> nn.Module:
    """Return a network in which everything is computed: nothing is 0 that a runtime could leave out."""
    with forked_random(seed=0):
        network = build_model(spec, layer_scale_init=1.0).eval()
        for layer in network.modules():
            if isinstance(layer, GRN):
                nn.init.normal_(layer.gamma, std=0.1)
                nn.init.normal_(layer.beta, std=0.1)
    return network


def _context(folder: Path) -> StageContext:
    folder.mkdir(parents=True)
    return StageContext("probe", folder, None, Execution(), folder)
