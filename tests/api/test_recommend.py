"""The list of models, the recommendation for a data set, and the recipe to start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from convnext_deploy.api import recommend as catalog
from convnext_deploy.api.list_models import list_models
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.recommend import SHORT_LIST, Recommendation, TrainingMachine, recommend
from convnext_deploy.api.run import plan_run
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.errors import ArtifactError, OutputError, RecipeError
from convnext_deploy.evaluation import latency as fresh_latency
from convnext_deploy.evaluation.latency import measure_fresh_latency
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.models.zoo.published import PUBLISHED
from convnext_deploy.models.zoo.ranking import rank
from convnext_deploy.models.zoo.training_settings import settings_for_size
from convnext_deploy.system.progress_bars import PlainProgress

ROOT = Path(__file__).parents[2]


def names(recommendation: Recommendation) -> list[str]:
    return [candidate.variant for candidate in recommendation.candidates]


def reasons(recommendation: Recommendation) -> dict[str, str]:
    return {exclusion.variant: exclusion.reason for exclusion in recommendation.exclusions}


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have a GPU of any size: what is recommended must not depend on where the tests run."""
    monkeypatch.setattr(catalog, "training_machine", lambda: TrainingMachine("a GPU", None, 2))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that every variant takes as many milliseconds as it has millions of parameters; return what was timed."""
    calls: list[str] = []
    millions = {row.variant: row.parameters / 1e6 for row in list_models()}

    def measure(spec: ModelSpec, image_size: int, device: str) -> float:
        assert (spec.num_classes, image_size, device) == (4, 224, "cpu")
        calls.append(spec.variant)
        return millions[spec.variant]

    monkeypatch.setattr(fresh_latency, "measure_fresh_latency", measure)
    monkeypatch.setattr(catalog, "cuda_driver_error", lambda: "no GPU")
    return calls


def test_list_models_has_every_variant_with_its_figures() -> None:
    rows = list_models()
    assert [row.variant for row in rows] == list(VARIANTS)
    for row in rows:
        assert (row.depths, row.widths) == (VARIANTS[row.variant].depths, VARIANTS[row.variant].dims)
        assert (row.published, row.settings) == (PUBLISHED[row.variant], settings_for_size(row.variant))
    tiny = next(row for row in rows if row.variant == "convnext_tiny")
    assert (tiny.parameters, tiny.short_name, tiny.version, tiny.tier) == (28_589_128, "tiny", 1, 1)
    assert tiny.macs == pytest.approx(4.46e9, rel=0.01)


def test_list_models_says_what_is_unusual() -> None:
    differences = {row.variant: row.differences for row in list_models()}
    assert {variant for variant, texts in differences.items() if not texts} == {
        variant
        for variant in VARIANTS
        if not any(part in variant for part in ("_ols", "_rms", "_hnf", "_mlp", "xxlarge", "test_"))
    }
    assert differences["convnext_atto_ols"] == ("stem of two overlapping 3x3 convolutions, 24 channels between them",)
    assert differences["convnext_atto_rms"] == ("RMSNorm in the place of LayerNorm",)
    assert differences["convnext_tiny_hnf"] == ("the last norm stands before the pooling",)
    assert differences["convnext_large_mlp"] == ("hidden layer of 1536 in the head",)
    assert differences["convnext_xxlarge"] == ("norm epsilon 1e-05",)
    assert len(differences["convnext_zepto_rms_ols"]) == 2
    assert "depthwise kernels of 7, 5, 5, 3" in differences["test_convnext3"]


def test_list_models_finds_one_by_its_short_name() -> None:
    (row,) = list_models("v2-tiny")
    assert row.variant == "convnextv2_tiny"
    with pytest.raises(RecipeError, match="unknown model 'v3-tiny'"):
        list_models("v3-tiny")


def test_recommend_gives_five_candidates_and_a_recipe_for_the_first() -> None:
    found = recommend(6000, 4, gpu_memory_gb=12)
    assert found.candidates == rank(6000, 4, gpu_memory_gb=12)[0][:SHORT_LIST]
    assert found.exclusions == rank(6000, 4, gpu_memory_gb=12)[1]
    assert found.device is None
    config = found.recipe.stages[0].config
    assert isinstance(config, TrainConfig)
    assert (config.model.name, config.fit.batch_size) == ("convnextv2_tiny", 64)


def test_recommendation_is_a_record_that_json_can_hold() -> None:
    found = recommend(6000, 4, gpu_memory_gb=12)
    record = json.loads(json.dumps(found.to_dict()))
    assert [entry["variant"] for entry in record["candidates"]] == names(found)
    assert record["recipe_text"] == found.recipe_text
    assert record["candidates"][0]["settings"]["epochs"] == 125


@pytest.mark.parametrize(
    ("images", "memory", "size_recipe", "data_recipe"),
    [
        (6000, None, "recipes/sizes/v2.toml", "recipes/data/small_medical.toml"),
        (6000, 1.9, "recipes/sizes/zepto_to_nano.toml", "recipes/data/small_medical.toml"),
        (30_000, None, "recipes/sizes/small.toml", "recipes/data/medium.toml"),
        (2_000_000, None, "recipes/sizes/v2.toml", "recipes/data/imagenet.toml"),
    ],
)
def test_recommend_names_the_recipes_for_the_first_candidate_and_the_data(
    images: int, memory: float | None, size_recipe: str, data_recipe: str
) -> None:
    found = recommend(images, 4, gpu_memory_gb=memory)
    assert (found.size_recipe, found.data_recipe) == (size_recipe, data_recipe)
    record = found.to_dict()
    assert (record["size_recipe"], record["data_recipe"]) == (size_recipe, data_recipe)


@pytest.mark.parametrize("images", [100, 19_999, 20_000, 100_000, 999_999, 1_000_000])
def test_every_candidate_has_recipes_that_exist(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = rank(images, 4)[0]
    assert len(candidates) >= SHORT_LIST
    for candidate in candidates:
        monkeypatch.setattr(catalog, "rank", lambda *given, chosen=candidate, **named: ((chosen,), ()))
        found = recommend(images, 4)
        for name in (found.size_recipe, found.data_recipe):
            load_recipe(ROOT / name)


def test_recommend_writes_the_recipe_to_a_new_file(tmp_path: Path) -> None:
    found = recommend(6000, 4, out=tmp_path / "start.toml")
    assert (tmp_path / "start.toml").read_text(encoding="utf-8") == found.recipe_text
    assert [path.name for path in tmp_path.iterdir()] == ["start.toml"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda folder: folder / "there.toml", "exists and is not overwritten; choose another name with --out"),
        (lambda folder: folder, "exists and is not overwritten"),
        (lambda folder: folder / "missing" / "start.toml", "there is no folder .*missing to write start.toml into"),
    ],
    ids=["file", "folder", "no folder"],
)
def test_recommend_refuses_out_before_it_measures(
    place: Callable[[Path], Path], message: str, tmp_path: Path, timed: list[str]
) -> None:
    (tmp_path / "there.toml").write_text("mine")
    with pytest.raises(OutputError, match=message):
        recommend(6000, 4, latency_budget_ms=30, out=place(tmp_path))
    assert (tmp_path / "there.toml").read_text() == "mine"
    assert timed == []


def test_recommend_refuses_a_gpu_on_which_nothing_fits() -> None:
    message = r"1\.0 GB of GPU memory are too little: even convnext_zepto_rms needs about 1\.\d GB even with gradient"
    with pytest.raises(RecipeError, match=message):
        recommend(6000, 4, gpu_memory_gb=1.0)


def test_recommend_without_a_budget_measures_nothing(timed: list[str]) -> None:
    assert recommend(6000, 4).candidates[0].latency_ms is None
    assert timed == []


def test_recommend_within_a_budget_drops_slow_candidates_with_their_time(timed: list[str]) -> None:
    found = recommend(6000, 4, latency_budget_ms=16)
    assert names(found)[:2] == ["convnextv2_nano", "convnext_nano"]
    assert found.device == "cpu"
    assert reasons(found)["convnextv2_tiny"] == "takes 28.6 ms for one image on this cpu, the budget is 16 ms"
    assert found.candidates[0].latency_ms == pytest.approx(15.6, abs=0.1)
    assert "takes 15.6 ms for one image on this cpu, within 16 ms" in found.candidates[0].reasons
    assert 'name = "convnextv2_nano"' in found.recipe_text


def test_recommend_measures_in_order_until_the_list_is_full(timed: list[str]) -> None:
    found = recommend(6000, 4, latency_budget_ms=1000)
    assert timed == names(found) == [candidate.variant for candidate in rank(6000, 4)[0][:SHORT_LIST]]


def test_recommend_does_not_measure_what_cannot_be_faster(timed: list[str]) -> None:
    found = recommend(2_000_000, 4, latency_budget_ms=150)
    # version 2 of huge has all that large has, and version 1 of xlarge all that version 1 of large has
    assert timed[:2] == ["convnextv2_large", "convnext_large"]
    expected = "at least as deep and wide as convnextv2_large, which takes 198.0 ms on this cpu"
    assert reasons(found)["convnextv2_huge"] == expected
    assert not {"convnextv2_huge", "convnext_xlarge", "convnext_xxlarge"} & set(timed)
    # version 2 of large was slower, but it says nothing of version 1
    assert "on this cpu, the budget is 150 ms" in reasons(found)["convnext_large"]
    assert len(found.candidates) == SHORT_LIST


@pytest.mark.parametrize(
    ("variant", "other", "expected"),
    [
        ("convnext_small", "convnext_tiny", True),  # deeper
        ("convnextv2_tiny", "convnext_tiny", True),  # GRN comes on top
        ("convnext_tiny", "convnextv2_tiny", False),
        ("convnext_base", "convnextv2_tiny", False),  # wider, but without GRN
        ("convnext_atto", "convnext_zepto_rms", False),  # another norm may be slower
    ],
)
def test_at_least_as_large_means_that_it_cannot_be_faster(variant: str, other: str, expected: bool) -> None:
    assert catalog._at_least_as_large(variant, other) == expected


def test_recommend_refuses_a_budget_that_nothing_meets(timed: list[str]) -> None:
    message = (
        r"no variant takes one image of 224 pixels in 1 ms on this cpu; the fastest, convnext_zepto_rms, takes 2\.2 ms"
    )
    with pytest.raises(RecipeError, match=message):
        recommend(6000, 4, latency_budget_ms=1)


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_recommend_refuses_a_budget_out_of_range(budget: float) -> None:
    with pytest.raises(RecipeError, match=r"latency_budget_ms = .* is out of range; expected > 0"):
        recommend(6000, 4, latency_budget_ms=budget)


class Notes:
    """A progress display that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Notes]:
        self.notes.append(f"{description} {total}")
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.notes.append(note)

    def say(self, message: str) -> None:
        self.notes.append(message)


