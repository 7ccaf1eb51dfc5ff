"""A full disk under what others write: downloads, what is unpacked into TMPDIR, engines built on a device."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.bundles.archive import unpacked, write_archive
from convnext_deploy.bundles.device import build_engine, tensorrt_device
from convnext_deploy.errors import OutputError
from convnext_deploy.models.checkpoints.hub import fetch_weights
from tests.system.faulty_disk import largest_file


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_unpacking_a_bundle_tells_that_the_folder_of_temporary_files_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bundle.json").write_bytes(np.random.default_rng(0).bytes(20_000))
    write_archive(tmp_path / "b", tmp_path / "b.zip")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    text = (
        rf"^what {re.escape(str(tmp_path / 'b.zip'))} holds cannot be written to {re.escape(str(tmp_path / 'tmp'))}/[\w-]+ "
        r"\(File too large\); raise the limit on the size of files by ulimit -f, 9,000 bytes \(it needs 20,000 bytes\), and "
        r"give the same command again, or choose another folder with TMPDIR\.$"
    )
    with largest_file(9000), pytest.raises(OutputError, match=text), unpacked(tmp_path / "b.zip"):
        pass
    assert not list((tmp_path / "tmp").iterdir())
    with unpacked(tmp_path / "b.zip") as folder:
        assert (folder / "bundle.json").stat().st_size == 20_000


def test_download_to_a_full_disk_is_not_called_a_missing_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", full_disk)
    reason = r"\(No space left on device\); make room"
    text = rf"^'ConvNeXt_Tiny_Weights.IMAGENET1K_V1' cannot be written to [^\n]+\.pth {reason} .*with TORCH_HOME\.$"
    with pytest.raises(OutputError, match=text):
        fetch_weights("ConvNeXt_Tiny_Weights.IMAGENET1K_V1")
    monkeypatch.setattr("huggingface_hub.snapshot_download", full_disk)
    text = rf"^'timm/convnext_tiny' cannot be written to [^\n]+ {reason} .*with HF_HOME\.$"
    with pytest.raises(OutputError, match=text):
        fetch_weights("timm/convnext_tiny")


def test_engine_built_on_a_device_with_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(100), pytest.raises(build_engine.BuildError) as caught:
        build_engine.write(tmp_path / "model.plan", bytes(500))
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}/model.plan cannot be written \(File too large\): it needs 500 bytes, and \d+ are free; "
        r"make room, or choose another folder with --out\.",
        str(caught.value),
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "triton" / "tensorrt" / "model").mkdir(parents=True)
    (tmp_path / "model.plan").write_bytes(bytes(500))
    with (
        largest_file(100),
        pytest.raises(OSError, match=r"/1/model.plan cannot be written \(File too large\); make room, and copy"),
    ):
        tensorrt_device.place_for_triton(tmp_path, tmp_path / "model.plan", "model")
    assert not [path for path in (tmp_path / "triton").rglob("*") if path.is_file()]
