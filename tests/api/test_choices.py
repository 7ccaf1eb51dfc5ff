"""What a verb chooses for the images, says before it begins and keeps in the report; and how long it thinks that takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext_deploy.api.distill import distill
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.api.train import train
from convnext_deploy.api.training_presets import Role, choose, override_fit, peak_rate
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.unlabelled import Unlabelled
from convnext_deploy.errors import StoppedError
from convnext_deploy.pipeline import estimate
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress, describe_time


class Listener(SilentProgress):
    """Keeps what is said, and answers what is asked."""

    def __init__(self, answer: bool = True) -> None:
        self.lines: list[str] = []
        self.asked: list[str] = []
        self.answer = answer

    def say(self, message: str) -> None:
        self.lines.append(message)

    def ask(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer


def how(progress: Listener, **options: Any) -> ExecutionOptions:
    return ExecutionOptions(progress=progress, workers=0, **options)


def test_dry_run_of_distill_says_what_is_chosen_and_writes_nothing(image_folder: Path, tmp_path: Path) -> None:
    heard, again = Listener(), Listener()
    asked = TrainingOptions(epochs=2)
    data = DataOptions(str(image_folder))
    plans = [
        distill(
            "test_convnext", "atto", out=tmp_path / "run", data=data, training=asked, execution=how(to, dry_run=True)
        ).planned
        for to in (heard, again)
    ]
    assert plans[0] == plans[1]
    assert [(stage.name, runs) for stage, runs in plans[0]] == [("teacher", True), ("student", True)]
    for stage, _ in plans[0]:
        fit, model = stage.config.fit, stage.config.model  # type: ignore[attr-defined]  # of stages that train
        assert (fit.epochs, fit.batch_size, model.image_size) == (2, 8, 32)
        assert model.patch_size == 2
        told = [line for line in heard.lines if line.startswith(f"{stage.name}: ")]
        assert len(told) == 3
        assert " at 32 pixels, stem 2" in told[0]
        assert f"batch 8, learning rate up to {peak_rate(fit):.1e}".replace("e-0", "e-") in told[1]
        assert told[2].endswith("as asked for: epochs 2")
    assert not (tmp_path / "run").exists()


def test_train_keeps_in_its_report_how_it_was_chosen(image_folder: Path, tmp_path: Path) -> None:
    result = train(
        "test_convnext",
        out=tmp_path,
        data=DataOptions(str(image_folder)),
        training=TrainingOptions(epochs=1),
        execution=how(Listener()),
    )
    row = result.report.rows[-1]
    assert any("from scratch" in note and "as asked for: epochs 1" in note for note in row.notes)
    assert result.planned == ()


def test_what_is_asked_for_wins_and_the_rest_suits_it() -> None:
    chosen = FitConfig(epochs=40, batch_size=16, base_learning_rate=0.09, warmup_epochs=2.0)
    same = override_fit(chosen, TrainingOptions())
    assert same == chosen
    larger = override_fit(chosen, TrainingOptions(batch_size=64, epochs=10))
    assert (larger.batch_size, larger.epochs, larger.warmup_epochs) == (64, 10, 0.5)
    assert peak_rate(larger) == pytest.approx(
        2 * peak_rate(chosen), rel=1e-4
    )  # the square root of four times the batch
    told = override_fit(chosen, TrainingOptions(batch_size=64, base_learning_rate=0.01))
    assert told == dataclasses.replace(chosen, batch_size=64, base_learning_rate=0.01)


def test_estimate_is_measured_on_steps_changes_nothing_and_asks_before_an_hour(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_WORTH_MEASURING_S", 0.0)
    monkeypatch.setattr(estimate, "LONG_S", 0.0)
    heard = Listener(answer=False)
    state = torch.get_rng_state()
    data, asked = DataOptions(str(image_folder)), TrainingOptions(epochs=1)
    with pytest.raises(StoppedError, match=r"^nothing was trained, because it would take about .*--yes goes on"):
        distill("test_convnext", "test_convnext", out=tmp_path, data=data, training=asked, execution=how(heard))
    assert torch.equal(torch.get_rng_state(), state)
    told = [line for line in heard.lines if "measured on a few steps" in line]
    assert [line.split(":")[0] for line in told] == ["teacher", "student"]
    assert any(line.startswith("in all about ") for line in heard.lines)
    assert len(heard.asked) == 1
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(("seconds", "lines"), [(45.0, 3), (25.0, 0)])
def test_every_training_is_told_where_all_together_take_a_minute(
    seconds: float, lines: int, small_recipe: Recipe, small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Listener()
    monkeypatch.setattr(
        estimate, "_estimate", lambda each, data, execution: estimate.Estimate(each.stage, seconds, 1e9, False)
    )
    estimate.tell_estimates(small_recipe, (), small_data, {}, Execution(progress=heard))
    assert len(heard.lines) == lines
    assert heard.lines[-1:] == ["in all about 2 minutes"] * bool(lines)


def test_estimate_counts_images_without_labels_where_they_teach(
    small_recipe: Recipe, small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_WORTH_MEASURING_S", 1e9)
    assert isinstance(small_data.train, FolderImages)
    more = dataclasses.replace(small_data, unlabelled=Unlabelled("more", small_data.train))
    before, after = (estimate.tell_estimates(small_recipe, (), data, {}, Execution()) for data in (small_data, more))
    ratios = {old.stage: new.seconds / old.seconds for old, new in zip(before, after, strict=True)}
    assert ratios == {"teacher": 1.0, "student": 36 * 2 // 16 / (36 // 16)}  # batches of 16


def test_steps_of_an_epoch_count_images_without_labels_where_they_teach(small_data: Data) -> None:
    assert isinstance(small_data.train, FolderImages)
    more = dataclasses.replace(small_data, unlabelled=Unlabelled("more", small_data.train))
    cases: tuple[tuple[Role, Data, int], ...] = (
        ("student", small_data, 4),
        ("student", more, 9),
        ("pruned", more, 9),
        ("model", more, 4),
    )
    for role, data, steps in cases:
        chosen = choose("atto", DataOptions("photos"), TrainingOptions(), data, None, role)
        assert f" epochs of {steps} steps, batch 8," in " ".join(chosen.words), (role, chosen.words)


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 seconds"), (600, "10 minutes"), (9000, "2.5 hours"), (400_000, "5 days")]
)
def test_describe_time_is_as_exact_as_an_estimate(seconds: float, words: str) -> None:
    assert describe_time(seconds) == words


def test_large_networks_learn_the_digits_in_few_epochs_and_ask_their_teacher_once_for_a_crop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_WORTH_MEASURING_S", float("inf"))
    heard = Listener()
    options = how(heard, dry_run=True)
    small = distill("pico", "atto", out=tmp_path, execution=options).planned
    large = distill("base", "tiny", out=tmp_path, execution=options).planned
    by_features = distill("base", "tiny", distill_method="feature", out=tmp_path, execution=options).planned
    epochs = [[stage.config.fit.epochs for stage, _ in plan] for plan in (small, large)]  # type: ignore[attr-defined]
    assert epochs == [[10, 15], [3, 8]]
    students = [plan[1][0].config for plan in (small, large, by_features)]
    assert [config.teacher_cache for config in students] == [False, True, False]  # type: ignore[attr-defined]
    assert students[1].fit.augmentation_epochs == 1  # type: ignore[attr-defined]


def test_labels_have_as_much_to_say_on_the_digits_unless_told_otherwise(tmp_path: Path) -> None:
    for asked, weight in ({}, 0.5), ({"distill_loss_weight": 0.9}, 0.9), ({"distill_method": "teacher-only"}, 0.9):
        heard = Listener()
        plan = distill("pico", "atto", **asked, out=tmp_path, execution=how(heard, dry_run=True)).planned
        config = plan[1][0].config
        assert config.distill_loss_weight == weight  # type: ignore[attr-defined]
        said = [line for line in heard.lines if "for the teacher's loss" in line]
        assert said == ["student: weight 0.5 for the teacher's loss: measured on the digits"] * (weight == 0.5)
