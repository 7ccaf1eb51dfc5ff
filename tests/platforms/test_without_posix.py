"""Each call of POSIX has something that stands for it, and with all of them gone a run gives the same artifacts."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext_deploy import documents
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.bundles.device import bundle_index
from convnext_deploy.data import contents, workers
from convnext_deploy.documents import RefusedFileError, open_file
from convnext_deploy.errors import OutputError
from convnext_deploy.pipeline.run_folder import claim
from convnext_deploy.reports.record import read_report
from convnext_deploy.system import load, memory, posix
from convnext_deploy.system.disk_faults import Target, cannot_write
from tests.platforms import without_posix

ROOT = Path(__file__).parents[2]
Patch = pytest.MonkeyPatch
RECIPE = """
name = "elsewhere"
data = "digits"
seed = 1
[[stages]]
kind = "train"
name = "net"
[stages.model]
name = "test_convnext"
image_size = 32
[stages.fit]
epochs = 1
batch_size = 64
base_learning_rate = 0.128
warmup_epochs = 0
[[stages]]
kind = "ptq"
name = "int8"
source = "net"
target = "onnxruntime"
calibration_images = 32
[[stages]]
kind = "onnx"
name = "graph"
source = "int8"
"""
PROGRAM = """
import importlib, os, pkgutil, sys
import convnext_deploy
assert not hasattr(os, "pread") and sys.modules["fcntl"] is None and not os.path.exists("/proc/cpuinfo")
for found in pkgutil.walk_packages(convnext_deploy.__path__, "convnext_deploy."):
    if not found.name.endswith(("__main__", "_worker")):
        importlib.import_module(found.name)
from convnext_deploy.__main__ import main
main()
"""


@pytest.fixture
def bare(monkeypatch: Patch) -> Patch:
    """This process without what `os` and `signal` have on POSIX; not without signals, which the tests themselves need."""
    for name in without_posix.MISSING:
        monkeypatch.delattr(os, name, raising=False)
    for name in without_posix.MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # which pytest removes its folders with, and needs POSIX
    return monkeypatch


def test_files_are_read_and_written_at_places(bare: Patch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("r+b") as file:
        assert posix.write_at(file.fileno(), memoryview(b"abc"), 4) == 3
        assert posix.read_at(file.fileno(), 4, 3) == b"3abc"
        assert posix.read_at(file.fileno(), 4, 9) == b"9"
        assert posix.read_at(file.fileno(), 4, 20) == b""
    assert path.read_bytes() == b"0123abc789"


@pytest.mark.parametrize("size", [0, 5, 4096, (1 << 20) + 7])
def test_room_is_reserved_and_what_is_there_stays(size: int, bare: Patch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what is there")
    with path.open("r+b") as file:
        posix.reserve(file.fileno(), size)
    content = path.read_bytes()
    assert content.rstrip(b"\0") == b"what is there"
    assert len(content) == max(size, 13)
    assert path.stat().st_blocks * 512 >= size  # no holes


def test_reserving_fails_where_there_is_no_room(monkeypatch: Patch, tmp_path: Path) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.delattr(os, "posix_fallocate")
    with (tmp_path / "file").open("w+b") as file:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            with pytest.raises(OSError, match="File too large"):
                posix.reserve(file.fileno(), 1001)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)


def test_large_files_have_the_same_digest(bare: Patch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(3 * contents.BLOCK))
    bare.setattr(contents, "LARGEST_WHOLE", contents.BLOCK)
    without = contents.digest_file(path)
    bare.undo()
    with Patch.context() as patch:
        patch.setattr(contents, "LARGEST_WHOLE", contents.BLOCK)
        assert contents.digest_file(path) == without


@pytest.mark.parametrize("opened", [open_file, bundle_index.open_file])
def test_files_are_opened_and_folders_are_not(opened: Any, monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\r\nb")
    monkeypatch.delattr(os, "O_NONBLOCK")
    monkeypatch.delattr(os, "O_CLOEXEC")
    with opened(tmp_path / "file") as stream:
        assert stream.read() == b"a\r\nb"
    with pytest.raises(OSError, match=r"regular file") as caught:
        opened(tmp_path)
    assert isinstance(caught.value, RefusedFileError) or opened is bundle_index.open_file


def test_windows_would_not_change_the_ends_of_lines() -> None:
    program = (
        "import os; os.O_BINARY = 1 << 15; from convnext_deploy import documents; print(documents._READ & os.O_BINARY)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout == f"{1 << 15}\n"
    assert documents._READ & 3 == os.O_RDONLY


def test_folder_of_a_run_is_locked_by_windows_call(bare: Patch, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    run, other = tmp_path / "run", tmp_path / "other"
    windows: Any = types.ModuleType("msvcrt")
    windows.LK_NBLCK = 2

    def locking(descriptor: int, mode: int, size: int) -> None:
        calls.append((mode, size))
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")

    windows.locking = locking
    bare.setitem(sys.modules, "msvcrt", windows)
    with claim(run):
        for folder in (other, run):  # one that another process has locked, and one that this process has
            with pytest.raises(OutputError, match=r"^another process is working in "), claim(folder):
                pass
    assert calls == [(2, 1), (2, 1)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_told_in_one_line(number: int, bare: Patch, tmp_path: Path) -> None:
    bare.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=999))
    text = str(cannot_write(Target(tmp_path / "file", 1000), OSError(number, os.strerror(number))))
    assert "it needs 1,000 bytes" in text
    assert ("and 999 are free" in text) == (number == errno.ENOSPC)
    assert ("by the file system" in text) == (number == errno.EFBIG)
    assert "\n" not in text


def test_process_is_ended_alone_where_there_are_no_groups(monkeypatch: Patch) -> None:
    monkeypatch.delattr(os, "killpg")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    posix.end_group(process)
    assert process.wait(10) == -signal.SIGKILL
    assert process.stdin is not None
    process.stdin.close()


def test_signals_that_are_missing_are_left_out(monkeypatch: Patch) -> None:
    monkeypatch.delattr(signal, "SIGBUS")
    assert posix.signals_named(SIGBUS="memory", SIGABRT="gave up") == {int(signal.SIGABRT): "gave up"}


def test_images_are_loaded_by_this_process_where_there_is_no_fork(bare: Patch) -> None:
    assert workers._affordable(4, 1000) == (0, 0)


def test_load_and_memory_are_not_known_without_proc(bare: Patch, tmp_path: Path) -> None:
    bare.setattr(load, "_STAT", tmp_path / "missing")
    bare.setattr(memory, "_read", lambda path: "")
    with load.watch_load() as found:
        pass
    assert (found.average, found.others, found.describe()) == (0.0, None, None)
    assert memory.memory_sizes() == (None, None)


@pytest.mark.heavy
def test_a_recipe_is_run_without_posix(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    shutil.copy(str(without_posix.__file__), hooks / "sitecustomize.py")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    more = {"PYTHONPATH": os.pathsep.join(map(str, (hooks, ROOT))), "OMP_NUM_THREADS": "1", "LOGNAME": "user"}
    command = [sys.executable, "-c", PROGRAM, "run", "recipe.toml", "--out", "run", "--workers", "2", "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **more}, timeout=300, check=False
    )
    assert done.returncode in (0, 3), done.stderr  # 3: so small a graph may be slower in INT8
    graph = read_artifact(tmp_path / "run" / "stages" / "graph")
    report = read_report(tmp_path / "run")
    assert graph.files
    assert [row.name for row in report.rows] == ["net", "int8", "graph", "net-float-onnxruntime"]
    assert report.rows[2].speed is not None, done.stdout  # it was timed in processes of its own
