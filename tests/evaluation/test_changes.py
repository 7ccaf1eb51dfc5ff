"""Class by class and image by image: what changed, which classes are named, and the file of the images."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.data.datasets import ArrayImages, Data, FolderImages, open_data
from convnext_deploy.evaluation.flips import ClassChange, Flip, compare_classes, find_flips, image_namer, write_flips
from convnext_deploy.evaluation.gate import measure_drop
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.paired import mcnemar_p_value

LABELS = (0, 0, 0, 2, 2, 2, 2)
BEFORE = (0, 0, 1, 2, 2, 0, 1)
AFTER = (0, 1, 0, 2, 1, 2, 0)


def score(predictions: tuple[int, ...] | NDArray[np.int64], labels: tuple[int, ...] | NDArray[np.int64]) -> Score:
    guessed, truth = tuple(map(int, predictions)), tuple(map(int, labels))
    return Score(sum(map(int.__eq__, guessed, truth)), len(truth), guessed, truth)


def lose(counts: dict[int, tuple[int, int, int]]) -> tuple[Score, Score]:
    """Return the scores of an artifact and its baseline over classes with `(images, lost, gained)`."""
    labels: list[int] = []
    before: list[int] = []
    after: list[int] = []
    for label, (images, lost, gained) in counts.items():
        labels += [label] * images
        before += [label] * lost + [-1] * gained + [label] * (images - lost - gained)
        after += [-1] * lost + [label] * gained + [label] * (images - lost - gained)
    return score(tuple(after), tuple(labels)), score(tuple(before), tuple(labels))


def test_compare_classes_counts_each_class_that_has_images() -> None:
    changes = compare_classes(score(AFTER, LABELS), score(BEFORE, LABELS), ("cat", "dog", "owl"))
    assert changes == (ClassChange(0, "cat", 3, 2, 2, 1, 1, 0.0, 1.0), ClassChange(2, "owl", 4, 2, 2, 1, 1, 0.0, 1.0))


def test_compare_classes_names_classes_by_number_when_they_have_no_names() -> None:
    assert [change.name for change in compare_classes(score(AFTER, LABELS), score(BEFORE, LABELS))] == ["0", "2"]


def test_compare_classes_adds_up_to_the_drop_for_random_predictions() -> None:
    rng = np.random.default_rng(0)
    labels, before, after = rng.integers(0, 5, (3, 500))
    changes = compare_classes(score(after, labels), score(before, labels))
    for change in changes:
        own = labels == change.label
        assert change.total == own.sum()
        assert change.correct == (after[own] == change.label).sum()
        assert change.baseline_correct == (before[own] == change.label).sum()
        assert change.correct == change.baseline_correct - change.lost + change.gained
        assert change.top1_drop_pp == pytest.approx(100 * (change.lost - change.gained) / change.total)
    lost = sum(change.lost - change.gained for change in changes)
    assert lost == (before == labels).sum() - (after == labels).sum()


def test_compare_classes_corrects_for_the_classes_that_could_be_significant() -> None:
    changes = compare_classes(*lose({0: (50, 12, 1), 1: (50, 5, 0), 2: (50, 8, 0), 3: (50, 3, 3), 4: (50, 0, 0)}))
    p_values = {change.label: change.p_value for change in changes}
    # three have 6 images or more that changed sides; class 1 with its 5 of 5 could not reach 0.05, and is no test
    assert p_values[0] == pytest.approx(3 * mcnemar_p_value(12, 1))
    assert p_values[2] == pytest.approx(2 * mcnemar_p_value(8, 0))
    assert (p_values[1], p_values[3], p_values[4]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("classes", "images", "changing"),
    [(10, 200, 0.1), *(pytest.param(*case, marks=pytest.mark.heavy) for case in ((100, 50, 0.1), (1000, 50, 0.2)))],
)
def test_compare_classes_rarely_names_a_class_when_nothing_was_lost(classes: int, images: int, changing: float) -> None:
    rng = np.random.default_rng(0)
    runs = 400 if classes < 1000 else 40
    named = 0
    for _ in range(runs):
        lost, gained, _ = rng.multinomial(images, [changing / 2, changing / 2, 1 - changing], classes).T
        counts = {label: (images, int(lost[label]), int(gained[label])) for label in range(classes)}
        named += any(change.p_value <= 0.05 for change in compare_classes(*lose(counts)))
    assert named / runs < 0.07


def test_compare_classes_names_the_one_of_a_thousand_that_is_lost() -> None:
    rng = np.random.default_rng(0)
    counts = {label: (50, int(rng.binomial(50, 0.02)), int(rng.binomial(50, 0.02))) for label in range(1000)}
    counts[123] = (50, 20, 0)
    found = [change.label for change in compare_classes(*lose(counts)) if change.p_value <= 0.05]
    assert found == [123]


def test_find_flips_returns_the_lost_first_and_the_merely_different_last() -> None:
    flips = find_flips(score(AFTER, LABELS), score(BEFORE, LABELS), lambda index: f"{index}.png")
    assert flips == (
        Flip(1, "1.png", 0, 0, 1, "lost"),
        Flip(4, "4.png", 2, 2, 1, "lost"),
        Flip(2, "2.png", 0, 1, 0, "gained"),
        Flip(5, "5.png", 2, 0, 2, "gained"),
        Flip(6, "6.png", 2, 1, 0, "other"),
    )


def test_find_flips_finds_nothing_when_the_guesses_are_the_same() -> None:
    same = score(AFTER, LABELS)
    assert find_flips(same, same, lambda index: None) == ()


def test_find_flips_agrees_with_agreement_and_counts_for_random_predictions() -> None:
    rng = np.random.default_rng(0)
    labels, before, after = rng.integers(0, 4, (3, 300))
    new, baseline = score(after, labels), score(before, labels)
    flips = find_flips(new, baseline, lambda index: None)
    assert len(flips) == round(300 * (1 - measure_drop(new, baseline).agreement))
    counts = Counter(flip.change for flip in flips)
    assert counts["lost"] - counts["gained"] == baseline.correct - new.correct
    assert len({flip.index for flip in flips}) == len(flips)


def test_image_namer_gives_paths_in_the_data_folder(small_data: Data) -> None:
    name = image_namer(small_data)
    assert [name(0), name(1), name(6), name(17)] == ["val/cat/0.png", "val/cat/1.png", "val/dog/0.png", "val/owl/5.png"]
    assert isinstance(small_data.validation, FolderImages)
    for index, path in enumerate(small_data.validation.paths):
        assert Path(small_data.name, str(name(index))) == path


def test_image_namer_gives_paths_in_the_folder_that_was_named(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    for given in (image_folder.name, f"./{image_folder.name}/", f"{image_folder.name}/../{image_folder.name}"):
        assert image_namer(open_data(given))(0) == "val/cat/0.png"


def test_image_namer_gives_the_path_of_an_image_elsewhere_in_full(small_data: Data) -> None:
    assert isinstance(small_data.validation, FolderImages)
    elsewhere = dataclasses.replace(small_data.validation, paths=(Path("/other/1.png"),))
    assert image_namer(dataclasses.replace(small_data, validation=elsewhere))(0) == "/other/1.png"


def test_image_namer_gives_the_place_in_a_shard(small_data: Data) -> None:
    class Shards(ArrayImages):
        def place(self, index: int) -> Path:
            return Path(small_data.name, "val-0.tar", "cat", f"{index}.png")

    shards = Shards(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64))
    assert image_namer(dataclasses.replace(small_data, validation=shards))(1) == "val-0.tar/cat/1.png"


def test_image_namer_gives_no_path_for_the_digits_and_without_data() -> None:
    assert image_namer(open_data("digits"))(3) is None
    assert image_namer(None)(3) is None


def test_write_flips_writes_every_image_on_its_line(tmp_path: Path, small_data: Data) -> None:
    odd = os.fsdecode(b'val/cat/\xff"\n.png')  # names are bytes to the system
    flips = find_flips(score(AFTER, LABELS), score(BEFORE, LABELS), lambda index: odd)
    path = tmp_path / "flips" / "ptq.json"
    write_flips(path, "ptq", "student", 7, flips, small_data)
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") == len(flips) + 2
    content = json.loads(text)
    images = content.pop("images")
    assert content == {
        "artifact": "ptq",
        "baseline": "student",
        "total": 7,
        "flipped": 5,
        "lost": 2,
        "gained": 2,
        "other": 1,
        "class_names": ["cat", "dog", "owl"],
    }
    assert tuple(Flip(**image) for image in images) == flips
    assert [file.name for file in path.parent.iterdir()] == ["ptq.json"]


def test_write_flips_of_equal_predictions_is_an_empty_list(tmp_path: Path) -> None:
    write_flips(tmp_path / "a.json", "a", "b", 7, (), None)
    content = json.loads((tmp_path / "a.json").read_text())
    assert (content["images"], content["flipped"], content["class_names"]) == ([], 0, None)
