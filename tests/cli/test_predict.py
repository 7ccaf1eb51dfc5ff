"""`predict` on the command line: what it prints, what it says of files that it cannot read, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import Data
from tests.cli.conftest import Outcome, call
from tests.conftest import write_image_folder

HERE = ("--workers", "0", "--device", "cpu")
CLASSES = {"cat", "dog", "owl"}


@pytest.fixture
def student(small_artifacts: dict[str, Artifact]) -> Path:
    return small_artifacts["student"].path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one of them deeper, and a file that is none by its name."""
    root = write_image_folder(tmp_path / "made", ("cat", "dog"), train=2, validation=1) / "val"
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    (root / "cat" / "0.png").rename(folder / "z.png")
    (root / "dog" / "0.png").rename(folder / "b" / "a.PNG")
    (tmp_path / "made" / "train" / "dog" / "0.png").rename(folder / "a.png")
    (folder / "notes.txt").write_text("x")
    return folder


def entries(outcome: Outcome) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(outcome.out)
    return found


def test_predict_prints_a_line_for_each_image_in_the_order_of_paths(student: Path, images: Path) -> None:
    outcome = call("predict", student, images, "--top-k", "2", *HERE)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(images / name) for name in ("a.png", "b/a.PNG", "z.png")]
    for line in lines:
        guesses = line.split(": ")[1].split(", ")
        assert len(guesses) == 2
        names, shares = zip(*(guess.removesuffix(" %").split(" ") for guess in guesses), strict=True)
        assert set(names) < CLASSES
        assert float(shares[0]) >= float(shares[1])
    assert "predict: done in" in outcome.err


def test_predict_as_json_is_a_list_of_paths_and_classes(student: Path, images: Path) -> None:
    outcome = call("predict", student, images / "z.png", images / "b", "--json", *HERE)
    assert outcome.code == 0
    found = entries(outcome)
    assert [entry["path"] for entry in found] == [str(images / "z.png"), str(images / "b" / "a.PNG")]
    for entry in found:
        assert entry.keys() == {"path", "predictions"}
        predictions = entry["predictions"]
        assert isinstance(predictions, list)
        assert {guess["class"] for guess in predictions} == CLASSES
        assert sum(guess["probability"] for guess in predictions) == pytest.approx(1)
        assert [("cat", "dog", "owl")[guess["index"]] for guess in predictions] == [g["class"] for g in predictions]


def test_predict_says_what_validate_scored(
    small_artifacts: dict[str, Artifact], small_data: Data, image_folder: Path
) -> None:
    artifact = small_artifacts["onnx-int8"]
    predicted = entries(call("predict", artifact.main_file, image_folder / "val", "--top-k", "1", "--json", *HERE))
    right = sum(
        Path(str(entry["path"])).parent.name == entry["predictions"][0]["class"]  # type: ignore[index]
        for entry in predicted
    )
    row = json.loads(call("validate", artifact.path, "--data", image_folder, "--json", *HERE).out)["rows"][0]
    assert (right, len(predicted)) == (row["accuracy"]["correct"], row["accuracy"]["total"])


@pytest.mark.parametrize(("options", "code"), [((), 1), (("--skip-unreadable",), 0)])
def test_unreadable_file_is_named_and_the_others_are_done(
    student: Path, images: Path, options: tuple[str, ...], code: int
) -> None:
    (images / "b" / "broken.jpg").write_text("this is no image")
    os.mkfifo(images / "pipe.png")
    outcome = call("predict", student, images, "--json", *options, *HERE)
    assert outcome.code == code
    found = {Path(str(entry["path"])).name: entry for entry in entries(outcome)}
    assert list(found) == ["a.png", "a.PNG", "broken.jpg", "pipe.png", "z.png"]
    assert found["broken.jpg"]["predictions"] == found["pipe.png"]["predictions"] == []
    lines = outcome.err.splitlines()
    hint = "repair or remove it, or leave it out with --skip-unreadable."
    assert f"{images}/b/broken.jpg cannot be read as an image (not an image); {hint}" in lines
    assert f"{images}/pipe.png cannot be read as an image (not a regular file); {hint}" in lines
    assert "2 of 5 files cannot be read as images" in lines[-1]
    assert lines[-1].startswith("error: ") is (code == 1)
    text = call("predict", student, images, *options, *HERE)
    assert (len(text.out.splitlines()), text.code) == (3, code)


