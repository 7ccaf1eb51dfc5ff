"""No file or folder takes the place of something that this tool did not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convnext_deploy.api.bundle import bundle
from convnext_deploy.bundles.device import verify
from convnext_deploy.bundles.device.build_engine import BuildError, write
from convnext_deploy.errors import ExportError, OutputError
from convnext_deploy.exporters.tensorrt.timing_cache import check_cache_file
from convnext_deploy.system.files import create_output_folder, replace_folder, write_text


def test_write_text_takes_no_device_pipe_or_folder_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(OutputError, match=f"{name} is (no regular file|a folder).* and is not overwritten"):
            write_text(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_write_text_writes_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there/old.txt", "there/new.txt"):
        link = tmp_path / Path(name).name
        link.symlink_to(tmp_path / name)
        write_text(link, "text")
        assert link.is_symlink()
        assert (tmp_path / name).read_text() == "text"


def test_replace_folder_leaves_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "mine").write_text("mine")
    for _ in range(2):
        (tmp_path / ".model.old").symlink_to(tmp_path / "disk")
        with replace_folder(tmp_path / "model") as folder:
            (folder / "file").write_text("new")
        assert (tmp_path / "model" / "file").read_text() == "new"
        assert (tmp_path / "disk" / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "model"]


def test_create_output_folder_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / ".write-test").write_text("mine")
    create_output_folder(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(".write-test", "mine")]


def test_bundle_keeps_a_folder_with_files_of_others(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / verify.RECORD).write_text("{}")
    (out / verify.SUMS).write_text(f"{'0' * 64}  {verify.RECORD}\n")
    (out / "notes.md").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'notes.md', which is no part of the bundle"):
        bundle([tmp_path / "model"], out)
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(OutputError, match=r"pipe.zip is no regular file"):
        bundle([tmp_path / "model"], tmp_path / "pipe.zip")


def test_timing_caches_and_engines_take_the_place_of_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="is no regular file but a device, pipe or socket"):
        check_cache_file(tmp_path / "pipe")
    with pytest.raises(BuildError, match="is no regular file and is not overwritten"):
        write(tmp_path / "pipe", b"plan")
