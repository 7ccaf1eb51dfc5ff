"""Tables of predictions are read column by column, as arrays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.errors import CheckpointError
from convnext_deploy.pipeline.open_foreign import open_teacher_input
from convnext_deploy.stages.foresight import Given, outlook_of
from convnext_deploy.stages.teachers import check_rows
from convnext_deploy.training.prediction_files import read_names, read_predictions
from convnext_deploy.training.predictions import check_judged
from tests.training.test_prediction_files import LOGITS, NAMES, write_columns, write_matrix


@pytest.mark.parametrize("form", ["lists", "a column for each class"])
def test_numbers_of_a_table_take_no_more_memory_than_a_few_copies(form: str, tmp_path: Path) -> None:
    """As objects of Python they take twelve times as much."""
    vectors = np.random.default_rng(0).normal(size=(2000, 100)).astype(np.float32)
    columns = {f"c{place}": vectors[:, place] for place in range(100)} if form != "lists" else {"logits": list(vectors)}
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"path": [f"{row}.png" for row in range(2000)], **columns}), path, row_group_size=700)
    tracemalloc.start()
    try:
        found = read_predictions(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(found.vectors, vectors)
    assert peak < 4 * vectors.nbytes


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float16()), pa.large_list(pa.float64()), pa.list_(pa.int32(), 3), pa.list_(pa.bool_())]
)
def test_lists_of_every_type_of_numbers_are_read(kind: Any, tmp_path: Path) -> None:
    values = (LOGITS > 0).astype(np.float32)
    rows = [[bool(each) for each in row] if kind.value_type == pa.bool_() else row for row in values.astype(np.float16)]
    path = write_columns(tmp_path, {"logits": pa.array(rows, kind)})
    assert np.array_equal(read_predictions(path).vectors, values)


def test_whose_rows_there_are_is_told_without_reading_the_vectors(tmp_path: Path) -> None:
    """Which may be many gigabytes; here they cannot be read at all."""
    path = write_columns(tmp_path, {"logits": LOGITS.tolist()})
    artifact = open_teacher_input(path)
    column = parquet.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a readable Parquet file"):
        read_predictions(path)
    both = [FolderImages([tmp_path / name], np.array([0])) for name in NAMES]
    data = Data(str(tmp_path), both[0], both[1], ("cat", "dog"))
    check_judged(path, data, both[0])
    check_rows(Given("student", {"teacher": outlook_of(artifact)}, data, "cpu"), data)
    other = tmp_path / "one-each.safetensors"
    save_file(dict(zip(NAMES, LOGITS, strict=True)), other)
    assert set(read_names(other)) == set(NAMES)
    assert read_names(write_matrix(tmp_path, "logits", LOGITS)) == NAMES


@pytest.mark.parametrize("read", [read_predictions, read_names])
def test_a_table_of_no_images_is_one_line(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(
        pa.table({"path": pa.array([], pa.string()), "logits": pa.array([], pa.list_(pa.float32()))}), path
    )
    with pytest.raises(CheckpointError, match="holds no predictions; expected a vector for each image"):
        read(path)
