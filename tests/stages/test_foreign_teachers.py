"""Teachers of other libraries and files of predictions: they say what their library says, and a cache changes no bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from convnext_deploy.api.distill import distill
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.run import run
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import EngineDetails, PredictionsDetails, Profile
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import ArtifactError, CheckpointError, DataError, DeployError, RecipeError
from convnext_deploy.pipeline.open_foreign import open_teacher_input
from convnext_deploy.runners import open_runner
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.teachers import check_teacher, open_teacher
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.losses import average_teachers
from convnext_deploy.training.prediction_files import read_predictions
from convnext_deploy.training.predictions import PredictionTable, find_rows
from tests.shared import slow_except
from tests.stages.foreign_teachers import CLASSES, NETWORKS, SIDE, Kind, normalized, write_program, write_table
from tests.weights import PREPROCESS

STUDENT: Preprocess = dataclasses.replace(PREPROCESS, image_size=SIDE)
EACH = pytest.mark.parametrize("kind", NETWORKS, ids=[kind.name for kind in NETWORKS])


def context(data: Data | None, folder: Path) -> StageContext:
    return StageContext(
        "student", folder, data, Execution(), folder, open_graph=lambda artifact: open_runner(artifact).logits
    )


@EACH
def test_teacher_says_what_its_library_says(kind: Kind, tmp_path: Path, small_data: Data) -> None:
    place, reference = kind.write(tmp_path)
    # what no file tells is as the student is told; here that is the image size of a bare file of weights
    artifact = open_teacher_input(place, None, PreprocessSettings(image_size=SIDE))
    check_teacher(artifact, small_data, 3)
    state = torch.get_rng_state()
    teacher = open_teacher(artifact, STUDENT, context(small_data, tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    pixels = torch.randint(256, (5, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) / 255
    with torch.no_grad():
        found = teacher(normalized(pixels, STUDENT.mean, STUDENT.std))
        expected = reference(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 if kind.name == "ONNX FP16" else 1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert artifact.class_names in (CLASSES, None)
    assert any(artifact.main_file.name in note for note in artifact.notes)


def names_of(data: Data) -> list[str]:
    assert isinstance(data.train, FolderImages)
    return ["/".join(path.parts[-2:]) for path in data.train.paths]


def table_of(data: Data, folder: Path, content: str = "logits", width: int = 3) -> Path:
    names = names_of(data)
    vectors = np.random.default_rng(0).normal(size=(len(names), width)).astype(np.float32)
    return write_table(folder, names, vectors, content)


def train(
    places: Sequence[str | Path], folder: Path, out: str, *, cache: bool = False, **options: object
) -> dict[str, Tensor]:
    """Train a student for an epoch, with crops that are mixed, and return its weights."""
    fit = FitConfig(epochs=1, batch_size=12, warmup_epochs=0, drop_path_rate=0.2, mixup_alpha=0.8, cutmix_alpha=1.0)
    model = ModelConfig("test_convnext2", SIDE)
    config = DistillConfig(model, tuple(map(str, places)), fit, teacher_cache=cache, **options)  # type: ignore[arg-type]
    recipe = Recipe("taught", (StageEntry("student", config, None),))
    run(
        recipe,
        out=folder / out,
        data=DataOptions(folder / "data"),
        execution=ExecutionOptions(cache_dir=folder / "cache"),
    )
    return load_file(folder / out / "stages" / "student" / "model.safetensors")


def places_of(kind: str, folder: Path, data: Data) -> list[str | Path]:
    """Write the teachers of a kind; `ensemble` are two of different kinds."""
    if kind == "logits file":
        return [table_of(data, folder)]
    if kind == "ensemble":
        return [write_program(folder)[0], table_of(data, folder)]
    place, _ = next(each for each in NETWORKS if each.name == kind).write(folder)
    return [place]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "kind",
    slow_except(("timm ViT", "ONNX uint8", "ensemble"), [*(kind.name for kind in NETWORKS), "logits file", "ensemble"]),
)
def test_cached_and_uncached_trainings_are_equal_bit_for_bit(
    kind: str, tmp_path: Path, small_data: Data, image_folder: Path
) -> None:
    (tmp_path / "data").symlink_to(image_folder, target_is_directory=True)
    (tmp_path / "teacher").mkdir()
    places = places_of(kind, tmp_path / "teacher", small_data)
    plain = train(places, tmp_path, "plain")
    first, again = (train(places, tmp_path, name, cache=True) for name in ("first", "again"))
    assert plain.keys() == first.keys() == again.keys()
    assert all(torch.equal(plain[name], first[name]) and torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "kind",
    slow_except(
        ("features file", "timm Swin"), ("features file", "timm ViT", "timm Swin", "torchvision", "transformers ViT")
    ),
)
def test_features_of_other_networks_teach(kind: str, tmp_path: Path, small_data: Data, image_folder: Path) -> None:
    (tmp_path / "data").symlink_to(image_folder, target_is_directory=True)
    (tmp_path / "teacher").mkdir()
    place: str | Path = table_of(small_data, tmp_path / "teacher", "features", 20)
    if kind != "features file":
        (place,) = places_of(kind, tmp_path / "teacher", small_data)
    found = train([place], tmp_path, "features", method="feature")
    without = train([place], tmp_path, "again", method="feature", distill_loss_weight=0.25)
    assert not any("projection" in name for name in found)
    assert (kind == "features file") == all(torch.equal(found[name], without[name]) for name in found)


def test_table_gives_each_image_its_own_vector_and_mixes_probabilities(small_data: Data, tmp_path: Path) -> None:
    path = table_of(small_data, tmp_path)
    written = {name: torch.from_numpy(values) for name, values in read_back(path).items()}
    table = PredictionTable(path, small_data, "logits", temperature=2.0)
    names, numbers = names_of(small_data), torch.tensor([5, 0, 11])
    batch = Batch(torch.zeros(3, 3, 4, 4), torch.zeros(3), numbers=numbers, mixed_in=numbers.roll(1))
    expected = torch.stack([written[names[number]] for number in numbers])
    assert torch.equal(table(batch), expected)
    mixed = table(dataclasses.replace(batch, weight=0.75))
    shares = 0.75 * (expected / 2).softmax(1) + 0.25 * (expected.roll(1, 0) / 2).softmax(1)
    torch.testing.assert_close((mixed / 2).softmax(1), shares)


def read_back(path: Path) -> dict[str, np.ndarray]:
    found = read_predictions(path)
    return dict(zip(found.names, found.vectors, strict=True))


@pytest.mark.parametrize("form", ["a matrix with files", "Parquet lists", "Parquet columns", "probabilities"])
def test_predictions_are_read_in_every_form(form: str, small_data: Data, tmp_path: Path) -> None:
    names = names_of(small_data)
    logits = np.random.default_rng(0).normal(size=(len(names), 3)).astype(np.float32)
    path = tmp_path / "teacher.safetensors"
    if form == "a matrix with files":
        save_file({"logits": logits}, path, metadata={"files": json.dumps(names)})
    elif form == "probabilities":
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        save_file({"probs": shares}, path, metadata={"files": json.dumps(names)})
    else:
        import pyarrow as pa
        from pyarrow import parquet

        path = tmp_path / "teacher.parquet"
        columns = (
            {"path": names, "logits": logits.tolist()}
            if form == "Parquet lists"
            else {"file": names, **{name: logits[:, place] for place, name in enumerate(CLASSES)}}
        )
        parquet.write_table(pa.table(columns), path)
    artifact = open_teacher_input(path)
    check_teacher(artifact, small_data, 3)
    assert artifact.class_names == (CLASSES if form == "Parquet columns" else None)
    table = PredictionTable(path, small_data, artifact.details_as(PredictionsDetails).content)
    torch.testing.assert_close(table.vectors.softmax(1), torch.from_numpy(logits).softmax(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[1:], r"has no vector for 1 of \d+ training images, such as .+; its names are like"),
        (lambda names: [*names, f"./{names[0]}"], "has two vectors for"),
        (
            lambda names: [name.rpartition("/")[2] for name in names[:12]],
            "has the same name for several training images",
        ),
    ],
)
def test_images_without_a_vector_of_their_own_are_an_error(
    change: object, message: str, small_data: Data, tmp_path: Path
) -> None:
    assert callable(change)
    with pytest.raises(DataError, match=message) as raised:
        find_rows(change(names_of(small_data)), small_data, tmp_path / "t.safetensors")
    assert "\n" not in str(raised.value)


def test_names_match_by_as_many_folders_as_it_takes(small_data: Data, tmp_path: Path) -> None:
    assert isinstance(small_data.train, FolderImages)
    paths = small_data.train.paths
    for names in ([str(path) for path in paths], ["\\".join(path.parts[-3:]) for path in paths]):
        shuffled = list(reversed(names))
        rows = find_rows(shuffled, small_data, tmp_path / "t.safetensors")
        assert [shuffled[row] for row in rows] == names


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a.png": np.full(3, np.nan, np.float32)}, {}, "not finite for 'a.png'"),
        ({"a.png": np.zeros(3, np.float32), "b.png": np.zeros(4, np.float32)}, {}, "vectors of one length"),
        ({"logits": np.zeros((2, 3), np.float32)}, {"files": '["a.png"]'}, "names 1 files"),
        ({"a.png": np.zeros(3, np.float32)}, {"class_names": '["cat"]'}, "names 1 classes"),
        ({"a.png": np.zeros(3, np.float32)}, {"content": "guesses"}, "expected logits, probabilities or features"),
    ],
)
def test_damaged_predictions_are_one_line(
    tensors: dict[str, np.ndarray], metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "t.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_teacher_input(tmp_path / "t.safetensors")
    assert "\n" not in str(raised.value)


def test_a_teacher_of_more_classes_teaches_those_of_the_data(small_data: Data, tmp_path: Path) -> None:
    names = names_of(small_data)
    vectors = np.random.default_rng(0).normal(size=(len(names), 5)).astype(np.float32)
    wide = ("owl", "emu", "cat", "dog", "eel")
    path = tmp_path / "wide.safetensors"
    save_file(
        dict(zip(names, vectors, strict=True)), path, metadata={"class_names": json.dumps(wide), "content": "logits"}
    )
    artifact = open_teacher_input(path)
    check_teacher(artifact, small_data, 3)
    other = dataclasses.replace(artifact, class_names=("owl", "emu", "cat", "bee", "eel"))
    with pytest.raises(DataError, match=r"has 5 classes, .+ has 3\. .+ by the method 'feature'\.$"):
        check_teacher(other, small_data, 3)
    check_teacher(other, small_data, 3, features_alone=True)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("timm:resnet_18", CheckpointError, "timm has no network 'resnet_18'. Did you mean 'resnet18'"),
        ("torchvision:resnet19", CheckpointError, "torchvision has no classifier 'resnet19'"),
        ("timm:resnet18@nowhere.pth", DeployError, "nowhere.pth"),
    ],
)
def test_names_that_lead_nowhere_are_one_line(place: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        open_teacher_input(place)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "resnet10t", "pretrained_cfg": {"input_size": [10**9, 64, 64]}},
        {"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, -4, -4]}},
        {"architecture": "resnet10t", "pretrained_cfg": {"input_size": "224"}},
        {"architecture": "resnet10t", "num_classes": 10**12},
        {"model_type": "resnet", "num_channels": 10**9},
        {"model_type": "resnet", "image_size": 10**9},
    ],
)
def test_absurd_configs_are_one_line_and_take_no_memory(config: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged") as caught:
        open_teacher_input(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused_by_the_first_name(tmp_path: Path) -> None:
    place, _ = next(kind for kind in NETWORKS if kind.name == "torchvision").write(tmp_path)
    artifact = open_teacher_input(str(place).replace("resnet18", "resnet34"))
    with pytest.raises(CheckpointError, match=r"best\.pth does not hold torchvision's resnet34: '.+' is missing"):
        open_teacher(artifact, STUDENT, context(None, tmp_path))


def test_weights_without_the_name_of_their_network_say_what_to_add(tmp_path: Path) -> None:
    place, _ = next(kind for kind in NETWORKS if kind.name == "torchvision").write(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"looks like a ResNet .+ say whose network it is: timm:NAME@.*best\.pth or"
    ):
        open_teacher_input(str(place).partition("@")[2])


def test_several_teachers_cannot_have_one_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="several teacher checkpoints were given"):
        distill("tiny", "atto", teacher_checkpoint=["a.onnx", "b.onnx"], out=tmp_path / "run")


def test_an_engine_cannot_teach(small_data: Data, tmp_path: Path, small_artifacts: dict[str, object]) -> None:
    engine = next(each for each in small_artifacts.values() if getattr(each, "format", "") == "onnx")
    assert isinstance(engine, Artifact)
    details = EngineDetails("tensorrt-rtx", "1.7", ("SM86",), Profile(1, 1, 8))
    with pytest.raises(
        ArtifactError, match=r"is a tensorrt engine, which cannot teach; take what it was built from\.$"
    ):
        check_teacher(dataclasses.replace(engine, details=details), small_data, 3)


def test_average_of_two_kinds_is_that_of_their_probabilities() -> None:
    one, two = torch.randn(4, 3), torch.randn(4, 3)
    found = average_teachers([one, two], 2.0)
    torch.testing.assert_close((found / 2).softmax(1), ((one / 2).softmax(1) + (two / 2).softmax(1)) / 2)
