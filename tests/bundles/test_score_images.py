"""`verify.py --data` scores a folder of images on the device as `validate` does here, and tells what is lost against FP32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.bundles.device import score_images
from convnext_deploy.bundles.device.verify import BundleError, Check, score
from convnext_deploy.pipeline.run import RunResult
from tests.bundles.graphs import FP32
from tests.bundles.test_verify import rewrite, run_alone
from tests.conftest import CLASSES


def figures(folder: Path, data: Path, limit: int | None = None) -> dict[str, dict[str, Any]]:
    return {found["file"]: found for found in score(folder, None, data, limit)[1]}


def details(checks: list[Check], status: str) -> list[str]:
    return [check.detail for check in checks if check.status == status]


@pytest.fixture
def spoiled(real: Path, tmp_path: Path) -> Path:
    """A copy of the bundle of the small run."""
    return Path(shutil.copytree(real, tmp_path / "spoiled"))


@pytest.fixture
def photos(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of the images."""
    return Path(shutil.copytree(image_folder, tmp_path / "photos"))


def test_the_program_alone_measures_what_the_report_says(real: Path, image_folder: Path, small_run: RunResult) -> None:
    done = run_alone(real, "--data", str(image_folder), "--json", having=("PIL",))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    scores = {each["file"]: each for each in found["scores"]}
    rows = {row.identity.precision: row for row in small_run.report.rows if row.identity.format == "onnx"}
    assert {*rows} == {"fp32", "int8"}
    for precision, row in rows.items():
        own = next(each for file, each in scores.items() if precision in file)
        assert row.accuracy is not None
        assert row.accuracy.drop is not None
        assert (own["images"], own["top1"]) == (18, row.accuracy.value)
        assert own["drop_pp"] == pytest.approx(row.accuracy.drop.top1_drop_pp)
        assert own["drop_interval_pp"] == pytest.approx(list(row.accuracy.drop.interval_pp))
        assert own["agreement"] == row.accuracy.drop.agreement
        assert not own["worse"]
    assert [check["status"] for check in found["checks"]].count("scored") == 2


def test_images_are_known_by_their_contents(real: Path, photos: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copy(path, flat / f"{number}.png")
    shutil.copy(flat / "20.png", flat / "again.png")
    whole = figures(real, photos)
    assert figures(real, flat) == whole
    some = next(iter(figures(real, flat, 6).values()))
    assert (some["images"], len(some["drop_interval_pp"])) == (6, 2)


def test_other_images_are_scored_by_their_folders(real: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate((*CLASSES, "extra")):
            for place in range(count):
                path = tmp_path / "new" / split / name / f"{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 90, (40, 33, 3))
                pixels[..., label % 3] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    (tmp_path / "new" / "val" / "cat" / "cut.png").write_bytes(path.read_bytes()[:90])
    checks, found = score(real, None, tmp_path / "new")
    assert {each["images"] for each in found} == {6}
    assert all("drop_pp" not in each for each in found)
    assert "the bundle has no FP32 answers to them" in details(checks, "scored")[0]
    assert any("1 of 7 images cannot be read here: cut.png" in text for text in details(checks, "not run"))
    assert "2 of 9 images are left out: no folder that they are in is called as a class; they lie in extra" in details(
        checks, "not run"
    )


def test_images_without_answers_are_counted_among_those_that_have_some(
    real: Path, photos: Path, image_folder: Path
) -> None:
    held_out = next(folder for folder in sorted(photos.iterdir()) if folder.name in score_images.VALIDATION_FOLDERS)
    for name in ("zebra", "yak", "cat", "ant", "bee"):
        (held_out / name).mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (90, 9, 0)).save(held_out / name / "new.png")
    checks, found = score(real, None, photos)
    assert {each["images"] for each in found} == {18}
    text = "5 of 23 images are left out: the bundle has no FP32 answers to them; they lie in ant, bee, cat, ..."
    assert text in details(checks, "not run")
    assert not any("left out" in check.detail for check in score(real, None, image_folder)[0])


@pytest.mark.parametrize(
    ("names", "text"), [(["a", "b", "a", "c"], "a, b, c"), (["a", "b", "c", "d"], "a, b, c, ..."), ([], "")]
)
def test_a_list_that_is_complete_ends_with_its_last_name(names: list[str], text: str) -> None:
    assert score_images.first(names) == text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: None, "is not a folder of images"),
        (lambda folder: folder.mkdir(), "holds no images; images end in"),
        (lambda folder: shutil.copytree(folder.parent / "one", folder / "elephant"), "in a folder called as a class"),
    ],
)
def test_a_folder_that_cannot_be_scored_is_one_line(
    real: Path, tmp_path: Path, make: Callable[[Path], object], text: str
) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "one" / "a.png")
    make(tmp_path / "data")
    with pytest.raises(BundleError, match=text) as caught:
        score(real, None, tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_model_that_lost_more_here_than_where_it_was_made_has_failed(spoiled: Path, image_folder: Path) -> None:
    def claim(record: dict[str, Any]) -> None:
        for model in record["models"]:
            model["measured"].update(drop_pp=-90.0, drop_interval_pp=[-95.0, -85.0])

    rewrite(spoiled, claim)
    checks, found = score(spoiled, None, image_folder)
    assert [each["worse"] for each in found] == [True, True]
    failed = details(checks, "failed")
    assert len(failed) == 2
    assert all("where the bundle was made it was -90.00 pp [-95.00, -85.00]" in text for text in failed)


def test_answers_that_are_not_finite_have_failed(
    real: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convnext_deploy.bundles.device import answers

    def broken(path: Path, batch: int | None, precision: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda images: {"logits": np.full((len(images), 3), np.nan, np.float32)}

    monkeypatch.setattr(answers, "open_onnx", broken)
    checks, found = score(real, None, image_folder)
    assert (found, details(checks, "failed")) == ([], ["it answers with numbers that are not finite"] * 2)


@pytest.mark.parametrize(
    ("count", "limit", "expected"), [(10, 3, [0, 3, 6]), (4, 4, [0, 1, 2, 3]), (4, 9, [0, 1, 2, 3])]
)
def test_a_limit_spreads_over_all(count: int, limit: int, expected: list[int]) -> None:
    items = [score_images.Item(Path(str(place)), place) for place in range(count)]
    assert [item.label for item in score_images.limited(items, limit)] == expected


def test_multi_label_models_and_features_are_not_scored(made: Path) -> None:
    model = {"outputs": [{"name": "features"}]}
    assert score_images._not_scored(model) == "it gives features, which are of no class"
    assert score_images._not_scored({**model, "multi_label": True}) is not None
    assert score_images._not_scored({"outputs": [{"name": FP32}]}) is None
