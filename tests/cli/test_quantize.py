"""`convnext-deploy quantize`: what it says of its steps, what its options do, and what is left when nothing is good enough."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, read_artifact, write_manifest
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DeployError
from convnext_deploy.stages import quantize, train
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from tests.cli.conftest import Outcome, assert_nothing_half_written, call
from tests.details import ptq_of, selection_of, torch_details

FIT = FitConfig(epochs=4, batch_size=12, base_learning_rate=0.256, warmup_epochs=0, drop_path_rate=0, autocast="off")
ONCE = ("--workers", "0", "--device", "cpu", "--calibration-images", "12")
HERE = (*ONCE, "--selection-images", "18")
STEPS = ["min-max", "ranges by error", "smoothing", "bias correction", "GPTQ"]
# top-1, drop and its interval, agreement, KL, noise, risk, seconds
FIGURES = (
    r"top-1 \d+\.\d\d %, drop [+-]\d+\.\d\d pp \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\], agreement \d+\.\d\d %, "
    r"KL [\d.e+-]+, -?\d+\.\d dB, risk \d+\.\d\d pp, \d+\.\d s"
)


@dataclass(frozen=True)
class Quantized:
    """A call of the command, its folder, and what came of it."""

    command: tuple[str | Path, ...]
    out: Path
    outcome: Outcome

    @property
    def artifact(self) -> Artifact:
        return read_artifact(self.out / "stages" / "quantize")

    @property
    def said(self) -> list[str]:
        """What was said of steps and of the choice, in order."""
        return [
            line.removeprefix("quantize: ")
            for line in self.outcome.err.splitlines()
            if re.fullmatch(rf"quantize: [A-Za-z -]+: {FIGURES}|quantize: selected [A-Za-z -]+: .*", line)
        ]


@pytest.fixture(scope="module")
def source(small_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small network that tells the three colours apart."""
    folder = tmp_path_factory.mktemp("source")
    context = StageContext("float", folder, small_data, Execution(), folder / "cache")
    write_manifest(train.run(TrainConfig(ModelConfig("test_convnext2", 32), FIT), None, context))
    return folder


@pytest.fixture(scope="module")
def good(source: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """A run in which the first step does."""
    out = tmp_path_factory.mktemp("good")
    options = ("--target", "openvino", "--time-budget", "1.5h", "--method", "ptq", "--max-drop", "60", *HERE)
    command = ("quantize", source, "--data", image_folder, "--out", out, *options)
    return Quantized(command, out, call(*command))


@pytest.fixture(scope="module")
def few(source: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """A run in which every step would do, but 18 images cannot tell."""
    out = tmp_path_factory.mktemp("few")
    command = ("quantize", source, "--data", image_folder, "--out", out, "--method", "ptq", *HERE)
    return Quantized(command, out, call(*command))


@pytest.fixture(scope="module")
def bad(source: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quantized]:
    """A run in which quantization takes every class for the next one, so that no step is any good."""
    out = tmp_path_factory.mktemp("bad")
    make = vars(quantize)["quantize_network"]

    @torch.no_grad()
    def spoil(*arguments: Any, **options: Any) -> Any:
        network, details = make(*arguments, **options)
        for parameter in network.head.parameters():
            parameter.copy_(parameter.roll(1, 0))
        return network, details

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "quantize_network", spoil)
        command = ("quantize", source, "--data", image_folder, "--out", out, "--method", "ptq", *HERE)
        yield Quantized(command, out, call(*command))


def test_it_says_a_line_for_the_step_and_one_for_the_choice(good: Quantized) -> None:
    assert good.outcome.code == 0
    step, choice = good.said
    assert step.startswith("min-max: top-1 100.00 %, drop +0.00 pp")
    risk = selection_of(good.artifact).steps[0].risk_pp
    assert 26 < risk < 60  # of 18 images that keep their answers
    assert choice == f"selected min-max: its risk of {risk:.2f} pp is within the 60.00 pp allowed"
    assert "quantize: 12 training images calibrate, 18 others judge" in good.outcome.err.splitlines()
    assert_nothing_half_written(good.out)


def test_artifact_was_made_with_the_options_given(good: Quantized) -> None:
    artifact = good.artifact
    assert (artifact.precision, artifact.target, selection_of(artifact).chosen) == ("int8", "openvino", "min-max")
    record = artifact.lineage[-1]
    given = ("method", "target", "time_budget_s", "calibration_images", "selection_images", "max_drop_pp")
    assert [record.config[name] for name in given] == ["ptq", "openvino", 5400.0, 12, 18, 60.0]
    assert ptq_of(artifact).calibration_images == 12


def test_same_command_again_executes_nothing(good: Quantized) -> None:
    before = good.artifact
    again = call(*good.command)
    assert (again.code, again.out) == (0, good.outcome.out)
    assert "quantize: up to date" in again.err.splitlines()
    assert "min-max" not in again.err
    assert good.artifact == before


def test_sequence_with_one_step_stands_in_the_report(good: Quantized) -> None:
    (row,) = step_rows(good)
    assert row[0] == "min-max"
    assert row[-1] == "passed"
    text = (good.out / "report.md").read_text()
    assert f"Selected {selection_of(good.artifact).chosen}: {selection_of(good.artifact).reason}." in text
    assert "What quantize tried, on 18 training images set aside:" in text


def test_too_few_images_to_tell_are_said_and_the_safest_step_is_kept(few: Quantized) -> None:
    """Nothing passes, what takes no time is all tried, and no time is spent on more. The run does not fail for it."""
    assert few.outcome.code == 0
    selection = selection_of(few.artifact)
    needed = 2738  # (1 - 0.002)^2738 <= 0.05 / 6 steps / 2 halves of the bound
    assert (selection.images, selection.images_needed) == (18, needed)
    cannot = f"18 images are too few to tell a drop of 0.20 pp, which takes at least {needed:,}"
    assert f"quantize: {cannot}; the step with the least risk is kept, unproven" in few.outcome.err.splitlines()
    assert [step.name for step in selection.steps] == STEPS
    assert not any(step.passed for step in selection.steps)
    risks = {step.name: step.risk_pp for step in selection.steps}
    assert selection.chosen == min(selection.steps, key=lambda step: step.risk_pp).name  # the cheapest of equals
    assert risks[selection.chosen] == min(risks.values()) > 26
    assert selection.reason.startswith(f"unproven, as {cannot}; its risk of {min(risks.values()):.2f} pp is the least")
    text = (few.out / "report.md").read_text()
    assert f"on 18 training images set aside, where it takes at least {needed:,} to tell a drop of 0.20 pp:" in text
    assert f"Selected {selection.chosen}: unproven, as {cannot}" in text


def step_rows(run: Quantized) -> list[list[str]]:
    """The cells of the rows of the sequence's table in the report."""
    lines = (run.out / "report.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| step |"))
    assert lines[start - 2].startswith("What quantize tried")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.split("|")[1:-1]])
    assert {len(row) for row in rows} == {lines[start].count("|") - 1}
    return rows