def test_recommend_reports_what_it_measures(timed: list[str]) -> None:
    progress = Notes()
    recommend(6000, 4, latency_budget_ms=16, execution=ExecutionOptions(progress=progress))
    assert progress.notes[:2] == [f"latency on cpu {len(rank(6000, 4)[0])}", "convnextv2_tiny 28.6 ms"]
    assert len(progress.notes) == 1 + len(timed)


def test_measure_fresh_latency_times_the_network(short_timing: None) -> None:
    small, large = (measure_fresh_latency(ModelSpec("convnext_atto", 2), size, "cpu") for size in (32, 320))
    assert 0 < small < large


def test_without_a_gpu_what_trains_in_a_night_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "training_machine", lambda: TrainingMachine(None, 24.0, 2))
    found = recommend(5000, 10)
    assert found.machine == "2 cores, 24 GB, no GPU"
    first, *others = found.candidates
    assert VARIANTS[first.variant].dims[0] < VARIANTS["convnext_tiny"].dims[0], "no 28 million at 224 pixels"
    assert first.memory_gib <= 12
    hours = [candidate.cpu_hours or 0 for candidate in found.candidates]
    # three times the forward pass, two operations each, 125 epochs, two cores of 25 GFLOP/s
    macs = next(row.macs for row in list_models(first.variant))
    assert hours[0] == pytest.approx(6 * macs * 5000 * 125 / 50e9 / 3600, rel=0.01)
    assert all(hour > 8 for hour in hours[1:]), "of those that take longer the quickest"
    assert hours[1:] == sorted(hours[1:])
    assert others[0].reasons[-1] == f"about {hours[1]:.1f} hours of training on 2 cores"
    # few images at a small size: what suits them is quick enough here, and keeps its order
    quick = recommend(200, 4, image_size=64)
    assert quick.candidates[0].variant == "convnextv2_tiny"
    # for a GPU elsewhere nothing of this counts
    elsewhere = recommend(5000, 10, gpu_memory_gb=12)
    assert elsewhere.machine is None
    assert elsewhere.candidates[0].variant == "convnextv2_tiny"
    assert elsewhere.candidates[0].cpu_hours is None
    monkeypatch.setattr(catalog, "training_machine", lambda: TrainingMachine(None, 2.4, 2))
    with pytest.raises(RecipeError, match=r"^1.2 GB of memory here are too little: even \w+ needs about"):
        recommend(5000, 10)


