"""An artifact is what was written: one altered byte in it, in its manifest or in what lies beside it is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file, save_file

from convnext_deploy.api.inspect import inspect
from convnext_deploy.artifacts import hashes
from convnext_deploy.artifacts.artifact import MANIFEST, Artifact, read_artifact
from convnext_deploy.artifacts.hashes import SUMS, check_recorded, hash_file
from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.system.sealed_json import SEAL, seal, unseal


def copy_of(artifact: Artifact, folder: Path) -> Path:
    return Path(shutil.copytree(artifact.path, folder / artifact.path.name))


def swap_rows(path: Path) -> None:
    """Let a head answer with one class where it meant another: the same names, shapes and bytes in all."""
    state = load_file(path)
    head = state["head.weight"].clone()
    head[[0, 1]] = head[[1, 0]]
    with path.open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    save_file({**state, "head.weight": head}, path, metadata=metadata)


@pytest.mark.parametrize("bare", [False, True])
def test_weights_whose_head_has_two_rows_swapped_are_not_opened(
    small_artifacts: dict[str, Artifact], tmp_path: Path, bare: bool
) -> None:
    folder = copy_of(small_artifacts["student"], tmp_path)
    file, size = folder / "model.safetensors", (folder / "model.safetensors").stat().st_size
    assert open_input(file if bare else folder).sha256 == small_artifacts["student"].sha256
    swap_rows(file)
    assert file.stat().st_size == size
    with pytest.raises(
        ArtifactError, match=r"model\.safetensors is not the file that its manifest describes: it was altered"
    ):
        open_input(file if bare else folder)
    (folder / MANIFEST).unlink()
    assert open_input(file).sha256 != small_artifacts["student"].sha256  # nothing is recorded of it any more


@pytest.mark.parametrize("way", [open_input, inspect])
def test_altered_graph_is_neither_opened_nor_inspected(
    small_artifacts: dict[str, Artifact], tmp_path: Path, way: object
) -> None:
    folder = copy_of(small_artifacts["onnx-int8"], tmp_path)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    for path in (folder, folder / "model.onnx"):
        with pytest.raises(ArtifactError, match=r"model\.onnx is not the file that its manifest describes"):
            way(path)  # type: ignore[operator]


def test_weights_that_a_graph_keeps_in_a_file_of_their_own_count(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    proto = onnx.load(small_artifacts["onnx-fp32"].main_file)
    del proto.metadata_props[:]
    path, parts = tmp_path / "model.onnx", tmp_path / "weights" / "model.data"
    parts.parent.mkdir()
    onnx.save(proto, path, save_as_external_data=True, location="weights/model.data", size_threshold=64)
    first = open_input(path)
    assert [file.name for file in first.files] == ["model.onnx", "weights/model.data"]
    assert first.main_file == path
    assert first.size_bytes == path.stat().st_size + parts.stat().st_size
    content = bytearray(parts.read_bytes())
    content[100] ^= 1
    parts.write_bytes(content)
    assert open_input(path).sha256 != first.sha256
    (parts.parent / SUMS).write_text(f"{first.files[1].sha256}  model.data\n")
    with pytest.raises(ArtifactError, match=r"model\.data is not the file that .*SHA256SUMS describes"):
        open_input(path)


def test_manifest_that_says_something_else_is_not_read(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    folder = copy_of(small_artifacts["student"], tmp_path)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"cat"', '"bat"'))
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be relied on: .* altered after it was written"):
        read_artifact(folder)
    (folder / MANIFEST).write_text(text.replace("\n ", "\n  "))  # the same in other words
    assert read_artifact(folder).class_names == ("cat", "dog", "owl")
    earlier = {key: value for key, value in json.loads(text).items() if key != SEAL}
    (folder / MANIFEST).write_text(json.dumps(earlier))  # as version 0.2.0 wrote it
    assert read_artifact(folder).class_names == ("cat", "dog", "owl")


def test_unseal_finds_every_altered_byte_that_says_something_else() -> None:
    record = {"a": [1, 2.5, None, True], "text": "é", "inner": {"b": -1e-30}}
    text = json.dumps(seal(record)).encode()
    assert unseal(json.loads(text)) == record
    for place in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            try:
                found = unseal(json.loads(changed))
            except (ValueError, AttributeError):
                continue
            assert found == record or found.keys() - record.keys(), changed  # unknown keys are refused by all readers


def test_checksums_of_a_folder_above_count(tmp_path: Path) -> None:
    file = tmp_path / "bundle" / "onnx" / "a.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"graph")
    digest = hashlib.sha256(b"graph").hexdigest()
    (tmp_path / "bundle" / SUMS).write_text(f"{'0' * 64}  onnx/b.onnx\n{digest} *onnx/a.onnx\n")
    check_recorded(file, hash_file(file))
    file.write_bytes(b"graqh")
    with pytest.raises(ArtifactError, match=rf"{SUMS} describes: .* expected {digest[:12]}…"):
        check_recorded(file, hash_file(file))


def test_store_that_names_files_by_their_hash_is_believed(tmp_path: Path) -> None:
    blob = tmp_path / hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "model.safetensors").symlink_to(blob)
    blob.write_bytes(b"weights")
    check_recorded(tmp_path / "model.safetensors", hash_file(tmp_path / "model.safetensors"))
    blob.write_bytes(b"weighty")
    with pytest.raises(ArtifactError, match="its name in the cache describes"):
        check_recorded(tmp_path / "model.safetensors", hash_file(tmp_path / "model.safetensors"))


def test_large_file_is_hashed_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large"
    monkeypatch.setattr(hashes, "LARGE", 4)
    file.write_bytes(b"abcde")
    first, before = hash_file(file), file.stat()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", lambda: pytest.fail("it was hashed again"))
        assert hash_file(file) == first
    file.write_bytes(b"abcdx")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time of before
    assert hash_file(file) == hashlib.sha256(b"abcdx").hexdigest()
    assert hash_file(file, end=1) == hashlib.sha256(b"abcd").hexdigest()