def test_gate_that_fails_gives_3_and_names_the_layers_that_hurt(bad: Quantized) -> None:
    assert bad.outcome.code == 3
    selection = selection_of(bad.artifact)
    worst = ", ".join(effect.layer for effect in selection.effects[:5])
    assert worst.count("stages.") + worst.count("downsample_layers.") == 5
    text = (bad.out / "report.md").read_text()
    assert f"; the most sensitive layers are {worst}." in text
    assert f"Selected {selection.chosen}: no step's risk is within 0.20 pp, and its " in text
    assert "1 of 1 gates failed: quantize" in bad.outcome.out
    assert "100.00 pp" in bad.outcome.out
    assert_nothing_half_written(bad.out)


def test_it_says_a_line_for_every_step(bad: Quantized) -> None:
    *steps, choice = bad.said
    assert [line.split(":")[0] for line in steps] == STEPS
    # the float network is right about every image, and this one about none
    assert all(": top-1 0.00 %, drop +100.00 pp [" in line and "agreement 0.00 %" in line for line in steps)
    selection = selection_of(bad.artifact)
    assert choice == f"selected {selection.chosen}: {selection.reason}"


def test_every_step_stands_in_the_report_as_in_the_artifact(bad: Quantized) -> None:
    rows = step_rows(bad)
    assert [row[0] for row in rows] == STEPS
    for row, step in zip(rows, selection_of(bad.artifact).steps, strict=True):
        assert row[1:4] == ["0.00", f"+100.00 [{step.interval_pp[0]:+.2f}, {step.interval_pp[1]:+.2f}]", "0.00"]
        assert row[6] == f"{step.risk_pp:.2f}"
        assert (row[-1], step.passed) == ("selected" if step.name == selection_of(bad.artifact).chosen else "", False)


def test_json_has_the_sequence(bad: Quantized) -> None:
    outcome = call("report", bad.out, "--json")
    assert outcome.code == 3
    row = json.loads(outcome.out)["rows"][-1]
    selection = dataclasses.asdict(dataclasses.replace(selection_of(bad.artifact), effects=()))
    assert row["history"]["selection"] == json.loads(json.dumps(selection))


def test_calibration_method_quantizes_once(source: Path, image_folder: Path, tmp_path: Path) -> None:
    outcome = call(
        "quantize", source, "--data", image_folder, "--out", tmp_path, "--calibration-method", "percentile", *ONCE
    )
    assert outcome.code == 0
    assert ": selected " not in outcome.err
    artifact = read_artifact(tmp_path / "stages" / "ptq")
    assert artifact.lineage[-1].config["calibration_method"] == "percentile"
    assert torch_details(artifact).selection is None
    assert "Selected " not in (tmp_path / "report.md").read_text()


