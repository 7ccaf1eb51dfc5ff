"""What is read of each library that writes ConvNeXts, how well it agrees, and what can be done with it: the table of a how-to page.

    python -m tests.golden.writers

writes the table into `recipes/how-to/checkpoints.md`. For each form a file is made by the library itself, with drawn weights; the
official repository of DINOv3 is no package, and its forward pass is written out in the tests. Read: its logits against those of the
library, or the features of a network without head. Train: a step of gradients reaches every parameter. Convert: written for the
first library that takes it and read again, bit for bit. Export: what the ONNX graph gives on ONNX Runtime against the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel, DINOv3ConvNextConfig, DINOv3ConvNextModel

from convnext_deploy.api.convert import convert
from convnext_deploy.errors import DeployError
from convnext_deploy.exporters.onnx.export import export_network
from convnext_deploy.models.checkpoints.key_maps import DIALECTS
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from tests.models import test_wrappers as made
from tests.models import wrappers
from tests.models.test_dinov3 import DEPTHS, DIMS, official_forward, official_state

PAGE = Path(__file__).parents[2] / "recipes" / "how-to" / "checkpoints.md"
BEGIN, END = "<!-- table: writers -->\n", "<!-- end -->"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Writer:
    """A library and what it is given: the network that it makes, and what is wrapped around its weights."""

    library: str
    form: str
    make: Callable[[], nn.Module]
    wrap: Callable[[State], Any] = lambda state: state

    @property
    def name(self) -> str:
        return f"{self.library}, {self.form}"


def _timm(**options: Any) -> Callable[[], nn.Module]:
    return lambda: made.timm_network(**options)


def _timm_dinov3(tag: str) -> Callable[[], nn.Module]:
    """Return what makes the network of published weights, which has no head by its tag, at less depth and width."""
    return lambda: made.filled(timm.create_model(f"convnext_tiny.{tag}", depths=DEPTHS, dims=DIMS))


def _of_head(name: str, make: Callable[[], nn.Module]) -> Writer:
    library, form = name.split(", ")
    if library == "beside":
        return Writer("timm", f"backbone, and beside it {form}", make)
    return Writer(library, f"head: {form}", make)


class OfficialDINOv3(nn.Module):
    """The pooled features as the official repository computes them, which is no package: written out in the tests."""

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images `(N, 3, S, S)` to features `(N, C)`."""
        return official_forward(official_state(), images)[0]


_SIZES: Mapping[str, Any] = {"depths": [*DEPTHS], "hidden_sizes": [*DIMS]}

WRITERS = (
    Writer("timm", "flat", _timm()),
    Writer("timm", "`train.py`", _timm(), lambda s: {"state_dict": wrappers.other(s), "state_dict_ema": s, "arch": "x"}),
    Writer("timm", "`patch_size=2`", _timm(patch_size=2), lambda s: {"state_dict": s, "args": {"model_kwargs": {"patch_size": 2}}}),
    Writer("timm", "`patch_size=8`", _timm(patch_size=8), lambda s: {"state_dict": s, "args": {"model_kwargs": {"patch_size": 8}}}),
    Writer(
        "timm", "`output_stride=16`", _timm(output_stride=16),
        lambda s: {"state_dict": s, "args": {"model_kwargs": {"output_stride": 16}}},
    ),
    *(_of_head(name, make) for name, make in made.HEADS.items()),
    Writer("torchvision", "flat", lambda: made.filled(made.torchvision_network())),
    Writer(
        "torchvision", "references, average", lambda: made.filled(made.torchvision_network()),
        lambda s: {"model": wrappers.other(s), "model_ema": {"n_averaged": torch.ones(1), **wrappers.under("module.", s)}},
    ),
    Writer("transformers", "`ConvNextForImageClassification`", made.transformers_network),
    Writer("lightning", "module", _timm(), lambda s: {"state_dict": wrappers.under("model.", s), "hyper_parameters": {}}),
    Writer("torch.compile and DDP", "flat", _timm(), lambda s: wrappers.under("module._orig_mod.", s)),
    Writer("DeepSpeed", "consolidated", _timm(), lambda s: {"module": s, "ds_version": "0.15"}),
    Writer("mmpretrain", "names", _timm(), lambda s: {"meta": {}, "state_dict": made.to_mmpretrain(s)}),
    Writer("timm", "no head: `num_classes=0`", _timm(num_classes=0)),
    Writer("timm", "no head: `dinov3_lvd1689m`", _timm_dinov3("dinov3_lvd1689m")),
    Writer("timm", "no head: `eupe_lvd1689m`", _timm_dinov3("eupe_lvd1689m")),
    Writer("transformers", "no head: `ConvNextModel`", lambda: made.filled(ConvNextModel(ConvNextConfig(**_SIZES)))),
    Writer(
        "transformers", "no head: `DINOv3ConvNextModel`", lambda: made.filled(DINOv3ConvNextModel(DINOv3ConvNextConfig(**_SIZES)))
    ),
    Writer("DINOv3", "no head: official repository", OfficialDINOv3, lambda _: official_state()),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Largest differences of the answers, relative to the largest: of the file read and of its graph; the dialect that takes it."""

    read: float
    trains: bool
    dialect: str | None
    export: float


def try_writer(writer: Writer, folder: Path) -> Outcome:
    """Make the file of a writer and do everything with it."""
    reference = writer.make()
    path = folder / "weights.pth"
    torch.save(writer.wrap(dict(reference.state_dict())), path)
    artifact = open_input(path)
    network = load_network(artifact)
    expected, found = made.answers(reference), made.answers(network)
    network.train()(made.IMAGES).square().sum().backward()
    trains = all(parameter.grad is not None for parameter in network.parameters())
    network.eval().zero_grad()
    graph = export_network(network, 3, made.IMAGES.shape[-1], runtime="onnxruntime").graph
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    exported = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: made.IMAGES.numpy()})[0])
    return Outcome(
        _difference(found, expected), trains, _convert(path, network.state_dict(), folder), _difference(exported, found)
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _convert(path: Path, state: Mapping[str, Tensor], folder: Path) -> str | None:
    """Return the first library for which the file can be written, and from which the same weights come back."""
    for dialect in DIALECTS:
        try:
            convert(path, dialect, folder / dialect)
        except DeployError:
            continue
        again = load_network(open_input(next((folder / dialect).glob("*.[sp][at]*"))))
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
        return dialect
    return None


def row(writer: Writer, outcome: Outcome) -> str:
    """Return a line of the table."""
    within = "≤ 1e-5" if max(outcome.read, outcome.export) <= 1e-5 else f"{max(outcome.read, outcome.export):.0e}"
    return f"| {writer.library} | {writer.form} | ● | {'●' if outcome.trains else '–'} | {outcome.dialect or '–'} | ● | {within} |"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Return the whole table, with the versions of the libraries."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("timm", "torchvision", "transformers"))
    lines = [row(writer, outcomes[writer.name]) for writer in WRITERS]
    head = "| written by | form | read | train from | convert to | export | answers differ by |\n|---|---|---|---|---|---|---|"
    return (
        "\n".join((f"With {versions}; answers are logits, or without a head the pooled features:\n", head, *lines))
        + "\n\n"
    )


if __name__ == "__main__":
    results = {}
    for each in WRITERS:
        with tempfile.TemporaryDirectory() as place:
            results[each.name] = try_writer(each, Path(place))
            print(row(each, results[each.name]), flush=True)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(results) + END + rest.partition(END)[2], encoding="utf-8")
