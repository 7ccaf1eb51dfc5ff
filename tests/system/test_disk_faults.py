"""A disk that takes no more: one line, nothing half written, and afterwards the same bytes; files are as the umask says."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest

import convnext_deploy
from convnext_deploy.errors import DeployError, OutputError
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.system.files import copy_file, replace_folder, whole_file, write_text
from tests.system.faulty_disk import SIZE, WRITERS, largest_file, umask

PACKAGE = Path(convnext_deploy.__file__).parent


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_says_what_it_needs_leaves_nothing_and_writes_the_same_bytes_later(
    name: str, tmp_path: Path
) -> None:
    file, write = WRITERS[name]
    write(tmp_path / "whole" / file)
    path = tmp_path / "full" / file
    for limit in (0, 1, 4096, SIZE - 1):
        with largest_file(limit), pytest.raises(OutputError) as caught:
            write(path)
        text = str(caught.value)
        assert text.startswith(
            ("the index of the shards cannot be written to ", "")[name != "index"] + str(path.parent)
        )
        assert "(File too large); raise the limit on the size of files by ulimit -f, " in text
        assert re.search(
            r"\(it needs (more|(more than )?[\d,]+ bytes)\), and give the same command again, or choose", text
        )
        assert "\n" not in text
        assert {name for name, content in files_in(path.parent).items() if content} <= {"SHA256SUMS"}
    write(path)
    assert files_in(path.parent)[file] == files_in(tmp_path / "whole")[file]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "events"])
def test_what_was_there_before_stays_when_there_is_no_room_for_the_new(name: str, tmp_path: Path) -> None:
    file, write = WRITERS[name]
    path = tmp_path / "out" / file
    path.parent.mkdir()
    path.write_bytes(b"old")
    with largest_file(SIZE // 2), pytest.raises(OutputError):
        write(path)
    assert files_in(path.parent)[file] == b"old"


def test_full_disk_is_told_with_what_is_free(tmp_path: Path) -> None:
    # `/dev/full` answers every write as a full disk does
    (tmp_path / ".report.md.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / "report.md", "12345678")
    assert re.fullmatch(
        re.escape(str(tmp_path / "report.md"))
        + r" cannot be written \(No space left on device\); make room \(it needs 8 bytes, and "
        r"[\d,]+ are free\), and give the same command again, or choose another folder with --out\.",
        str(caught.value),
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room (it needs 9,000 bytes, and "),
        (
            errno.EDQUOT,
            "raise the quota or remove files of yours (it needs 9,000 bytes), and give the same command again",
        ),
        (errno.EROFS, "mount it for writing, for it is read-only, or choose another folder"),
        (errno.EACCES, "give yourself the right to write there, or choose another folder"),
        (errno.EIO, "see what dmesg says, for the disk itself fails, or choose another folder"),
        (errno.ENAMETOOLONG, "choose another folder with --out."),
    ],
)
@pytest.mark.parametrize("wrap", ["itself", "in an error of a library", "in the text of one"])
def test_each_fault_has_its_advice_however_a_library_wraps_it(
    number: int, advice: str, wrap: str, tmp_path: Path
) -> None:
    def fail() -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            if wrap == "itself":
                raise
            if wrap == "in the text of one":
                raise ValueError(f"I/O error: {os.strerror(number)} (os error {number})") from None
            raise RuntimeError("unexpected pos 64 vs 0") from error

    with pytest.raises(OutputError) as caught, whole_file(tmp_path / "a", needed=9000):
        fail()
    assert str(caught.value).startswith(f"{tmp_path / 'a'} cannot be written ({os.strerror(number)}); {advice}")
    assert list(tmp_path.iterdir()) == []


def test_disk_that_has_bytes_but_no_entries_left_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Status:
        f_files, f_favail, f_bavail, f_frsize = 10, 0, 10, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Status())
    text = r"make room \(the file system takes no more files, see df -i\), and give"
    with pytest.raises(OutputError, match=text), whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_other_errors_and_interruptions_pass_and_leave_nothing(tmp_path: Path) -> None:
    def fail(partial: Path, error: BaseException) -> None:
        partial.write_bytes(b"half")
        raise error

    for error in (KeyboardInterrupt(), ValueError("wrong"), MemoryError(), DeployError("said already")):
        with pytest.raises(type(error)) as caught, whole_file(tmp_path / "a") as partial:
            fail(partial, error)
        assert caught.value is error
        assert list(tmp_path.iterdir()) == []


def test_file_in_an_unfinished_folder_is_told_by_its_final_name(tmp_path: Path) -> None:
    where = tmp_path / "stages" / "ptq"
    with pytest.raises(OutputError) as caught, replace_folder(where) as folder, largest_file(10):
        WRITERS["weights"][1](folder / "model.safetensors")
    assert str(caught.value).startswith(f"{where / 'model.safetensors'} cannot be written (")
    assert list((tmp_path / "stages").iterdir()) == []


def test_folder_that_cannot_be_made_or_replaced_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    text = r"taken/a cannot be written \(Not a directory\); choose another folder"
    with pytest.raises(OutputError, match=text), replace_folder(tmp_path / "taken" / "a"):
        pass
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("kept")
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == ".a.partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    text = r"/a cannot be written \(Input/output error\); see what dmesg says"
    with pytest.raises(OutputError, match=text), replace_folder(tmp_path / "a") as folder:
        (folder / "new").write_text("lost")
    assert files_in(tmp_path) == {"taken": b"a file", "a/old": b"kept"}


def test_copy_tells_a_source_that_cannot_be_read_from_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    # what may be opened and not be read: the memory of a process at address 0
    with pytest.raises(DeployError, match=r"^/proc/self/mem cannot be read \(Input/output error\)\.$"):
        copy_file(Path("/proc/self/mem"), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_every_file_and_folder_is_readable_as_the_umask_says(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        for name, (file, write) in WRITERS.items():
            write(tmp_path / name / file)
            write(tmp_path / name / file)  # one that is replaced, too
        with replace_folder(tmp_path / "stage") as folder:
            WRITERS["weights"][1](folder / "model.safetensors")
    for path in tmp_path.rglob("*"):
        if path.parts[len(tmp_path.parts)] not in ("source", "folder"):
            expected = (0o777 if path.is_dir() else 0o666) & ~mask
            assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(expected), path


def test_every_file_of_a_run_is_readable_as_the_umask_says(small_run: RunResult) -> None:
    out = Path(small_run.report.rows[0].identity.artifact).parents[1]
    mask = os.umask(0o022)
    os.umask(mask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask}


_WRITES = re.compile(
    r"\.(write_text|write_bytes|hardlink_to|tofile)\(|\b(np|torch|onnx|torch_tensorrt)\.savez?\(|\.open\(\"[rb]*[wax+]|"
    r"\b(NamedTemporaryFile|mkstemp|copyfile|save_file|open_memmap)\("
)
_WRITERS = {
    # file → why it may write by itself
    "system/files.py": "the mechanism",
    "system/posix.py": "a lock, which is empty",
    "bundles/device": "runs alone, without the package",
    "data/files.py": "within whole_file",
    "data/remote_blocks.py": "within whole_file",
    "data/pixel_cache.py": "within whole_file",
    "evaluation/measure.py": "within whole_file",
    "data/shard_parts.py": "within whole_file",
    "training/checkpoint_store.py": "within whole_file",
    "models/checkpoints/safe_reader.py": "within whole_file",
    "exporters/tensorrt/timing_cache.py": "within whole_file",
    "exporters/tensorrt/torch_tensorrt.py": "a program's bytes depend on its file's name",
    "bundles/archive.py": "within whole_file, and what is unpacked into TMPDIR",
    "bundles/triton.py": "a second name of a file, or whole_file",
    "api/convert.py": "within whole_file",
    "reports/thumbnails.py": "a picture in memory",
}


def test_files_are_written_by_system_files_alone() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            is_text = line.lstrip().startswith(('"', 'f"'))
            found = not is_text and _WRITES.search(line) and not any(name.startswith(known) for known in _WRITERS)
            assert not found, f"{name}:{number}: {line.strip()}; use convnext_deploy.system.files"
