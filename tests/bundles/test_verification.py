"""`verify-bundle` does what `verify.py` does, for archives too, and unpacks and executes nothing that it should not."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from convnext_deploy.api.verify_bundle import verify_bundle
from convnext_deploy.bundles.archive import write_archive
from convnext_deploy.errors import ArtifactError
from tests.bundles.graphs import FP32, INT8
from tests.bundles.test_verify import run_alone, seal


def test_verify_bundle_finds_what_the_program_in_the_bundle_finds(made: Path) -> None:
    alone = json.loads(run_alone(made, "--json").stdout)["checks"]
    result = json.loads(verify_bundle(made).to_json())
    assert result["passed"]
    assert [(c["what"], c["kind"], c["status"]) for c in result["checks"]] == [
        (c["what"], c["kind"], c["status"]) for c in alone
    ]


@pytest.mark.parametrize("change", ["none", "altered", "answers"])
def test_verify_bundle_of_an_archive_is_that_of_its_folder(copied: Path, tmp_path: Path, change: str) -> None:
    if change != "none":
        (copied / "golden" / f"{FP32}.0.npy").write_bytes((copied / "golden" / f"{INT8}.0.npy").read_bytes())
    if change == "answers":
        seal(copied)
    write_archive(copied, tmp_path / "bundle.zip")
    archived = verify_bundle(tmp_path / "bundle.zip")
    assert archived == verify_bundle(copied)
    assert archived.passed == (change == "none")


def test_verify_bundle_executes_nothing_of_the_bundle(copied: Path) -> None:
    for name in ("verify.py", "answers.py", "tensorrt_device.py"):
        (copied / name).write_text("raise SystemExit('executed')\n")
    seal(copied)
    assert verify_bundle(copied).passed


def test_verify_bundle_fails_where_what_is_required_was_not_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = verify_bundle(made, require=["onnx", "engine"])
    assert (result.passed, result.unmet) == (False, ("engine",))
    assert verify_bundle(made, require=["onnx"]).passed


def test_verify_bundle_finds_engines_elsewhere(made: Path, tmp_path: Path) -> None:
    (tmp_path / f"{INT8}.plan").write_bytes(b"x")
    found = {check.what: check.detail for check in verify_bundle(made, built=tmp_path).checks}
    assert "not built yet" not in found[f"{tmp_path.name}/{INT8}.plan"]
    assert "not built yet" in found[f"built/{FP32}.plan"]


def with_entry(name: str, mode: int = 0o100644) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bundle/bundle.json", "{}")
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, "../../elsewhere")

    return write


def with_names(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "{}")

    return write


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: path.write_bytes(b""), "is empty; was it copied completely"),
        (lambda path: path.write_bytes(b"a letter"), "cannot be unpacked"),
        (with_names(), "holds 0 bundles"),
        (with_names("notes.txt"), "holds 0 bundles"),
        (with_names("a/bundle.json", "b/bundle.json"), "holds 2 bundles"),
        (with_names("a/b/bundle.json"), "holds 0 bundles"),
        (with_entry("bundle/../../elsewhere"), "which no bundle has; it is not unpacked"),
        (with_entry("/etc/elsewhere"), "which no bundle has"),
        (with_entry("..\\elsewhere"), "which no bundle has"),
        (with_entry("C:/elsewhere"), "which no bundle has"),
        (with_entry("bundle/link", stat.S_IFLNK | 0o777), "which no bundle has"),
        (with_names("bundle/bundle.json"), r"bundle\.json cannot be read"),
    ],
)
def test_an_archive_that_is_no_bundle_is_one_line(tmp_path: Path, write: Callable[[Path], object], text: str) -> None:
    path = tmp_path / "archive.zip"
    write(path)
    with pytest.raises(ArtifactError, match=text) as caught:
        verify_bundle(path)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive.zip"]


def test_an_archive_that_was_cut_or_changed_is_one_line(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    write_archive(made, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        verify_bundle(path)
    middle = content.index(b"README.md") + 600
    path.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        verify_bundle(path)


def test_what_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not exist; expected the folder of a bundle, or a \.zip of it"):
        verify_bundle(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"is not a bundle: it has no bundle\.json"):
        verify_bundle(tmp_path)
