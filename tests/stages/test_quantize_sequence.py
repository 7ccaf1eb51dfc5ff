"""The fallback sequence: which step is taken, why, and what the artifact says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact, read_artifact, write_manifest
from convnext_deploy.artifacts.details import Step
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.prepare import quantized_layers
from convnext_deploy.stages import quantize, train
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.selection import Enough, Judge
from convnext_deploy.system.execution import Execution
from tests.details import ptq_of, selection_of, torch_details
from tests.exporters.recorded_progress import RecordingProgress

NAMES = ("min-max", "ranges by error", "smoothing", "bias correction", "GPTQ")
FIT = FitConfig(epochs=4, batch_size=12, base_learning_rate=0.256, warmup_epochs=0, drop_path_rate=0, autocast="off")
SHORT = dataclasses.replace(FIT, epochs=1)
Passing = Callable[[str, ConvNeXt], bool]
Quantize = Callable[..., Artifact]


@dataclass
class Seen:
    """The steps of every step, the images it was judged on, the logits that were judged, and the time."""

    steps: list[Any] = field(default_factory=list)
    selection: list[list[int]] = field(default_factory=list)
    logits: dict[str, Tensor] = field(default_factory=dict)
    batches: dict[str, list[Tensor]] = field(default_factory=dict)
    looks: list[int] = field(default_factory=list)
    now: float = 0.0


@pytest.fixture(scope="module")
def source(small_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A very small network that tells the three colours apart; quantization does not change one of its answers."""
    folder = tmp_path_factory.mktemp("source")
    context = StageContext("float", folder, small_data, Execution(), folder / "cache")
    found = train.run(TrainConfig(ModelConfig("test_convnext2", 32), FIT), None, context)
    assert torch_details(found).history[-1]["validation_top1"] == 1.0
    return found


@pytest.fixture
def lines() -> RecordingProgress:
    return RecordingProgress()


@pytest.fixture
def run_quantize(source: Artifact, small_data: Data, tmp_path: Path, lines: RecordingProgress) -> Quantize:
    """Run the stage in a new folder, on few images, and write its manifest."""

    def run(seed: int = 0, data: Data = small_data, **settings: Any) -> Artifact:
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        folder.mkdir()
        settings = {"calibration_images": 12, "selection_images": 18, "batch_size": 8, "fit": SHORT, **settings}
        context = StageContext("sequence", folder, data, Execution(seed=seed, progress=lines), tmp_path / "cache")
        artifact = quantize.run(QuantizeConfig(**settings), source, context)
        write_manifest(artifact)
        return artifact

    return run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Watch the steps; every one takes ten seconds of a clock of their own, and what comes before them seven."""
    found = Seen()
    make, begin, judge = vars(quantize)["quantize_network"], Judge.__init__, Judge.judge

    def watched_make(folded: Any, scheme: Any, steps: Any, images: Any, *rest: Any, **options: Any) -> Any:
        found.steps.append(steps)
        found.now += 10
        return make(folded, scheme, steps, images, *rest, **options)

    def watched_begin(
        self: Judge, folded: Any, images: Any, budget: float, unseen: Any, looks: int, *rest: Any
    ) -> None:
        found.looks.append(looks)
        if looks:  # no rehearsal
            found.selection.append(list(images.indices))
            found.now += 7
        begin(self, folded, images, budget, unseen, looks, *rest)

    def watched_judge(self: Judge, name: str, network: Any, seconds: float = 0.0, **how: Any) -> Step:
        found.logits[name], found.batches[name] = self.logits(network), list(self.images.batches())
        return judge(self, name, network, seconds, **how)

    monkeypatch.setattr(quantize, "quantize_network", watched_make)
    monkeypatch.setattr(quantize, "time", SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(Judge, "__init__", watched_begin)
    monkeypatch.setattr(Judge, "judge", watched_judge)
    return found


@pytest.fixture
def plant(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which networks pass, and what their risk is (1 if not said), as if there were enough images to tell."""
    watched = Judge.judge
    monkeypatch.setattr(Enough, "__bool__", lambda _: True)

    def put(passing: Passing, risks: dict[str, float] | None = None) -> None:
        def judge(self: Judge, name: str, network: Any, seconds: float = 0.0, **how: Any) -> Step:
            step = watched(self, name, network, seconds, **how)
            risk = (risks or {}).get(name, 1.0)
            return dataclasses.replace(step, passed=passing(name, network), risk_pp=risk, judged=None)

        monkeypatch.setattr(Judge, "judge", judge)

    return put