def test_gpu_of_this_machine_limits_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "training_machine", lambda: TrainingMachine("NVIDIA L4", 8.0, 2))
    found = recommend(6000, 4)
    assert found.machine == "NVIDIA L4, 8 GB"
    assert found.candidates == rank(6000, 4, gpu_memory_gb=8)[0][:SHORT_LIST]


def test_folder_tells_images_classes_and_size(image_folder: Path) -> None:
    found = recommend(data=DataOptions(image_folder))
    assert found.data is not None
    assert (found.images, found.classes, found.image_size) == (36, 3, 64)
    assert (found.data.validation, found.data.median_side, found.data.rarest) == (18, 32, ("cat", 12))
    assert found.data.describe() == (
        f"{image_folder}: 36 training images of 3 classes and 18 for validation, shorter side 32 pixels; "
        "the rarest class, cat, has 12"
    )
    assert "# the images' own, 32 pixels, in steps of 32 from 64 on" in found.recipe_text
    assert json.loads(json.dumps(found.to_dict()))["data"]["images"] == 36
    # what is said counts before what is seen
    said = recommend(5000, 10, image_size=96, data=DataOptions(str(image_folder)))
    assert (said.images, said.classes, said.image_size) == (5000, 10, 96)
    with pytest.raises(RecipeError, match=r"^--classes is missing; give the folder with --data DIR, or both"):
        recommend(5000)


