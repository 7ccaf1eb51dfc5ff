"""The same words of the same fault in every verb: a table of faults and verbs, of which each row has one text."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tests.bundles.graphs import row_sum_graph, write_onnx_artifact
from tests.cli.conftest import call

HERE = ("--workers", "0", "--device", "cpu")
BARE = re.compile(r"[;.]? [Ee]xpected [^;]*$")  # what was expected in its place is not the same for all verbs


def verbs(place: Path, good: Path, images: Path, out: Path) -> dict[str, tuple[str | Path, ...]]:
    data = ("--data", images, *HERE)
    return {
        "inspect": ("inspect", place),
        "validate": ("validate", place, *data),
        "baseline": ("validate", good, "--baseline", place, *data),
        "predict": ("predict", place, images, *HERE),
        "bundle": ("bundle", place, "--out", out),
        "export": ("export", place, "--out", out),
        "quantize": ("quantize", place, "--out", out, *data),
        "convert": ("convert", place, "--to", "timm", "--out", out),
        "bench": ("bench", place, "--rounds", "1"),
        "train": ("train", "--checkpoint", place, "--out", out, *data),
        "distill": ("distill", "--student", "atto", "--teacher-checkpoint", place, "--out", out, *data),
    }


def missing(folder: Path) -> Path:
    return folder / "none.onnx"


def missing_folder(folder: Path) -> Path:
    return folder / "none" / "deeper"


def dead_link(folder: Path) -> Path:
    (folder / "m.onnx").symlink_to(folder / "nowhere")
    return folder / "m.onnx"


def link_to_itself(folder: Path) -> Path:
    (folder / "m.onnx").symlink_to(folder / "m.onnx")
    return folder / "m.onnx"


def empty(folder: Path) -> Path:
    (folder / "m.onnx").touch()
    return folder / "m.onnx"


def empty_weights(folder: Path) -> Path:
    (folder / "m.safetensors").touch()
    return folder / "m.safetensors"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"


def empty_folder(folder: Path) -> Path:
    (folder / "m.onnx").mkdir()
    return folder / "m.onnx"


def run_folder(folder: Path) -> Path:
    write_onnx_artifact(folder / "run" / "stages" / "onnx", row_sum_graph())
    return folder / "run"


def words(folder: Path) -> Path:
    (folder / "m.onnx").write_text("words and words")
    return folder / "m.onnx"


def cut_off(folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(row_sum_graph(padding=99).SerializeToString()[:400])
    return folder / "m.onnx"


def with_weights_beside(folder: Path) -> Path:
    onnx.save(
        row_sum_graph(padding=999), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=64
    )
    return folder / "m.onnx"


def without_weights(folder: Path) -> Path:
    path = with_weights_beside(folder)
    (folder / "m.data").unlink()
    return path


def with_cut_weights(folder: Path) -> Path:
    path = with_weights_beside(folder)
    (folder / "m.data").write_bytes(b"x" * 10)
    return path


def altered(folder: Path) -> Path:
    artifact = write_onnx_artifact(folder / "a", row_sum_graph())
    content = bytearray(artifact.main_file.read_bytes())
    content[-20] ^= 1
    artifact.main_file.write_bytes(content)
    return artifact.path


def without_model(folder: Path) -> Path:
    artifact = write_onnx_artifact(folder / "a", row_sum_graph())
    artifact.main_file.unlink()
    return artifact.path


def damaged_manifest(folder: Path) -> Path:
    artifact = write_onnx_artifact(folder / "a", row_sum_graph())
    (artifact.path / "manifest.json").write_text("{")
    return artifact.path


def not_readable(folder: Path) -> Path:
    return words(folder)


FAULTS: list[tuple[Callable[[Path], Path], str]] = [
    (missing, "none.onnx does not exist"),
    (missing_folder, "deeper does not exist"),
    (dead_link, "m.onnx is a symbolic link that leads nowhere"),
    (link_to_itself, "m.onnx is a symbolic link that leads nowhere"),
    (empty, "m.onnx is empty; was it copied completely?"),
    (empty_weights, "m.safetensors is empty; was it copied completely?"),
    (pipe, "m.onnx is neither a file nor a folder"),
    (empty_folder, "m.onnx is not an artifact folder: it has no manifest.json and no model.safetensors."),
    (run_folder, "It is a run; point at one of its artifacts, such as"),
    (words, "m.onnx is not an ONNX file or is cut off"),
    (cut_off, "m.onnx is not an ONNX file or is cut off"),
    (without_weights, "m.onnx keeps its weights in 'm.data' beside it, which is missing; copy both files together."),
    (with_cut_weights, "m.onnx keeps its weights in 'm.data' beside it, which has 10 bytes of the"),
    (altered, "it was altered after it was written"),
    (without_model, "is missing; its manifest says"),
    (damaged_manifest, "manifest.json cannot be read"),
    (not_readable, "cannot be read (Permission denied)"),
]


@contextmanager
def denied(path: Path, *, reading: bool) -> Iterator[None]:
    """Let nobody read a file within the block: root, who may run the tests, reads everything."""
    opened = Path.open

    def open_others(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path and not reading:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_others)
        yield


@pytest.mark.parametrize(("make", "text"), FAULTS, ids=[make.__name__ for make, _ in FAULTS])
def test_every_verb_says_the_same(make: Callable[[Path], Path], text: str, image_folder: Path, tmp_path: Path) -> None:
    good = write_onnx_artifact(tmp_path / "good", row_sum_graph())
    place = make(tmp_path)
    with denied(place, reading=make is not not_readable):
        found = {
            verb: call(*arguments)
            for verb, arguments in verbs(place, good.path, image_folder, tmp_path / "out").items()
        }
    assert {outcome.code for outcome in found.values()} == {1}
    said = {verb: outcome.err.splitlines()[-1] for verb, outcome in found.items()}
    bare = {verb: BARE.sub("", line) for verb, line in said.items()}
    assert len(set(bare.values())) == 1, bare
    assert all(text in line for line in said.values())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (missing, "none.onnx is not a finished run: it has no report.json."),
        (empty, "m.onnx is empty; was it copied completely?"),
        (empty_folder, "m.onnx is not a finished run: it has no report.json."),
        (pipe, "m.onnx is neither a file nor a folder"),
        (not_readable, "cannot be read (Permission denied)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_reads_reports_says_the_same(make: Callable[[Path], Path], text: str, tmp_path: Path) -> None:
    place = make(tmp_path)
    with denied(place, reading=make is not not_readable):
        found = [call("report", place), call("compare", place, tmp_path)]
    assert [outcome.code for outcome in found] == [1, 1]
    assert found[0].err == found[1].err
    assert text in found[0].err


def test_another_number_of_classes_is_one_text(image_folder: Path, tmp_path: Path) -> None:
    artifact = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    two = Path(shutil.copytree(image_folder, tmp_path / "two"))
    for part in ("train", "val"):
        shutil.rmtree(two / part / "owl")
    data = ("--data", two, *HERE)
    found = [call("validate", artifact.path, *data), call("validate", artifact.main_file, *data)]
    assert all(outcome.code == 1 for outcome in found)
    assert all("has 3 classes" in outcome.err and "has 2" in outcome.err for outcome in found), found


def test_damaged_checkpoints_are_one_text(image_folder: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(300)}, tmp_path / "m.pth")
    content = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(content[: len(content) // 2])
    found = verbs(tmp_path / "m.pth", tmp_path, image_folder, tmp_path / "out")
    said = {call(*arguments).err for verb, arguments in found.items() if verb not in ("inspect", "baseline")}
    assert len(said) == 1
    assert "m.pth is not a readable checkpoint" in said.pop()
