"""Files of predictions say what they hold, or their numbers do; what cannot be read so is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors.numpy import save_file

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import PredictionsDetails
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.errors import CheckpointError, DataError
from convnext_deploy.pipeline.ingredients import ingredients_of
from convnext_deploy.pipeline.open_foreign import open_teacher_input
from convnext_deploy.training.prediction_files import read_predictions
from convnext_deploy.training.predictions import find_rows

NAMES = ("cat/0.png", "dog/0.png")
LOGITS = np.array([[4.0, -2.0, -1.0], [0.5, 2.0, -3.0]], np.float32)
SHARES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def write_matrix(folder: Path, name: str, vectors: NDArray[np.float32], **told: str) -> Path:
    path = folder / "t.safetensors"
    save_file({name: vectors}, path, metadata={"files": json.dumps(NAMES), **told})
    return path


def write_columns(folder: Path, columns: dict[str, Any], **told: str) -> Path:
    path = folder / "t.parquet"
    parquet.write_table(pa.table({"path": NAMES, **columns}).replace_schema_metadata(told), path)
    return path


def open_file(path: Path) -> tuple[str, Artifact]:
    """Return what the vectors of a file are, and the teacher."""
    artifact = open_teacher_input(path)
    return artifact.details_as(PredictionsDetails).content, artifact


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [str(row.tolist()) for row in LOGITS],
            r"'logits' does not hold lists of numbers, but str such as '\[4\.0.*'cat/0\.png'",
        ),
        ([["4", "-2"], ["0.5", "2"]], "'logits' does not hold lists of numbers, but list such as"),
        ([[{"a": 1}], [{"a": 2}]], "'logits' does not hold lists of numbers, but list such as"),
        ([4.0, 2.0], "'logits' does not hold lists of numbers, but float such as 4.0"),
        ([LOGITS[0].tolist(), None], "has no vector for 'dog/0.png': its row of 'logits' is empty"),
        ([[1.0, None], [1.0, 2.0]], "has a number that is not finite for 'cat/0.png'"),
        ([[[1.0, 2.0]], [[1.0, 2.0]]], r"has shape \(1, 2\) for 'cat/0.png'"),
    ],
)
def test_a_column_of_something_else_than_lists_of_numbers_is_one_line(
    values: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_teacher_input(write_columns(tmp_path, {"logits": values}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 200


@pytest.mark.parametrize(
    ("vectors", "content", "said"),
    [
        (SHARES, "probabilities", "which is assumed.*; they are at least 0, and those of each image sum to 1$"),
        (LOGITS, "logits", "which is assumed: the file does not say what they are$"),
        (SHARES * 2, "logits", "which is assumed: the file does not say what they are$"),
        (SHARES - np.array([0.5, -0.25, -0.25], np.float32), "logits", "which is assumed: the file does not say"),
        (np.concatenate([SHARES[:1], LOGITS[1:]]), "logits", "which is assumed: the file does not say"),
        (SHARES.astype(np.float16), "probabilities", "sum to 1$"),
    ],
)
@pytest.mark.parametrize("form", ["a tensor for each image", "a column for each class"])
def test_what_no_file_says_the_numbers_do(
    form: str, vectors: NDArray[np.float32], content: str, said: str, tmp_path: Path
) -> None:
    if form == "a tensor for each image":
        path = tmp_path / "t.safetensors"
        save_file(dict(zip(NAMES, vectors, strict=True)), path)
    else:
        path = write_columns(tmp_path, {name: vectors[:, place] for place, name in enumerate(("cat", "dog", "owl"))})
    found, artifact = open_file(path)
    assert found == content
    (note,) = artifact.notes
    assert note.startswith(f"{path.name}: {content} of 3 numbers for 2 images, ")
    assert re.search(said, note)


@pytest.mark.parametrize(
    ("name", "told"), [("logits", {}), ("logits", {"content": "logits"}), ("probs", {"content": "logits"})]
)
def test_logits_that_look_like_probabilities_are_doubted_aloud_and_kept(
    name: str, told: dict[str, str], tmp_path: Path
) -> None:
    content, artifact = open_file(write_matrix(tmp_path, name, SHARES, **told))
    assert content == "logits"
    first, doubt = artifact.notes
    assert "assumed" not in first
    assert doubt.startswith(
        "WARNING: t.safetensors says that it holds logits, and all numbers are at least 0 and sum to 1"
    )
    assert "content = 'probabilities'" in doubt
    _, artifact = open_file(write_matrix(tmp_path, name, LOGITS, **told))
    assert artifact.notes == ("t.safetensors: logits of 3 numbers for 2 images",)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (LOGITS, "those of 'cat/0.png' have -2 among them; expected numbers of 0 to 1 that sum to 1"),
        (np.concatenate([SHARES[:1], SHARES[1:] * 3]), "those of 'dog/0.png' sum to 3; expected"),
        (np.concatenate([SHARES[:1], SHARES[1:] * 0.98]), r"those of 'dog/0.png' sum to 0\.98; expected"),
    ],
)
@pytest.mark.parametrize(
    ("name", "told"), [("probs", {}), ("probabilities", {}), ("logits", {"content": "probabilities"})]
)
def test_probabilities_that_are_none_are_refused(
    name: str, told: dict[str, str], vectors: NDArray[np.float32], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"says that it holds probabilities, and {message}") as caught:
        open_teacher_input(write_matrix(tmp_path, name, vectors, **told))
    assert "\n" not in str(caught.value)
    rounded = (SHARES * np.float32(1.009)).astype(np.float32)
    content, artifact = open_file(write_matrix(tmp_path, name, rounded, **told))
    assert content == "probabilities"
    assert artifact.notes == ("t.safetensors: probabilities of 3 numbers for 2 images",)


def test_a_stage_is_made_anew_where_the_numbers_tell_what_they_are(small_data: Data, tmp_path: Path) -> None:
    """A version before took them for logits; what was told is what it was."""
    config = DistillConfig(ModelConfig("test_convnext2", 32), "teacher", FitConfig(epochs=1))
    stage = StageEntry("student", config, None)
    path = tmp_path / "t.safetensors"
    save_file(dict(zip(NAMES, SHARES, strict=True)), path)
    for file, is_new in ((path, True), (write_columns(tmp_path, {"probs": SHARES.tolist()}), False)):
        readings = ingredients_of(stage, {"teacher": open_file(file)[1]}, small_data, 0).readings["teacher"]
        assert ("meaning" in readings) == is_new


@pytest.mark.parametrize(
    ("columns", "told", "content", "unused"),
    [
        (("features", "logits"), {}, "logits", "features"),
        (("embedding", "probs"), {}, "probabilities", "embedding"),
        (("probs", "features", "Logits"), {}, "logits", "probs, features"),
        (("logits", "features"), {"content": "features"}, "features", "logits"),
    ],
)
def test_of_several_columns_that_which_teaches_classes_counts(
    columns: tuple[str, ...], told: dict[str, str], content: str, unused: str, tmp_path: Path
) -> None:
    values = {name: SHARES if name == "probs" else LOGITS + place for place, name in enumerate(columns)}
    path = write_columns(tmp_path, {name: value.tolist() for name, value in values.items()}, **told)
    found, artifact = open_file(path)
    assert found == content
    assert artifact.notes == (f"t.parquet: {content} of 3 numbers for 2 images; its {unused} are not used",)
    taken = next(name for name in columns if name.lower().startswith(content[:4]))
    assert np.array_equal(read_predictions(path).vectors, values[taken])


def test_labels_and_row_numbers_beside_the_classes_are_none(tmp_path: Path) -> None:
    classes = {name: LOGITS[:, place].astype(np.float64).tolist() for place, name in enumerate("abc")}
    path = write_columns(tmp_path, {"label": [2, 0], **classes, "__index_level_0__": [0, 1]})
    path = path.rename(tmp_path / "T.PARQUET")
    artifact = open_file(path)[1]
    assert (artifact.class_names, artifact.model.num_classes) == (("a", "b", "c"), 3)
    assert artifact.notes[0].endswith("; its label, __index_level_0__ are not used")
    assert np.array_equal(read_predictions(path).vectors, LOGITS)
    # integers alone are classes: votes, or scores that were rounded
    votes = read_predictions(write_columns(tmp_path, {"a": [3, 0], "label": [0, 3]}))
    assert (votes.class_names, votes.unused) == (("a", "label"), ())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"logits": LOGITS},
            "has a tensor 'logits' and does not say of which images; expected in its metadata 'files'",
        ),
        ({"probs": SHARES}, "has a tensor 'probs' and does not say of which images"),
        ({"cat/0": LOGITS[0], "dog/0": LOGITS[1]}, "has a tensor 'cat/0', which is no name of an image file"),
        ({"cat/0.png": LOGITS[0], "count": LOGITS[1]}, "first keys are"),
        ({"stages/0": LOGITS[0], "head/0": LOGITS}, "first keys are"),
        ({"scale": LOGITS[0], "shift": LOGITS[1]}, "first keys are"),
    ],
)
def test_predictions_without_names_say_what_is_missing(
    tensors: dict[str, NDArray[np.float32]], message: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_teacher_input(tmp_path / "t.safetensors")
    assert "\n" not in str(caught.value)


def test_a_table_of_names_alone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has the column path alone; expected one of lists, called logits"):
        open_teacher_input(write_columns(tmp_path, {}))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.resolve(),
        lambda path: path,
        lambda path: f"./{path}",
        lambda path: f"../{path}",
        lambda path: f"../../{path}",
        lambda path: f"..\\.\\{path}",
        lambda path: f"{path.parent}/./{path.name}",
    ],
)
@pytest.mark.parametrize("near", ["photos", "../here/photos"])
def test_names_of_any_folder_fit_data_of_a_relative_path(
    near: str, change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    paths = [Path("photos/train/cat/0.png"), Path("photos/train/dog/0.png")]
    images = FolderImages([Path(near, *path.parts[1:]) for path in paths], np.array([0, 1]))
    data = Data(near, images, images, ("cat", "dog"))
    names = [str(change(path)) for path in reversed(paths)]
    assert find_rows(names, data, tmp_path / "t").tolist() == [1, 0]


def test_names_that_are_one_without_their_first_folders_are_refused(small_data: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two vectors for '\.\./cat/0\.png'"):
        find_rows(["cat/0.png", "../cat/0.png"], small_data, tmp_path / "t")
    with pytest.raises(DataError, match="has no vector for"):
        find_rows(["/elsewhere/train/cat/0.png", "cat/../0.png"], small_data, tmp_path / "t")