@pytest.mark.parametrize(("side", "size"), [(20, 64), (65, 96), (200, 224), (1000, 224)])
def test_size_is_that_of_the_images_up_to_the_usual_one(tmp_path: Path, side: int, size: int) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(4):
            color = (index * 40, len(name), ord(name[0]))
            Image.new("RGB", (side + 7 * index, side), color).save(tmp_path / name / f"{index}.png")
    found = recommend(data=DataOptions(tmp_path))
    assert found.image_size == size
    assert found.images == 6, "some are held out"


def test_recipe_passes_a_dry_run_offline(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    def snapshot_download(repository: str, *, local_files_only: bool = False, **options: Any) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    data = DataOptions(image_folder)
    recommend(data=data, out=tmp_path / "start.toml")
    progress = ExecutionOptions(device="cpu", workers=0, progress=PlainProgress())
    plan = plan_run(tmp_path / "start.toml", out=tmp_path / "run", data=data, execution=progress)
    assert [(stage.name, would_run) for stage, would_run in plan][:2] == [("model", True), ("quantize", True)]
    assert asked == [True], "nothing is downloaded"
    assert (
        "timm/convnextv2_tiny.fcmae_ft_in1k is not in the cache: the run would download it" in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "stages").exists()
    # what the name tells is checked all the same
    text = (tmp_path / "start.toml").read_text()
    (tmp_path / "wrong.toml").write_text(text.replace("timm/convnextv2_tiny.", "timm/convnextv2_nano."))
    with pytest.raises(ArtifactError, match="its variant is convnextv2_nano, this stage asks for convnextv2_tiny"):
        plan_run(tmp_path / "wrong.toml", out=tmp_path / "run", data=data, execution=progress)


def test_recipe_has_no_engines_where_none_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    assert [stage.name for stage in recommend(6000, 4).recipe.stages] == ["model", "quantize", "onnx-fp32", "onnx-int8"]
