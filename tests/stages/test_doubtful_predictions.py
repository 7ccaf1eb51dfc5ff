"""Files of predictions with columns that are no classes, with the same for all images, and with metadata that are no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from convnext_deploy.artifacts.details import PredictionsDetails
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import CheckpointError, DataError
from convnext_deploy.pipeline.open_foreign import open_teacher_input
from convnext_deploy.stages.teachers import check_teacher

LOGITS = np.array([[4.0, -2.0, -1.0], [0.5, 2.0, -3.0]], np.float32)
SHARES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def write(folder: Path, columns: dict[str, Any], told: dict[bytes | str, bytes | str] | None = None) -> Path:
    path = folder / "t.parquet"
    table = pa.table({"file": ["cat/0.png", "dog/0.png"], **columns}).replace_schema_metadata(told)
    parquet.write_table(table, path)
    return path


def classes(data: Data, vectors: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return dict(zip(data.class_names, vectors.T, strict=True))


@pytest.mark.parametrize("before", [False, True])
def test_a_column_that_is_no_class_does_not_make_logits_of_probabilities(
    before: bool, small_data: Data, tmp_path: Path
) -> None:
    more = {"confidence": SHARES.max(1), "margin": SHARES[:, 0]}
    columns = more | classes(small_data, SHARES) if before else classes(small_data, SHARES) | more
    path = write(tmp_path, columns)
    artifact = open_teacher_input(path)
    with pytest.raises(
        DataError, match=r"sum to 1 for each image, as probabilities do, .*: confidence, margin; leave"
    ) as caught:
        check_teacher(artifact, small_data, 3)
    assert "\n" not in str(caught.value)
    # who says that they are logits is believed, and features are not about classes
    check_teacher(open_teacher_input(write(tmp_path, columns, {"content": "logits"})), small_data, 3)
    check_teacher(artifact, small_data, 3, features_alone=True)


@pytest.mark.parametrize("content", ["logits", "probabilities"])
def test_a_teacher_of_more_classes_still_teaches(content: str, small_data: Data, tmp_path: Path) -> None:
    values = {"logits": LOGITS, "probabilities": SHARES * np.float32(0.75)}[content]
    path = write(tmp_path, classes(small_data, values) | {"emu": np.full(2, 0.25, np.float32)})
    artifact = open_teacher_input(path)
    assert artifact.details_as(PredictionsDetails).content == content
    check_teacher(artifact, small_data, 3)


def test_the_same_numbers_for_all_images_are_doubted_aloud(small_data: Data, tmp_path: Path) -> None:
    same, other = np.zeros((2, 3), np.float32), LOGITS
    notes = open_teacher_input(write(tmp_path, classes(small_data, same))).notes
    assert notes[1] == "WARNING: t.parquet has the same numbers for all 2 images; nothing can be learned from that."
    assert len(open_teacher_input(write(tmp_path, classes(small_data, other))).notes) == 1


@pytest.mark.parametrize("key", [b"content", b"class_names"])
def test_metadata_that_are_no_text_are_one_line(key: bytes, small_data: Data, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the metadata of .*t\.parquet are no text in UTF-8\.$") as caught:
        open_teacher_input(write(tmp_path, classes(small_data, LOGITS), {key: b"\xff\xfe"}))
    assert "\n" not in str(caught.value)
    # of other programs, about which nothing is asked here
    open_teacher_input(write(tmp_path, classes(small_data, LOGITS), {b"pandas": b"\xff\xfe"}))
