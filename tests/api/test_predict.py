"""`predict` as a function: probabilities, names, and images of every kind, read as they are needed."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy import predict
from convnext_deploy.api.export import export
from convnext_deploy.api.options import EvaluationOptions, ExecutionOptions
from convnext_deploy.api.predict import find_images
from convnext_deploy.api.predictions import Prediction
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, DataError, RecipeError
from convnext_deploy.evaluation.probabilities import to_probabilities
from convnext_deploy.runners import Runner, open_runner
from convnext_deploy.system.progress_bars import PlainProgress
from tests.pipeline.test_open_artifact import write_foreign_onnx

HERE = ExecutionOptions(device="cpu", workers=0)


@pytest.fixture
def files(small_data: Data) -> list[Path]:
    images = small_data.validation
    assert isinstance(images, FolderImages)
    return list(images.paths)


def shares(prediction: Prediction) -> dict[str, float]:
    return {guess.class_name: guess.probability for guess in prediction.guesses}


def test_predict_gives_the_softmax_of_the_logits(small_artifacts: dict[str, Artifact], files: list[Path]) -> None:
    artifact = small_artifacts["student"]
    found = predict(artifact.path, files, execution=HERE)
    images = EvaluationBatches(FolderImages(tuple(files), np.zeros(18, np.int64)), artifact.preprocess, 18)
    runner = open_runner(artifact)
    logits = runner.logits(next(iter(images))[0].numpy()).astype(np.float64)
    runner.close()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for prediction, row in zip(found, expected, strict=True):
        assert [guess.index for guess in prediction.guesses] == np.argsort(-row).tolist()
        assert [row[guess.index] for guess in prediction.guesses] == pytest.approx(
            [guess.probability for guess in prediction.guesses], abs=1e-6
        )
        assert set(shares(prediction)) == {"cat", "dog", "owl"}


def test_batch_size_and_workers_change_nothing(small_artifacts: dict[str, Artifact], files: list[Path]) -> None:
    path = small_artifacts["onnx-fp32"].path
    one = [shares(found) for found in predict(path, files, execution=HERE)]
    other = [
        shares(found)
        for found in predict(path, files, evaluation=EvaluationOptions(5), execution=ExecutionOptions("cpu", 1))
    ]
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_graph_that_gives_the_best_classes_tells_their_probabilities_among_all(
    small_artifacts: dict[str, Artifact], files: list[Path], tmp_path: Path
) -> None:
    source = small_artifacts["student"].path
    export(source, output="top-k", top_k=2, out=tmp_path, execution=HERE)
    expected = list(predict(source, files, top_k=2, execution=HERE))
    found = list(predict(tmp_path / "stages" / "onnx", files, execution=HERE))
    for a, b in zip(expected, found, strict=True):
        assert shares(b) == pytest.approx(shares(a), abs=1e-4)


@pytest.mark.parametrize("output", ["probabilities", "top-k"])
def test_logarithms_of_probabilities_are_not_scaled_to_a_sum_of_one(output: Literal["probabilities", "top-k"]) -> None:
    given = np.array([[0.5, 0.2, 1e-38]], np.float32)
    assert np.allclose(to_probabilities(np.log(given), GraphIO(output=output), False), given)


def test_classes_without_names_go_by_their_index(files: list[Path], tmp_path: Path) -> None:
    (found,) = predict(write_foreign_onnx(tmp_path / "foreign.onnx"), files[:1], execution=HERE)
    assert {guess.class_name for guess in found.guesses} == {"0", "1", "2"}
    assert all(guess.class_name == str(guess.index) for guess in found.guesses)


@pytest.mark.parametrize("foreign", [True, False])
def test_probabilities_of_a_foreign_graph_are_taken_as_they_are(foreign: bool) -> None:
    given = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]], np.float32)
    found = to_probabilities(given, GraphIO(), foreign)
    assert np.allclose(found, given, atol=1e-6) is foreign
    assert np.allclose(found.sum(axis=1), 1)


def test_huge_logits_have_probabilities() -> None:
    found = to_probabilities(np.array([[3e4, -3e4, 3e4]], np.float32), GraphIO(), False)
    assert found.tolist() == [[0.5, 0.0, 0.5]]


def test_predict_reads_every_kind_of_image_as_validation_does(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (40, 50, 3), np.uint8)
    grey = rng.integers(0, 2**16, (40, 50)).astype(np.uint16)
    kinds = {
        "rgb": Image.fromarray(rgb),
        "grey16": Image.fromarray(grey),
        "grey8": Image.fromarray(np.rint(grey * (255 / 65535)).astype(np.uint8)),
        "palette": Image.fromarray(rgb).quantize(),
        "alpha": Image.fromarray(np.dstack([rgb, np.full((40, 50), 255, np.uint8)])),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif")
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(rgb)))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "exif.png", exif=exif)
    artifact = small_artifacts["student"].path
    found = {prediction.path.stem: shares(prediction) for prediction in predict(artifact, [tmp_path], execution=HERE)}
    assert set(found) == {*kinds, "cmyk", "exif"}
    for name, same in (("alpha", "rgb"), ("exif", "rgb"), ("grey8", "grey16"), ("cmyk", "rgb")):
        assert found[name] == pytest.approx(found[same], abs=1e-6), name


def test_images_are_read_as_predictions_are_taken(small_artifacts: dict[str, Artifact], files: list[Path]) -> None:
    read: list[Path] = []
    load = FolderImages.load

    def watched(images: FolderImages, index: int) -> Image.Image:
        read.append(images.paths[index])
        return load(images, index)

    with patch.object(FolderImages, "load", watched):
        found = predict(
            small_artifacts["student"].path, files, evaluation=EvaluationOptions(4), execution=HERE, stream=True
        )
        assert isinstance(found, Iterator)
        assert read == []
        next(found)
        assert read == files[:4]


def test_a_stream_reads_what_its_paths_meant_and_tells_them_as_they_were_given(
    small_artifacts: dict[str, Artifact], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(files[0], tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_text("this is no image")
    monkeypatch.chdir(tmp_path)
    found = predict(small_artifacts["student"].path.absolute(), "photos", execution=HERE, stream=True)
    monkeypatch.chdir("/")
    read, broken = found
    assert (str(read.path), read.error) == ("photos/a.png", None)
    assert str(broken.path) == "photos/b.png"
    assert str(broken.error).startswith("photos/b.png cannot be read as an image (not an image)")


@pytest.mark.parametrize("end", ["never begun", "begun", "closed", "taken", "failed"])
def test_a_stream_closes_its_runner_once_however_it_ends(
    small_artifacts: dict[str, Artifact], files: list[Path], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    closed: list[str] = []

    class Watched:
        """A runner that notes when it is closed."""

        def __init__(self, runner: Runner) -> None:
            self.runner = runner

        def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            if end == "failed":
                raise DataError("of the test")
            return self.runner.logits(pixels)

        def close(self) -> None:
            closed.append(end)
            self.runner.close()

    monkeypatch.setattr(
        "convnext_deploy.api.predict.open_runner", lambda *args, **named: Watched(open_runner(*args, **named))
    )
    stream = predict(
        small_artifacts["student"].path, files, evaluation=EvaluationOptions(4), execution=HERE, stream=True
    )
    assert closed == []
    if end == "begun":
        next(stream)
    elif end == "closed":
        stream.close()
    elif end == "taken":
        assert len(list(stream)) == len(files)
    elif end == "failed":
        with pytest.raises(DataError, match="of the test"):
            next(stream)
    assert closed == ([] if end in ("never begun", "begun") else [end])
    del stream
    gc.collect()
    assert closed == [end]


def test_predict_checks_everything_before_it_returns(
    small_artifacts: dict[str, Artifact], files: list[Path], tmp_path: Path
) -> None:
    student = small_artifacts["student"].path
    with pytest.raises(RecipeError, match="top_k = 0 is out of range"):
        predict(student, files, top_k=0, execution=HERE)
    with pytest.raises(DataError, match="no images were given"):
        predict(student, [], execution=HERE)
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        predict(student, [*files, tmp_path / "gone.png"], execution=HERE)
    with pytest.raises(ArtifactError, match="does not exist"):
        predict(tmp_path / "none", files, execution=HERE)
    with (
        patch("convnext_deploy.system.execution.cuda_driver_error", lambda: "no GPU"),
        pytest.raises(BackendUnavailableError, match="--device cuda was asked for"),
    ):
        predict(student, files, execution=ExecutionOptions(device="cuda"))


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "a/b/\udcff"])
def test_names_that_no_file_has_are_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        find_images([tmp_path / name])
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_folders_and_files_come_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = find_images([tmp_path / "b", tmp_path / "a.png", str(tmp_path / "b" / "2.png")])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/10.png", "b/2.png", "a.png", "b/2.png"]


@pytest.mark.parametrize("shift", [0, 1])
def test_predict_warns_where_the_folders_name_other_classes(
    small_artifacts: dict[str, Artifact],
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shift: int,
) -> None:
    names = small_artifacts["student"].class_names or ()
    first = [found.guesses[0].index for found in predict(small_artifacts["student"].path, files, execution=HERE)]
    for place, (file, guess) in enumerate(zip(files, first, strict=True)):
        folder = tmp_path / names[(guess + shift) % len(names)]
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder / f"{place}.png")
    execution = dataclasses.replace(HERE, progress=PlainProgress())
    assert len(list(predict(small_artifacts["student"].path, [tmp_path], execution=execution))) == 18
    warned = "WARNING: going by the names of the folders, top-1 0.00 % on 18 images" in capsys.readouterr().err
    assert warned is (shift == 1 and len(set(first)) > 1)
    assert len(set(first)) > 1, "this test needs a network that tells images apart"