def test_nothing_readable_is_an_error_even_if_it_may_be_skipped(student: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("this is no image")
    outcome = call("predict", student, tmp_path / "a.png", "--skip-unreadable", *HERE)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1] == "error: 1 of 1 files cannot be read as images; repair or remove them."


def test_quiet_predict_says_errors_alone(student: Path, images: Path) -> None:
    assert call("predict", student, images, "--quiet", *HERE).err == ""
    (images / "broken.jpg").write_text("this is no image")
    assert call("predict", student, images, "-q", "--skip-unreadable", *HERE).err == ""
    lines = call("predict", student, images, "-q", *HERE).err.splitlines()
    assert [line[:5] for line in lines] == [str(images)[:5], "error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ARTIFACT", "none.png"), "none.png does not exist; expected an image or a folder of images"),
        (("ARTIFACT", "empty"), "empty has no images; expected files that end in .jpg, .jpeg, .jpe, .jfif, .png"),
        (("none", "image.png"), "none does not exist; expected an artifact folder, a checkpoint or an ONNX file"),
        (("ARTIFACT", "image.png", "--runner", "torhc"), "there is no runner 'torhc'"),
        (("ARTIFACT", "image.png", "--runner", "openvino"), "the runner openvino opens no torch artifacts"),
        (("ARTIFACT", "image.png", "--image-size", "8"), "--image-size 8 is too small"),
    ],
    ids=str,
)
def test_wrong_input_ends_with_one_clear_line(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_image_folder(tmp_path / "made", ("cat",), train=1, validation=1)
    (tmp_path / "made" / "train" / "cat" / "0.png").rename(tmp_path / "image.png")
    outcome = call("predict", *(student if word == "ARTIFACT" else word for word in arguments), *HERE)
    assert (outcome.code, outcome.out) == (1, "")
    assert message in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_engine_without_a_gpu_is_one_clear_line(
    small_artifacts: dict[str, Artifact], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convnext_deploy.runners import tensorrt

    monkeypatch.setattr(tensorrt, "cuda_driver_error", lambda: "no GPU")
    outcome = call("predict", small_artifacts["engine"].path, images, *HERE)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: built for SM86; not run: no GPU\n"


def test_no_images_are_wrong_usage(student: Path) -> None:
    outcome = call("predict", student)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Missing argument 'IMAGE|DIR...'" in outcome.err


@pytest.mark.heavy
def test_results_reach_a_file_while_a_bar_is_drawn_on_the_terminal(student: Path, images: Path, tmp_path: Path) -> None:
    """Rich takes standard output too while it draws, and would print the results on the terminal instead."""
    control, terminal = pty.openpty()
    out = tmp_path / "out.txt"
    with out.open("wb") as stream:
        command = [sys.executable, "-m", "convnext_deploy", "predict", str(student), str(images), *HERE]
        done = subprocess.Popen(command, stdout=stream, stderr=terminal, env=os.environ | {"TERM": "xterm"})
        os.close(terminal)
        drawn = b""
        while True:
            try:
                part = os.read(control, 4096)
            except OSError:  # the other end was closed
                break
            drawn += part
        assert done.wait(timeout=300) == 0
    os.close(control)
    assert len(out.read_text().splitlines()) == 3
    assert b"predict" in drawn
    plain = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode()).split())
    assert re.search(r"3/3 images( [\d.,]+ images/s)? 0:00:\d\d", plain)
