"""Artifacts on disk: the manifest keeps everything, damage is noticed, folders and files appear whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import (
    MANIFEST,
    Artifact,
    ArtifactFile,
    StageRecord,
    describe_file,
    read_artifact,
    write_manifest,
)
from convnext_deploy.artifacts.details import (
    Certificate,
    Details,
    Difference,
    EngineDetails,
    Fold,
    FP16Record,
    Kept,
    LayerEffect,
    ONNXDetails,
    PrecisionReport,
    Profile,
    PTQRecord,
    Selection,
    Step,
    TorchDetails,
    TorchTensorRTDetails,
)
from convnext_deploy.artifacts.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    GraphIO,
    ModelSpec,
    Preprocess,
    default_preprocess,
)
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.system.files import create_output_folder, replace_folder, write_text

EVERY: tuple[Details, ...] = (
    TorchDetails(
        "onnxruntime",
        {"stages.3.*": "float", "head": "int8"},
        ({"epoch": 1, "train_loss": 1e-17}, {"epoch": 2, "train_loss": None}),
        Certificate(
            (Fold("norm_affine", "norm", "head"),),
            (Kept("grn_bias", "grn", "it is needed"),),
            (Difference("random", 2, "float64", 1e-12, 1e-13),),
        ),
        PTQRecord(12, {"stages.0.0.pwconv1": 0.5, "head": None}, 3, ("head",)),
        Selection(
            (Step("min-max", 0.9, 0.1, (-0.5, 0.7), 0.99, None, 31.5, 0.15, 2.0, passed=True),),
            "min-max",
            "its risk is small",
            0.2,
            (LayerEffect("head", None, 0.5, 10**9), LayerEffect("stages.0.0.pwconv1", 1e-3, 0.0, 123)),
        ),
    ),
    ONNXDetails(
        "tensorrt",
        io=GraphIO("uint8", "nhwc", "top-k", 2, 4),
        fp16=FP16Record("tensorrt-rtx", {"sums": 12}, 77.5, "5 training images"),
        quantized_layers=7,
    ),
    EngineDetails(
        "tensorrt-rtx",
        "1.7.1",
        ("SM86", "SM120"),
        Profile(1, 2, 8),
        version_compatible=True,
        precisions={"SM86": PrecisionReport({"INT8": 3}, 4, ("a: FP16",), ("b",)), "SM120": None},
        warnings=("slow",),
    ),
    TorchTensorRTDetails("2.14.0", "SM90", 8),
)


def create_artifact(folder: Path, details: Details = EVERY[0]) -> Artifact:
    """Write two small files and describe them with every field set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "extra.bin").write_bytes(b"")
    record = StageRecord(
        name="qat",
        kind="qat",
        config={"fit": {"epochs": 2, "base_learning_rate": 1e-300, "autocast": "auto"}, "gpus": ["sm86"], "x": None},
        inputs={"source": "ab" * 32},
        input_paths={"source": "/elsewhere/stages/ptq"},
        data="digits",
        data_fingerprint="cd" * 32,
        seed=2**63,
        versions={"torch": "2.14"},
        wall_s=0.1 + 0.2,
        cache_key="ef" * 32,
    )
    return Artifact(
        path=folder,
        details=details,
        precision="int8",
        model=ModelSpec("convnextv2_atto", 3, 1, 2),
        class_names=("café", 'quo"te', "日本"),
        preprocess=Preprocess(32, 0.1 + 0.2, "bilinear", (0.5,), (1 / 3,)),
        files=(describe_file(folder / "weights.bin"), describe_file(folder / "extra.bin")),
        lineage=(record, dataclasses.replace(record, name="again")),
    )


@pytest.mark.parametrize("details", EVERY, ids=lambda details: type(details).__name__)
def test_read_artifact_returns_exactly_what_write_manifest_wrote(tmp_path: Path, details: Details) -> None:
    artifact = create_artifact(tmp_path / "a", details)
    write_manifest(artifact)
    assert read_artifact(tmp_path / "a") == artifact


def test_read_artifact_returns_none_for_absent_class_names(tmp_path: Path) -> None:
    artifact = dataclasses.replace(create_artifact(tmp_path), class_names=None, lineage=())
    write_manifest(artifact)
    assert read_artifact(tmp_path) == artifact