# of 36 images a batch is 8, and 50 epochs of 4 steps would be the 200 that are wanted: 30 are the most; 5e-5 at a batch of 512
# falls with the square root, and is said for one of 4096
FIT = dataclasses.replace(
    QATConfig().fit, batch_size=8, epochs=30, base_learning_rate=5e-5 * (8 / 512) ** 0.5 * 4096 / 8
)
DEFAULT = QuantizeConfig(fit=FIT)
OPTIONS: list[tuple[tuple[str, ...], QuantizeConfig | PTQConfig]] = [
    ((), DEFAULT),
    (("--method", "qat"), dataclasses.replace(DEFAULT, method="qat")),
    (("--target", "onnxruntime"), dataclasses.replace(DEFAULT, target="onnxruntime")),
    (("--target", "tensorrt-depthwise"), dataclasses.replace(DEFAULT, target="tensorrt-depthwise")),
    (("--time-budget", "90"), dataclasses.replace(DEFAULT, time_budget_s=90.0)),
    (("--time-budget", "90s"), dataclasses.replace(DEFAULT, time_budget_s=90.0)),
    (("--time-budget", "20m"), dataclasses.replace(DEFAULT, time_budget_s=1200.0)),
    (("--time-budget", "1.5h"), dataclasses.replace(DEFAULT, time_budget_s=5400.0)),
    (("--calibration-images", "13"), dataclasses.replace(DEFAULT, calibration_images=13)),
    (("--selection-images", "77"), dataclasses.replace(DEFAULT, selection_images=77)),
    (("--max-drop", "1.5"), dataclasses.replace(DEFAULT, max_drop_pp=1.5)),
    (("--max-drop", "0"), dataclasses.replace(DEFAULT, max_drop_pp=0.0)),
    (("--epochs", "3"), dataclasses.replace(DEFAULT, fit=dataclasses.replace(FIT, epochs=3, warmup_epochs=0.05))),
    (("--calibration-method", "mse"), PTQConfig(calibration_method="mse")),
    (
        ("--calibration-method", "minmax", "--target", "openvino", "--calibration-images", "9"),
        PTQConfig(calibration_method="minmax", target="openvino", calibration_images=9),
    ),
]


@pytest.mark.parametrize(("options", "config"), OPTIONS, ids=[" ".join(options) for options, _ in OPTIONS])
def test_options_reach_the_stage(
    options: tuple[str, ...],
    config: QuantizeConfig | PTQConfig,
    source: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[StageEntry] = []

    def take(recipe: Recipe, *rest: Any) -> None:
        found.extend(recipe.stages)
        raise DeployError("enough")

    monkeypatch.setattr("convnext_deploy.api.quantize.run_stages", take)
    outcome = call("quantize", source, "--data", image_folder, *options)
    assert (outcome.code, outcome.err) == (1, "error: enough\n")
    (stage,) = found
    assert stage.config == config
    # what may be lost on the way may be lost in the end
    drop = config.max_drop_pp if isinstance(config, QuantizeConfig) else 0.2
    assert (stage.name, stage.gate.max_top1_drop_pp) == (config.kind, drop)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-drop", "-0.1"),
        ("--max-drop", "101"),
        ("--target", "tensorflow"),
        ("--method", "best"),
        ("--calibration-method", "median"),
        ("--calibration-images", "0"),
        ("--selection-images", "0"),
        *(("--time-budget", value) for value in ("0", "0s", "-5", "soon", "1d", "1h30m", "")),
    ],
)
def test_bad_value_gives_2_and_one_line(
    option: str, value: str, source: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = call("quantize", source, "--data", image_folder, "--out", out, option, value)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("Error: ") == 1
    assert outcome.err.splitlines()[-1].startswith(f"Error: Invalid value for '{option}': ")
    assert not out.exists()


@pytest.mark.parametrize("options", [("--method", "qat"), ("--time-budget", "5m"), ("--selection-images", "9")])
def test_options_of_the_sequence_do_not_go_with_a_fixed_method(
    options: tuple[str, ...], source: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("quantize", source, "--data", image_folder, "--out", out, "--calibration-method", "minmax")
    outcome = call(*command, *options)
    assert (outcome.code, outcome.out) == (1, "")
    assert (
        outcome.err
        == "error: --calibration-method quantizes once, without --method qat, --selection-images and --time-budget.\n"
    )
    assert not out.exists()


def test_images_are_needed(source: Path) -> None:
    outcome = call("quantize", source)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: quantization needs images: give the image folder with --data DIR.\n"