@pytest.fixture
def cheap(run_quantize: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every step as cheap as the first, where only their order counts."""
    for name in NAMES:
        monkeypatch.setitem(quantize.SEQUENCE, name, quantize.BARE)


def never(name: str, network: ConvNeXt) -> bool:
    return False


def names(artifact: Artifact) -> list[str]:
    return [step.name for step in selection_of(artifact).steps]


@torch.no_grad()
def logits_of(artifact: Artifact, seen: Seen) -> Tensor:
    """The logits of the opened artifact on the images that judged the chosen step, in the batches of the judge."""
    network = load_network(read_artifact(artifact.path))
    return torch.cat([network(batch) for batch in seen.batches[selection_of(artifact).chosen]])


def in_float(network: ConvNeXt, layer: str) -> bool:
    """Whether a layer has no quantizers, or sleeping ones."""
    found = dict(quantized_layers(network)).get(layer)
    return found is None or not found.weight_quantizer.enabled


@pytest.mark.parametrize("winner", NAMES)
def test_first_step_that_passes_wins_and_no_later_one_is_tried(
    winner: str, run_quantize: Quantize, plant: Callable[..., None], seen: Seen
) -> None:
    # the steps that fail have less risk, and must lose all the same
    plant(lambda name, _: name == winner, {winner: 9.0})
    tried = list(NAMES[: NAMES.index(winner) + 1])
    assert names(artifact := run_quantize()) == tried
    assert seen.steps == [quantize.SEQUENCE[name] for name in tried]
    assert selection_of(artifact).chosen == winner
    assert selection_of(artifact).reason == "its risk of 9.00 pp is within the 0.20 pp allowed"
    assert torch.equal(logits_of(artifact, seen), seen.logits[winner])
    assert selection_of(artifact).effects == ()


def test_steps_do_what_their_names_say() -> None:
    assert tuple(quantize.SEQUENCE) == NAMES
    done = [(steps.smoothing, steps.bias_correction, steps.gptq) for steps in quantize.SEQUENCE.values()]
    assert done == [(False,) * 3, (False,) * 3, (True, False, False), (True, True, False), (True, True, True)]
    assert [steps.calibration_method for steps in quantize.SEQUENCE.values()] == ["minmax", *["auto"] * 4]


@pytest.mark.heavy
def test_step_with_least_risk_is_kept_when_none_passes(
    run_quantize: Quantize, plant: Callable[..., None], seen: Seen, lines: RecordingProgress
) -> None:
    plant(never, dict(zip(NAMES, (5.0, 3.0, 1.0, 4.0, 2.0), strict=True)))
    artifact = run_quantize(method="ptq")
    selection, ptq = selection_of(artifact), ptq_of(artifact)
    assert names(artifact) == list(NAMES)
    assert selection.chosen == "smoothing"
    assert ptq.smoothing
    assert ptq.layers_rounded is None
    assert torch.equal(logits_of(artifact, seen), seen.logits["smoothing"])
    assert not torch.equal(seen.logits["smoothing"], seen.logits["GPTQ"])
    worst = ", ".join(effect.layer for effect in selection.effects[:5])
    least = "no step's risk is within 0.20 pp, and its 1.00 pp is the least"
    assert selection.reason == f"{least}; the most sensitive layers are {worst}"
    # every layer was tried alone, and the worst comes first
    layers = dict(quantized_layers(load_network(artifact)))
    assert {effect.layer for effect in selection.effects} == layers.keys()
    harm = [effect.kl for effect in selection.effects if effect.kl is not None]
    assert harm == sorted(harm, reverse=True)
    assert any(
        line.startswith("sequence: a few layers in float are not enough; the most sensitive: ") for line in lines.said
    )
    assert lines.said[-1] == f"sequence: selected smoothing: {selection.reason}"


@pytest.mark.usefixtures("cheap")
def test_manifest_holds_what_was_tried_and_opens_again(
    run_quantize: Quantize, plant: Callable[..., None], seen: Seen
) -> None:
    plant(never)
    sites = {"stages.3.*": "float", "head": "int8"}
    artifact = run_quantize(sites=sites, method="ptq", target="onnxruntime", max_drop_pp=0.5)
    found = read_artifact(artifact.path)
    assert found.details == artifact.details
    selection, ptq = selection_of(found), ptq_of(found)
    assert (found.precision, found.target, torch_details(found).sites) == ("int8", "onnxruntime", sites)
    assert (selection.max_drop_pp, ptq.calibration_images) == (0.5, 12)
    assert [step.seconds for step in selection.steps] == [10.0] * 5
    assert "head" in {effect.layer for effect in selection.effects}
    assert not any(effect.layer.startswith("stages.3.") for effect in selection.effects)
    assert torch.equal(logits_of(artifact, seen), seen.logits["min-max"])


@pytest.mark.parametrize(
    "layer", ["stages.2.0.pwconv2", pytest.param("downsample_layers.1.1", marks=pytest.mark.heavy)]
)
def test_layer_that_hurts_stays_in_float_and_the_manifest_says_so(
    layer: str, run_quantize: Quantize, plant: Callable[..., None], seen: Seen
) -> None:
    plant(lambda name, network: in_float(network, layer), {"bias correction": 0.5})
    artifact = run_quantize(sites={"stages.0.0.pwconv1": "float"})
    assert names(artifact) == [*NAMES, "layers in float"]
    assert seen.looks == [7, 0]  # how many layers it takes was rehearsed on other images
    found = read_artifact(artifact.path)
    assert (selection_of(found).chosen, ptq_of(found).float_layers) == ("layers in float", (layer,))
    assert torch_details(found).sites == {"stages.0.0.pwconv1": "float", layer: "float"}
    assert selection_of(found).reason.endswith(f", with {layer} in float")
    network = load_network(read_artifact(artifact.path))
    assert len(dict(quantized_layers(network))) == 9  # of 8 in blocks and 3 between them, all but two
    assert type(network.get_submodule(layer)) in (torch.nn.Linear, torch.nn.Conv2d)
    assert torch.equal(logits_of(artifact, seen), seen.logits["layers in float"])


def test_qat_goes_to_training_from_one_step(
    run_quantize: Quantize, seen: Seen, small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_on = vars(quantize)["train_quantized"]
    trained: list[Any] = []

    def watch(*arguments: Any) -> Any:
        trained.append(arguments[-1].need_data().train)
        return train_on(*arguments)

    monkeypatch.setattr(quantize, "train_quantized", watch)
    artifact = run_quantize(method="qat", max_drop_pp=100.0)
    assert names(artifact) == ["bias correction", "training"]
    assert selection_of(artifact).chosen == "training"
    assert [row["epoch"] for row in torch_details(artifact).history] == [1]
    assert torch.equal(logits_of(artifact, seen), seen.logits["training"])
    assert not torch.equal(seen.logits["training"], seen.logits["bias correction"])
    # training is judged by the images that judged the step before it, a quarter of all
    assert seen.selection[0] == seen.selection[1]
    assert (len(seen.selection[0]), seen.looks) == (9, [2, 2])
    assert selection_of(artifact).images == 9
    # which training does not see, and all others it does
    others = [index for index in range(36) if index not in seen.selection[0]]
    assert len(trained[0]) == len(others)
    for place, index in enumerate(others):
        assert trained[0].content(place) == small_data.train.content(index)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("method", ["auto", "qat"])
def test_training_that_makes_it_worse_is_not_kept(
    method: str, run_quantize: Quantize, plant: Callable[..., None], seen: Seen
) -> None:
    plant(never, {"training": 5.0})
    # a rate at which training breaks the network
    artifact = run_quantize(method=method, fit=dataclasses.replace(SHORT, base_learning_rate=4.0), max_drop_pp=0.0)
    assert names(artifact)[-1] == "training"
    chosen = selection_of(artifact).chosen
    assert torch.equal(logits_of(artifact, seen), seen.logits[chosen])


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("budget", "tried"), [(5, 1), (26, 1), (27, 2), (57, 5)])
def test_time_budget_begins_no_step_that_would_not_end_within_it(
    budget: float, tried: int, run_quantize: Quantize, plant: Callable[..., None], lines: RecordingProgress
) -> None:
    plant(never)
    artifact = run_quantize(method="ptq", time_budget_s=budget)
    assert names(artifact) == list(NAMES[:tried])
    said = (
        f"the time budget of {budget} s leaves none for '{NAMES[tried]}'" if tried < 5 else "no step's risk is within"
    )
    assert selection_of(artifact).reason.startswith(said)
    assert f"selected min-max: {said}" in lines.said[-1]


@pytest.mark.usefixtures("cheap")
def test_training_that_would_not_end_within_the_budget_is_not_begun(
    run_quantize: Quantize, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(never)
    monkeypatch.setattr(quantize, "training_seconds", lambda *_: 44.0)
    artifact = run_quantize(time_budget_s=100)
    assert (names(artifact), selection_of(artifact).chosen) == (list(NAMES), "min-max")
    assert selection_of(artifact).reason == "training would take 44 s, more than the time budget leaves"
    monkeypatch.setattr(quantize, "training_seconds", lambda *_: 43.0)
    assert names(run_quantize(time_budget_s=100)) == [*NAMES, "training"]


@pytest.mark.usefixtures("seen")
@pytest.mark.heavy
def test_seed_decides_every_bit_of_the_weights(run_quantize: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "SEQUENCE", {"GPTQ": quantize.SEQUENCE["GPTQ"]})
    first, again, other = (run_quantize(seed) for seed in (7, 7, 8))
    assert (ptq_of(first).layers_rounded or 0) > 0
    assert first.sha256 == again.sha256 != other.sha256
    assert first.details == again.details
