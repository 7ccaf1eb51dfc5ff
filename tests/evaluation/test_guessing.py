"""A network that does not work as it was evaluated is called so, whatever the gates say, and one that works is not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.guessing import doubt_score, find_guessing
from convnext_deploy.evaluation.score import Score


def score(correct: int, total: int, classes: int) -> Score:
    """Return a score of so many images in turn of each class, wrong ones spread over the other classes."""
    labels = [index % classes for index in range(total)]
    wrong = [(label + 1 + index % (classes - 1)) % classes for index, label in enumerate(labels)]
    predictions = [*labels[:correct], *wrong[correct:]]
    return Score(correct, total, tuple(predictions), tuple(labels))


@pytest.mark.parametrize(
    ("correct", "total", "classes", "words"),
    [
        (995, 10_000, 10, "is chance level: guessing gives 10 % with 10 classes"),  # folders 1…10 in another order
        (1340, 10_000, 10, "is little better than guessing, which gives 10 % with 10 classes"),  # another image size
        (
            64,
            400,
            10,
            "is little better than guessing, which gives 10 % with 10 classes",
        ),  # the interval begins at 12.7 %
        (50, 400, 10, "is chance level"),  # at 9.6 %
        (1900, 10_000, 10, None),
        (6600, 10_000, 10, None),
        (0, 540, 10, "is worse than guessing"),
        (3, 50, 10, "is chance level"),
        (46, 50, 10, None),
        (524, 1000, 2, "is chance level: guessing gives 50 %"),
        (600, 1000, 2, None),
        (6, 10, 2, "cannot be told from chance level (95 % interval from 31.3 %)"),
        (50, 50_000, 1000, "is chance level: guessing gives 0.1 % with 1,000 classes"),
        (5_000, 50_000, 1000, None),  # after an epoch or two
    ],
)
def test_find_guessing_says_what_is_no_better_than_chance(
    correct: int, total: int, classes: int, words: str | None
) -> None:
    found = find_guessing(score(correct, total, classes), classes)
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert words in found
        assert f"top-1 {100 * correct / total:.2f} % on {total:,} images" in found


def test_find_guessing_sees_a_constant_answer_behind_a_high_top1() -> None:
    labels = (0,) * 90 + (1,) * 10
    assert find_guessing(Score(90, 100, (0,) * 100, labels), 2, ("healthy", "ill")) == (
        "top-1 90.00 % on 100 images: it answers 'healthy' to every image"
    )
    nearly = Score(89, 100, (0,) * 89 + (1,) + (0,) * 10, labels)
    found = find_guessing(nearly, 2, ("healthy", "ill"))
    assert found is not None
    assert "is no better than always answering 'healthy', which gives 90.00 %" in found
    better = Score(95, 100, (0,) * 90 + (1,) * 5 + (0,) * 5, labels)
    assert find_guessing(better, 2) is None


def network(classes: int, **changes: Any) -> Artifact:
    model = ModelSpec("convnext_tiny", classes)
    fields: dict[str, Any] = {
        "path": None,
        "details": TorchDetails(),
        "precision": "fp32",
        "model": model,
        "class_names": None,
        "preprocess": default_preprocess(64),
        "files": (),
    }
    return Artifact(**(fields | changes))


def images_of(names: tuple[str, ...], fingerprint: str = "these") -> Data:
    data: Any = SimpleNamespace(class_names=names, judged_on=fingerprint)
    return data  # type: ignore[no-any-return]


def test_doubt_names_size_crop_normalization_and_order_of_the_classes() -> None:
    data = images_of(("cat", "dog", "eel", "fox", "gnu"))
    found = doubt_score(score(100, 500, 5), network(5), data)
    assert found is not None
    assert "image size (here 64), crop (here 1, the shorter side resized to 64, bicubic)" in found
    assert "normalization (here mean 0.485/0.456/0.406, std 0.229/0.224/0.225)" in found
    order = "order of the classes (here 0 = cat, 1 = dog, 2 = eel, …, 4 = gnu, the data's, because the file names none)"
    assert found.endswith(f"{order}; say what differs with --image-size, --crop-pct, --mean, --std, --classes FILE")
    assert doubt_score(score(400, 500, 5), network(5), data) is None


def test_network_that_was_trained_here_may_have_learned_too_little() -> None:
    record: Any = SimpleNamespace(kind="train")
    found = doubt_score(
        score(100, 500, 5), network(5, lineage=(record,)), images_of(("cat", "dog", "eel", "fox", "gnu"))
    )
    assert str(found).endswith("; it may also have learned too little: train for more epochs")


@pytest.mark.parametrize(
    ("first", "top1", "doubted"),
    [("n01440764", 0.40, True), ("tench", 0.78, True), ("n01440764", 0.81, False), ("apple", 0.40, False)],
)
def test_doubt_of_a_baseline_far_below_its_published_figure(first: str, top1: float, doubted: bool) -> None:
    """Convnext_tiny is published with 82.1 % at 224 pixels."""
    data = images_of((first, *(f"class {label}" for label in range(999))))
    measured = score(round(10_000 * top1), 10_000, 1000)
    found = doubt_score(measured, network(1000), data)
    assert (found is not None) is doubted
    if found is not None:
        assert "is far below the 82.10 % published for convnext_tiny.fb_in1k" in found
        assert "at 224 pixels; check what it was trained with: image size (here 64)" in found


@pytest.mark.parametrize(("now", "doubted"), [("these", True), ("others", False)])
def test_doubt_of_a_baseline_far_below_what_its_training_measured(now: str, doubted: bool) -> None:
    record: Any = SimpleNamespace(kind="train", judged_on="these")
    history = ({"validation_top1": 0.3}, {"validation_top1": 0.5, "ema_validation_top1": 0.9})
    trained = network(5, details=TorchDetails(history=history), lineage=(record,))
    data = images_of(tuple("abcde"), now)
    found = doubt_score(score(600, 1000, 5), trained, data)
    assert (found is not None) is doubted
    assert doubt_score(score(880, 1000, 5), trained, data) is None
    assert doubt_score(score(600, 1000, 5), dataclasses.replace(trained, precision="int8"), data) is None


def test_one_image_and_one_class_are_said_as_such() -> None:
    found = find_guessing(Score(0, 0, (0,), (1,)), 1)
    assert found is not None
    assert "on 1 image " in found
    assert "with 1 class" in found
    assert not found.endswith("classes")
