"""`recommend`: the list, its reasons, the recipe, and wrong values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convnext_deploy.api import recommend as catalog
from convnext_deploy.api.recommend import TrainingMachine, recommend
from convnext_deploy.config.recipe_toml import load_recipe
from tests.cli.conftest import call
from tests.conftest import write_image_folder


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have a GPU of any size: what is recommended must not depend on where the tests run."""
    monkeypatch.setattr(catalog, "training_machine", lambda: TrainingMachine("a GPU", None, 2))


SMALL = ("--images", "6000", "--classes", "4")


def test_recommend_prints_the_ranked_list_with_reasons_and_the_recipe() -> None:
    outcome = call("recommend", *SMALL, "--gpu-memory", "12")
    assert outcome.code == 0
    assert outcome.err == "next: --out FILE writes this recipe; then convnext-deploy run FILE --data DIR\n"
    lines = outcome.out.splitlines()
    assert lines[0] == "For 6,000 training images of 4 classes at 224 pixels, best first:"
    cells = [line.split() for line in lines]
    first = ["1", "convnextv2_tiny", "28.6", "83.0", "64", "8.5", "2e-4", "0.1", "125", "no"]
    assert first in cells
    order = ["1. convnextv2_tiny", "2. convnext_tiny", "3. convnextv2_nano", "4. convnext_nano", "5. convnext_small"]
    assert [line for line in lines if line in order] == order
    text = " ".join(outcome.out.split())
    assert "- tier 1 of 6: the best accuracy for its computation" in text
    assert "- convnextv2_base, convnext_base: too large for fewer than 50,000 images (overfitting)" in text
    recipes = (
        "recipes/sizes/v2.toml for networks like convnextv2_tiny, recipes/data/small_medical.toml for so many images."
    )
    assert f"See also, in the project's repository: {recipes}" in text
    assert outcome.out.endswith(recommend(6000, 4, gpu_memory_gb=12).recipe_text)
    assert "…" not in outcome.out


def test_short_trainings_are_given_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "training_machine", lambda: TrainingMachine(None, 24.0, 2))
    outcome = call("recommend", "--images", "200", "--classes", "4", "--image-size", "64")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "2 convnext_tiny 28.6 82.1 128 2.6 2e-4 0.1 40 no 6 minutes" in lines
    assert "- about 6 minutes of training on 2 cores" in lines


def test_recommend_writes_the_recipe_to_a_file_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "start.toml"
    outcome = call("recommend", *SMALL, "--gpu-memory", "12", "--out", path)
    assert outcome.code == 0
    assert outcome.err == f"recipe: {path}\nnext: convnext-deploy run {path} --data DIR\n"
    assert "[[stages]]" not in outcome.out
    assert "recipes/data/small_medical.toml" in outcome.out
    assert load_recipe(path) == recommend(6000, 4, gpu_memory_gb=12).recipe


def test_what_is_said_of_images_is_said_to_the_recipe_too(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "my photos", train=3, validation=2)
    (folder / "train" / "cat" / "cut.png").write_bytes(b"cut")
    refused = call("recommend", "--data", folder)
    assert (refused.code, "--skip-unreadable" in refused.err) == (1, True)
    done = call("recommend", "--data", folder, "--skip-unreadable", "--out", tmp_path / "r.toml")
    assert done.code == 0
    assert (
        f"next: convnext-deploy run {tmp_path / 'r.toml'} --data '{folder}' --skip-unreadable" in done.err.splitlines()
    )


def test_recommend_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "start.toml"
    path.write_text("mine")
    outcome = call("recommend", *SMALL, "--out", path)
    assert (outcome.code, outcome.out) == (1, "")
    assert (
        outcome.err == f"error: {path} exists and is not overwritten; choose another name with --out, or remove it.\n"
    )
    assert path.read_text() == "mine"


def test_recommend_json_is_the_record() -> None:
    outcome = call("recommend", *SMALL, "--gpu-memory", "12", "--image-size", "160", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    expected = recommend(6000, 4, gpu_memory_gb=12, image_size=160)
    assert json.loads(outcome.out) == json.loads(json.dumps(expected.to_dict()))


def test_recommend_measures_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "cuda_driver_error", lambda: "no GPU")
    monkeypatch.setattr(catalog, "SHORT_LIST", 1)
    outcome = call("recommend", *SMALL, "--image-size", "32", "--latency-budget", "60000", "--json")
    assert outcome.code == 0
    assert "latency on cpu: done in " in outcome.err  # more lines where it takes long
    record = json.loads(outcome.out)
    (candidate,) = record["candidates"]
    assert (record["device"], candidate["variant"]) == ("cpu", "convnextv2_tiny")
    assert 0 < candidate["latency_ms"] < 60_000


def test_recommend_shows_times_when_there_is_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "cuda_driver_error", lambda: "no GPU")
    monkeypatch.setattr("convnext_deploy.evaluation.latency.measure_fresh_latency", lambda *given: 12.3)
    text = " ".join(call("recommend", *SMALL, "--latency-budget", "20").out.split())
    assert "ms on" in text
    assert "- takes 12.3 ms for one image on this cpu, within 20 ms" in text
    assert "125 no 12.3" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--images", "0", "--classes", "4"),
        ("--images", "-5", "--classes", "4"),
        ("--images", "many", "--classes", "4"),
        ("--images", "6000", "--classes", "1"),
        ("--images", "6000"),
        ("--classes", "4"),
        (*SMALL, "--gpu-memory", "0"),
        (*SMALL, "--gpu-memory", "-8"),
        (*SMALL, "--latency-budget", "0"),
        (*SMALL, "--image-size", "0"),
    ],
    ids=" ".join,
)
def test_recommend_answers_wrong_values_with_its_usage(arguments: tuple[str, ...]) -> None:
    outcome = call("recommend", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--images", "3", "--classes", "4"),
            "error: images = 3 is out of range; expected >= 4, one for each class.\n",
        ),
        ((*SMALL, "--image-size", "16"), "error: image_size = 16 is out of range; expected >= 32.\n"),
        ((*SMALL, "--gpu-memory", "1"), "error: 1.0 GB of GPU memory are too little: even convnext_zepto_rms needs"),
    ],
)
def test_recommend_says_in_one_line_what_cannot_be(arguments: tuple[str, ...], message: str) -> None:
    outcome = call("recommend", *arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(message)
    assert outcome.err.count("\n") == 1