def test_write_manifest_writes_the_same_bytes_for_what_was_read(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    for artifact in small_artifacts.values():
        write_manifest(dataclasses.replace(artifact, path=tmp_path))
        assert (tmp_path / MANIFEST).read_bytes() == (artifact.path / MANIFEST).read_bytes()


def test_read_artifact_works_after_the_folder_was_moved(tmp_path: Path) -> None:
    write_manifest(create_artifact(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_artifact(tmp_path / "there").main_file.read_bytes() == b"weights"


def test_read_artifact_raises_when_there_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"{tmp_path} is not an artifact folder: it has no manifest\.json"):
        read_artifact(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '"text"', '{"schema": 1}', '{"schema": 1, "model": 5}'])
def test_read_artifact_raises_when_the_manifest_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_artifact(tmp_path)


def test_read_artifact_raises_when_the_manifest_is_not_text(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_artifact(tmp_path)


def change(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return edit


def remove(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        *(
            remove(key)
            for key in ("schema", "format", "precision", "model", "class_names", "preprocess", "files", "details")
        ),
        remove("preprocess", "mean"),
        remove("preprocess", "crop_pct"),
        remove("model", "variant"),
        change("unknown", value=1),
        change("model", "unknown", value=1),
        change("schema", value=1),
        change("details", "unknown", value=1),
        change("details", "target", value="nonsense"),
        change("format", value="onnx"),
        change("files", value=[]),
        change("class_names", value=["a"]),
        change("path", value="/elsewhere"),
        change("files", value=5),
        change("files", value=[{"name": "weights.bin"}]),
        change("lineage", value=[{"name": "qat"}]),
        change("preprocess", value=[]),
    ],
)
def test_read_artifact_raises_when_a_key_is_missing_unknown_or_of_another_kind(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    write_manifest(create_artifact(tmp_path))
    manifest = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    edit(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_artifact(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("precision",), 7, "precision = 7 has the wrong type; expected str"),
        (("model", "patch_size"), 0, "model: patch_size = 0 is out of range; expected 1 to 1024"),
        (("preprocess", "std"), [0.5, 0.5], "preprocess: std has 2 values; the network has 1 channels"),
        (
            ("preprocess", "crop_mode"),
            "nonsense",
            "preprocess: crop_mode = 'nonsense' is unknown; expected one of 'center'",
        ),
        (("files", 0, "name"), "../a.bin", "files[0]: name = '../a.bin' is out of range; expected the name of a file"),
        (("lineage", 1, "wall_s"), float("nan"), "lineage[1]: wall_s = nan is out of range; expected a finite number"),
        (("details", "target"), "nonsense", "details: target = 'nonsense' is unknown; expected one of 'tensorrt'"),
        (("details", "sites"), {"head": "int4"}, "details: sites: 'head' = 'int4' is unknown"),
        (
            ("details", "selection", "steps", 0, "passed"),
            1,
            "details: selection: steps[0]: passed = 1 has the wrong type",
        ),
        (("details", "selection", "steps", 0, "interval_pp"), [0.5], "has 1 entries; expected 2"),
        (
            ("details", "history"),
            [{"epoch": "one"}],
            "details: history[0]: epoch = 'one' has the wrong type; expected int",
        ),
    ],
)
def test_read_artifact_names_the_field_what_was_found_and_what_was_expected(
    tmp_path: Path, keys: tuple[Any, ...], value: object, words: str
) -> None:
    write_manifest(create_artifact(tmp_path))
    manifest = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    change(*keys, value=value)(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=re.escape(words)):
        read_artifact(tmp_path)


def test_read_artifact_names_the_file_that_is_missing(tmp_path: Path) -> None:
    write_manifest(create_artifact(tmp_path))
    (tmp_path / "extra.bin").unlink()
    with pytest.raises(ArtifactError, match=r"extra\.bin is missing; its manifest says 0 bytes"):
        read_artifact(tmp_path)


def test_read_artifact_names_the_file_of_another_size(tmp_path: Path) -> None:
    write_manifest(create_artifact(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"weight")
    with pytest.raises(ArtifactError, match=r"weights\.bin has 6 bytes; its manifest says 7 bytes"):
        read_artifact(tmp_path)


def test_describe_file_hashes_and_measures(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc" * 1000)
    expected = ArtifactFile("a.bin", hashlib.sha256(b"abc" * 1000).hexdigest(), 3000)
    assert describe_file(tmp_path / "a.bin") == expected


def test_sha256_of_one_file_is_the_hash_of_the_file(tmp_path: Path) -> None:
    artifact = create_artifact(tmp_path)
    artifact = dataclasses.replace(artifact, files=artifact.files[:1])
    assert artifact.sha256 == hashlib.sha256(b"weights").hexdigest()


def test_sha256_changes_with_any_file_its_name_and_the_order(tmp_path: Path) -> None:
    artifact = create_artifact(tmp_path)
    first, second = artifact.files
    variants = [
        (first, second),
        (second, first),
        (first, dataclasses.replace(second, sha256="0" * 64)),
        (first, dataclasses.replace(second, name="other.bin")),
        (first,),
    ]
    assert len({dataclasses.replace(artifact, files=files).sha256 for files in variants}) == len(variants)


def test_size_bytes_and_main_file_of_several_files(tmp_path: Path) -> None:
    artifact = create_artifact(tmp_path)
    assert artifact.size_bytes == 7
    assert artifact.main_file == tmp_path / "weights.bin"


def test_location_opens_the_artifact_again(tmp_path: Path) -> None:
    artifact = create_artifact(tmp_path)
    assert artifact.location == (tmp_path / "weights.bin").resolve()
    write_manifest(artifact)
    assert artifact.location == tmp_path.resolve()


@pytest.mark.parametrize(
    ("form", "precision", "expected"),
    [(EVERY[0], "fp32", True), (EVERY[0], "int8", False), (EVERY[1], "fp32", False), (EVERY[2], "fp32", False)],
)
def test_is_baseline_for_fp32_pytorch_only(tmp_path: Path, form: Details, precision: str, expected: bool) -> None:
    artifact = dataclasses.replace(create_artifact(tmp_path, form), precision=precision)
    assert artifact.is_baseline is expected


@pytest.mark.parametrize(
    ("image_size", "crop_pct", "used", "resize"),
    [
        (224, None, 0.875, 256),
        (128, None, 0.875, 146),
        (127, None, 1.0, 127),
        (32, None, 1.0, 32),
        (224, 1.0, 1.0, 224),
    ],
)
def test_default_preprocess_crops_large_images_only(
    image_size: int, crop_pct: float | None, used: float, resize: int
) -> None:
    preprocess = default_preprocess(image_size, crop_pct)
    assert preprocess == Preprocess(image_size, used, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    assert preprocess.resize_size == resize


def test_default_preprocess_has_one_mean_for_grey_images() -> None:
    preprocess = default_preprocess(32, in_channels=1)
    assert (preprocess.mean, preprocess.std) == ((0.5,), (0.5,))


def test_write_text_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "x" * 100_000 + "\ud800")
    assert (tmp_path / "a.json").read_text() == "old"


def test_write_text_replaces_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".a.json.partial").write_text("half")
    write_text(tmp_path / "a.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "new")]


def test_create_output_folder_makes_parents_and_leaves_nothing(tmp_path: Path) -> None:
    create_output_folder(tmp_path / "a" / "b")
    create_output_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("inside", ["file", "file/below"])
def test_create_output_folder_raises_when_a_file_is_in_its_place(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot be written \(.+\); choose another one with --out"):
        create_output_folder(tmp_path / inside)
    assert (tmp_path / "file").read_text() == "mine"


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_replace_folder_shows_the_new_folder_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a"
    with replace_folder(target) as folder:
        (folder / "new").write_text("1")
        assert not target.exists()
    assert contents(tmp_path) == {"deep/a/new": "1"}


def test_replace_folder_keeps_the_old_folder_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.mkdir()
    (target / "old").write_text("0")
    with replace_folder(target) as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").write_text("1")
        assert contents(target) == {"old": "0"}
    assert contents(tmp_path) == {"a/new": "1"}


@pytest.mark.parametrize(
    "error", [ArtifactError("x"), KeyboardInterrupt(), SystemExit(1)], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("existed", [True, False])
def test_replace_folder_leaves_what_was_there_when_the_block_raises(
    tmp_path: Path, error: BaseException, existed: bool
) -> None:
    target = tmp_path / "a"
    if existed:
        target.mkdir()
        (target / "old").write_text("0")

    def write_half() -> None:
        with replace_folder(target) as folder:
            (folder / "new").write_text("1")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert contents(tmp_path) == ({"a/old": "0"} if existed else {})
    assert [path.name for path in tmp_path.iterdir()] == (["a"] if existed else [])


@pytest.mark.parametrize("fails", [False, True])
def test_replace_folder_removes_what_a_killed_process_left(tmp_path: Path, fails: bool) -> None:
    for name in (".a.partial", ".a.old"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "half").write_text("?")
    try:
        with replace_folder(tmp_path / "a") as folder:
            assert list(folder.iterdir()) == []
            if fails:
                raise ArtifactError("x")
    except ArtifactError:
        assert fails
    assert [path.name for path in tmp_path.iterdir()] == ([] if fails else ["a"])
