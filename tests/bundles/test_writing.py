"""A bundle has everything in it, comes completely or not at all, and tells nothing of the machine that made it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext_deploy.api.bundle import bundle
from convnext_deploy.api.options import DataOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError, DeployError, OutputError, RecipeError
from convnext_deploy.pipeline.ledger import write_report
from convnext_deploy.pipeline.run import RunResult
from tests.bundles.conftest import read_record
from tests.bundles.graphs import FP32, INT8, row_sum_graph, write_onnx_artifact
from tests.reports.conftest import change

FILES = {
    "README.md",
    "SHA256SUMS",
    "bundle.json",
    "classes.txt",
    "models.tsv",
    "verify.py",
    "answers.py",
    "bundle_index.py",
    "tensorrt_device.py",
    "build_engine.py",
    "build_on_device.sh",
    "choose_engine.py",
    "intervals.py",
    "open_models.py",
    "pixels.py",
    "score_images.py",
    "golden/pixels.npy",
    f"engines/{INT8}.sm86.plan",
    f"engines/{INT8}.sm89.plan",
    *(
        place.format(name)
        for name in (INT8, FP32)
        for place in (
            "onnx/{}.onnx",
            "golden/{}.0.npy",
            "triton/onnxruntime/{}/config.pbtxt",
            "triton/onnxruntime/{}/labels.txt",
            "triton/onnxruntime/{}/1/model.onnx",
            "triton/tensorrt/{}/config.pbtxt",
            "triton/tensorrt/{}/labels.txt",
        )
    ),
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bundle_holds_these_files(made: Path) -> None:
    assert files_of(made).keys() == FILES


def test_bundle_holds_the_very_files_of_the_artifacts(made: Path, graphs: dict[str, Artifact]) -> None:
    for name, artifact in ((INT8, graphs["int8"]), (FP32, graphs["fp32"])):
        for place in (f"onnx/{name}.onnx", f"triton/onnxruntime/{name}/1/model.onnx"):
            assert (made / place).read_bytes() == artifact.main_file.read_bytes()


def test_checksums_are_those_that_sha256sum_checks(made: Path) -> None:
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.removesuffix(": OK") for line in done.stdout.splitlines()} == FILES - {"SHA256SUMS"}


def test_bundle_tells_nothing_of_the_machine_that_made_it(made: Path, graphs: dict[str, Artifact]) -> None:
    private = [str(graphs["int8"].path.parents[1]), str(made.parent), str(Path.home() / ".cache")]
    for name, content in files_of(made).items():
        assert not [text for text in private if text.encode() in content], name
    assert "photos" in (made / "README.md").read_text(encoding="utf-8")


def test_record_says_what_the_files_are(made: Path) -> None:
    record = read_record(made)
    int8, fp32 = record["models"]
    assert (int8["name"], int8["precision"], int8["batch"]) == (
        INT8,
        "int8",
        {"frozen": None, "optimal": 1, "maximum": 6},
    )
    assert (fp32["name"], fp32["batch"]["frozen"]) == (FP32, 4)
    takes = {"name": "images", "dtype": "float32", "shape": [None, 3, 32, 32], "layout": "NCHW", "white": None}
    assert int8["input"] == takes
    assert record["class_names"] == ["cat", "dog", "owl"]
    assert record["preprocess"]["resize_size"] == 32
    assert [(e["gpus"], e["kind"], e["model"], e["built_from_it"]) for e in record["engines"]] == [
        (["SM86"], "tensorrt-rtx", INT8, True),
        (["SM89"], "tensorrt-rtx", INT8, True),
    ]


def test_golden_outputs_are_those_of_the_golden_images(made: Path) -> None:
    pixels = np.load(made / "golden" / "pixels.npy")
    assert (pixels.shape, pixels.dtype) == ((5, 32, 32, 3), np.uint8)
    row = (pixels[:, 0, :, 0].astype(np.float64) / 255 - 0.485) / 0.229
    for name, offset in ((INT8, 0.0), (FP32, 0.25)):
        expected = row.sum(axis=1)[:, None] + np.arange(3) + offset
        assert np.load(made / "golden" / f"{name}.0.npy") == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_bundle_is_the_same_again(made: Path, graphs: dict[str, Artifact], tmp_path: Path) -> None:
    bundle([a.path for a in graphs.values()], tmp_path / "again", golden_images=5, max_batch_size=6)
    assert files_of(tmp_path / "again") == files_of(made)


def test_bundle_as_an_archive_is_the_folder_and_the_same_again(
    made: Path, graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    paths = [artifact.path for artifact in graphs.values()]
    first = bundle(paths, tmp_path / "a bundle.zip", golden_images=5, max_batch_size=6)
    second = bundle(paths, tmp_path / "b" / "a bundle", as_zip=True, golden_images=5, max_batch_size=6)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert (second.path.name, second.size_bytes) == ("a bundle.zip", second.path.stat().st_size)
    assert first.sha256 == hashlib.sha256((made / "SHA256SUMS").read_bytes()).hexdigest()
    with zipfile.ZipFile(first.path) as archive:
        archive.extractall(tmp_path / "unpacked")
        modes = {entry.filename: entry.external_attr >> 16 & 0o777 for entry in archive.infolist()}
    assert files_of(tmp_path / "unpacked" / "a bundle") == files_of(made)
    assert modes["a bundle/build_on_device.sh"] == 0o755
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a bundle.zip", "b", "unpacked"]


def test_golden_images_come_from_the_data_of_the_user_one_of_each_class_first(
    graphs: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    result = bundle([graphs["int8"].path], tmp_path / "out", golden_images=4, data=DataOptions(image_folder))
    assert result.golden == f"4 validation images of '{image_folder.name}'"
    assert any("leave --data out" in note for note in result.notes)
    pixels = np.load(tmp_path / "out" / "golden" / "pixels.npy").astype(float)
    # the images of class c are bright in channel c
    assert pixels.mean(axis=(1, 2)).argmax(axis=1).tolist() == [0, 1, 2, 0]


def test_classes_that_do_not_fit_on_a_line_are_escaped_and_exact_in_the_record(tmp_path: Path) -> None:
    names = ("tab\there", "two\nlines\\", "Größe \udcff\u2028")
    artifact = write_onnx_artifact(tmp_path / "a", row_sum_graph(), class_names=names)
    bundle([artifact.path], tmp_path / "out", golden_images=1)
    lines = (tmp_path / "out" / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [r"tab\there", r"two\nlines\\", r"Größe \udcff\u2028"]
    assert tuple(read_record(tmp_path / "out")["class_names"]) == names


def test_a_model_without_class_names_has_no_labels(tmp_path: Path) -> None:
    artifact = write_onnx_artifact(tmp_path / "a", row_sum_graph(), class_names=None)
    bundle([artifact.path], tmp_path / "out", golden_images=1)
    files = files_of(tmp_path / "out")
    assert not [name for name in files if name.endswith(("classes.txt", "labels.txt"))]
    assert b"label_filename" not in b"".join(files.values())


def test_a_model_that_is_not_for_tensorrt_is_not_offered_for_building(make: Callable[..., Path]) -> None:
    out = make("int8", unsigned=True)
    assert (out / "models.tsv").read_text(encoding="utf-8") == ""
    assert not (out / "triton" / "tensorrt").exists()
    assert "is for CPUs and is not built with TensorRT" in (out / "README.md").read_text(encoding="utf-8")


def test_an_old_bundle_is_replaced(graphs: dict[str, Artifact], copied: Path) -> None:
    bundle([graphs["fp32"].path], copied, golden_images=2)
    assert f"onnx/{INT8}.onnx" not in files_of(copied)


def test_a_bundle_with_notes_of_the_user_is_kept(graphs: dict[str, Artifact], copied: Path) -> None:
    (copied / "notes.txt").write_text("x")
    before = files_of(copied)
    with pytest.raises(OutputError, match=r"holds 'notes\.txt', which is no part of the bundle"):
        bundle([graphs["fp32"].path], copied, golden_images=2)
    assert files_of(copied) == before


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda out: out.write_text("x"), "is a file"),
        (lambda out: (out.mkdir(), (out / "photo.png").write_text("x")), "not a bundle"),
        (lambda out: (out.mkdir(), (out / "bundle.json").write_text("{}")), "not a bundle"),
    ],
)
def test_bundle_replaces_nothing_else(
    spoil: Callable[[Path], Any], text: str, graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    spoil(out)
    before = files_of(tmp_path)
    with pytest.raises(OutputError, match=text):
        bundle([graphs["fp32"].path], out)
    assert files_of(tmp_path) == before


def test_bundle_keeps_engines_that_were_built_on_the_device(graphs: dict[str, Artifact], copied: Path) -> None:
    (copied / "built").mkdir()
    with pytest.raises(OutputError, match="holds engines that were built from it"):
        bundle([graphs["fp32"].path], copied)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"a letter"])
def test_bundle_replaces_no_file_that_is_called_an_archive(
    content: bytes, graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    (tmp_path / "out.zip").write_bytes(content)
    with pytest.raises(OutputError, match="is there already"):
        bundle([graphs["fp32"].path], tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == content


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_bundle_that_fails_leaves_nothing(name: str, graphs: dict[str, Artifact], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(graphs["int8"].path, tmp_path / "altered"))
    content = bytearray((folder / "model.onnx").read_bytes())
    content[content.index(b"row_sum")] ^= 1  # the graph's name: still a graph, of the same size
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not the file that its manifest describes"):
        bundle([graphs["fp32"].path, folder], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["altered"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"golden_images": 0}, "0 golden images"),
        ({"optimal_batch_size": 9}, "a batch of 9"),
        ({"max_batch_size": 0}, "the largest, 0"),
    ],
)
def test_bundle_refuses_settings_that_cannot_be(
    settings: dict[str, int], text: str, graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=text):
        bundle([graphs["fp32"].path], tmp_path / "out", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_place_that_cannot_be_written_is_one_line(name: str, graphs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file cannot be written \([^\n]*choose another one with --out"):
        bundle([graphs["fp32"].path], tmp_path / "file" / name, golden_images=1)


def test_bundle_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no artifact was given"):
        bundle([], tmp_path / "out")


def test_bundle_refuses_data_of_other_classes(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="has 3 classes, digits has 10"):
        bundle([graphs["fp32"].path], tmp_path / "out", data=DataOptions("digits"))
    assert not (tmp_path / "out").exists()


def test_result_as_json(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    result = bundle([graphs["fp32"].path], tmp_path / "out", golden_images=1)
    record = json.loads(result.to_json())
    assert record["path"] == str(tmp_path / "out")
    assert record["models"] == [f"onnx/{FP32}.onnx"]
    served = "triton/onnxruntime"  # the same files under another name
    files = {name: content for name, content in files_of(tmp_path / "out").items() if not name.startswith(served)}
    texts = [path for path in (tmp_path / "out" / served).rglob("*") if path.is_file() and path.suffix != ".onnx"]
    assert record["size_bytes"] == sum(map(len, files.values())) + sum(path.stat().st_size for path in texts)


def test_bundle_of_what_was_measured_says_what_that_rests_on(
    small_run: RunResult, small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    graph = small_artifacts["onnx-fp32"]
    run = shutil.copytree(graph.path.parents[1], tmp_path / "run")
    rows = tuple(
        dataclasses.replace(row, warnings=("top-1 is chance level",)) if row.name == "student" else row
        for row in small_run.report.rows
    )
    assumed = (f"the 18 images were taken here from {small_run.report.data}",)
    write_report(dataclasses.replace(small_run.report, rows=rows, assumptions=assumed), run)
    found = bundle([run / "stages" / "onnx-fp32"], tmp_path / "b")
    assert found.notes[0] == "WARNING: top-1 is chance level"
    (model,) = read_record(tmp_path / "b")["models"]
    assert (model["measured"]["warnings"], model["measured"]["baseline"]) == (["top-1 is chance level"], "torch fp32")
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert "\n\n**Warning.** Top-1 is chance level.\n\n" in card
    assert f"Assumed: The 18 images were taken here from {Path(small_run.report.data).name}." in card
    assert "drops are against the FP32 network in PyTorch" in card
    others = tuple(change(row, precision="int8") if row.name == "student" else row for row in small_run.report.rows)
    write_report(dataclasses.replace(small_run.report, rows=others), run)
    bundle([run / "stages" / "onnx-fp32"], tmp_path / "b")
    assert "drops are against the torch int8 artifact" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
