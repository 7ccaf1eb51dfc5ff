"""A locked file is refused to everybody else: other processes, and other threads of the one that locked it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from convnext_deploy.system.posix import locked

_TRY = """
import fcntl, sys
with open(sys.argv[1], "ab") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("granted")
    except OSError:
        print("refused")
"""


def ask_elsewhere(path: Path) -> str:
    """Return what another process is told that would lock a file."""
    return subprocess.run([sys.executable, "-c", _TRY, path], capture_output=True, text=True, check=True).stdout.strip()


def test_a_second_lock_in_this_process_is_refused_and_takes_nothing_from_the_first(tmp_path: Path) -> None:
    path, other = tmp_path / "lock", tmp_path / "other"
    with locked(path), locked(other):
        for name in (path, tmp_path / "folder" / ".." / "lock", tmp_path / "link"):
            (tmp_path / "folder").mkdir(exist_ok=True)
            if name.name == "link":
                name.symlink_to(path)
            with pytest.raises(BlockingIOError), locked(name):
                pass
        assert ask_elsewhere(path) == "refused"
    assert ask_elsewhere(path) == "granted"
    with locked(path):
        pass


def test_of_threads_one_alone_has_the_lock(tmp_path: Path) -> None:
    path, count = tmp_path / "lock", 8
    begin, tried = threading.Barrier(count), threading.Barrier(count)
    told: list[str] = []

    def work() -> None:
        begin.wait(30)
        try:
            with locked(path):
                told.append("granted")
                tried.wait(30)
        except BlockingIOError:
            told.append("refused")
            tried.wait(30)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["granted"] + ["refused"] * 7


def test_a_fork_holds_nothing_of_its_parent_and_is_refused_as_any_other_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    reading, writing = os.pipe()
    with locked(path):
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, b"refused")
                with locked(path):
                    os.write(writing, b", granted")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert ask_elsewhere(path) == "refused"  # the end of the fork has dropped nothing
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        assert stream.read() == b"refused"
