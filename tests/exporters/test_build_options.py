"""How an engine is built: batch profile, types, flags, timing cache and progress, with the stand-in of every release."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.tensorrt import build_options as tensorrt_options
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions
from tests.exporters.recorded_progress import RecordingProgress
from tests.exporters.tensorrt_build import OPTIONS, STANDARD, Build
from tests.exporters.tensorrt_stand_in import RTX_RELEASE, Script, read_api


def test_build_engine_keeps_each_warning_once_and_in_one_line(build: Build, script: Script) -> None:
    script.warnings = ("slow\n  here", "slow here", "and there")
    assert build().warnings == ("slow here", "and there")


@STANDARD
@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (dataclasses.replace(OPTIONS, version_compatible=True), "VERSION_COMPATIBLE"),
        (dataclasses.replace(OPTIONS, stripped=True), "STRIP_PLAN"),
    ],
    ids=["version compatible", "stripped"],
)
def test_build_engine_sets_the_flag_of_the_release(
    build: Build, script: Script, release: str, options: BuildOptions, flag: str
) -> None:
    build(options)
    assert [int(found) for found in script.builder_flags] == [read_api(release)["classes"]["BuilderFlag"][flag]]


def test_build_engine_needs_no_profile_when_the_batch_is_frozen(build: Build, script: Script) -> None:
    script.input_shape = (4, 3, 32, 32)
    assert build().batch == Profile(4, 4, 4)
    assert script.profiles == []


def test_build_engine_fails_when_the_frozen_batch_is_not_what_was_asked_for(build: Build, script: Script) -> None:
    script.input_shape = (16, 3, 32, 32)
    with pytest.raises(
        ExportError, match=r"^the batch of model\.onnx is frozen at 16, [^\n]*1 to 8[^\n]*maximum of at least 16"
    ):
        build()


@pytest.mark.parametrize(
    ("shape", "said"), [((-1, 3, -1, 32), r"\(\?, 3, \?, 32\)"), ((8,), r"\(8,\)"), ((-1, 3, 0, 0), r"\(\?, 3, 0, 0\)")]
)
def test_build_engine_fails_when_more_than_the_batch_is_open(
    build: Build, script: Script, shape: tuple[int, ...], said: str
) -> None:
    script.input_shape = shape
    with pytest.raises(
        ExportError, match=rf"^[^\n]*'images' of model\.onnx has shape {said}; expected fixed sizes[^\n]*$"
    ):
        build()


@pytest.mark.parametrize("kind", ["FLOAT", "HALF", "UINT8"])
def test_build_engine_takes_images_of_three_types(build: Build, script: Script, kind: str) -> None:
    script.input_type = kind
    assert build().plan == script.plan


def test_build_engine_fails_when_images_are_of_another_type(build: Build, script: Script) -> None:
    script.input_type = "INT32"
    with pytest.raises(ExportError, match=r"^[^\n]*INT32; expected FLOAT or HALF or UINT8\.$"):
        build()


def test_build_engine_fails_when_there_are_two_inputs(build: Build, script: Script) -> None:
    script.inputs = 2
    with pytest.raises(ExportError, match=r"model\.onnx has 2 inputs; expected one"):
        build()


@pytest.mark.parametrize("profile", [Profile(0, 1, 1), Profile(1, 9, 8), Profile(3, 2, 8)])
def test_build_engine_refuses_batch_sizes_in_the_wrong_order(build: Build, script: Script, profile: Profile) -> None:
    with pytest.raises(ExportError, match="expected 1 <= minimum <= optimal <= maximum"):
        build(BuildOptions(profile))
    assert script.built == []


PHASES = (("Building engine", None, 4), ("Optimizing", "Building engine", 2))


def test_build_engine_reports_the_phases_as_parts_of_a_hundred(build: Build, script: Script) -> None:
    script.phases, progress = PHASES, RecordingProgress()
    build(progress=progress)
    ((task),) = progress.tasks
    assert (task.total, task.done) == (100, 100)
    # half of the first of four steps, all of it, the first step itself, and so on; the end is when the plan is there
    assert task.advances == [
        (12, "optimizing"),
        (13, "optimizing"),
        (25, "building engine"),
        (25, "building engine"),
        (24, "building engine"),
        (1, ""),
    ]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_build_engine_is_cancelled_by_what_is_raised_in_its_progress(
    build: Build, script: Script, raised: type[BaseException]
) -> None:
    script.phases = PHASES
    with pytest.raises(raised):
        build(progress=RecordingProgress(raised=raised()))


@STANDARD
def test_build_engine_writes_the_timing_cache_and_reads_it(build: Build, script: Script, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, timing_cache=tmp_path / "timing.cache")
    build(options)
    assert (tmp_path / "timing.cache").read_bytes() == b"cache\nthis build"
    build(options)
    assert script.caches == [b"cache", b"cache\nthis build"]
    assert [path.name for path in tmp_path.iterdir()] == ["timing.cache"]


@STANDARD
def test_build_engine_keeps_what_another_build_wrote_into_the_timing_cache(
    build: Build, script: Script, tmp_path: Path
) -> None:
    path, script.phases = tmp_path / "timing.cache", PHASES
    progress = RecordingProgress(meanwhile=lambda: path.exists() or path.write_bytes(b"cache\nanother build"))
    build(dataclasses.replace(OPTIONS, timing_cache=path), progress)
    assert path.read_bytes() == b"cache\nanother build\nthis build"


@STANDARD
@pytest.mark.parametrize("content", [b"PK\x03\x04 no cache", b"cache\nof another GPU"])
def test_build_engine_leaves_a_file_alone_that_is_no_timing_cache_for_it(
    build: Build, script: Script, tmp_path: Path, content: bytes
) -> None:
    path, script.cache_of_others = tmp_path / "timing.cache", b"of another GPU"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"^[^\n]*timing\.cache is not a timing cache, or one of another[^\n]*$"):
        build(dataclasses.replace(OPTIONS, timing_cache=path))
    assert path.read_bytes() == content


@STANDARD
@pytest.mark.parametrize(("name", "reason"), [("", "is a folder"), ("none/timing.cache", "there is no folder")])
def test_build_engine_refuses_a_timing_cache_that_cannot_be_written(
    build: Build, script: Script, tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(ExportError, match=rf"^the timing cache [^\n]*{reason}"):
        build(dataclasses.replace(OPTIONS, timing_cache=tmp_path / name))
    assert script.built == []


@STANDARD
def test_build_engine_writes_no_timing_cache_when_the_build_fails(build: Build, script: Script, tmp_path: Path) -> None:
    script.plan = None
    with pytest.raises(ExportError):
        build(dataclasses.replace(OPTIONS, timing_cache=tmp_path / "timing.cache"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("release", [RTX_RELEASE], indirect=True)
@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ({"timing_cache": Path("timing.cache")}, "Leave timing_cache out"),
        ({"version_compatible": True}, "Leave version_compatible out"),
        ({"stripped": True}, "build on a machine with a GPU"),
    ],
    ids=["timing cache", "version compatible", "stripped"],
)
def test_build_engine_refuses_for_rtx_what_only_standard_tensorrt_can(
    build: Build, script: Script, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any], cure: str
) -> None:
    monkeypatch.setattr(tensorrt_options, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(ExportError, match=rf"^TensorRT-RTX [^\n]*{cure}|^the weights of a plan [^\n]*{cure}"):
        build(dataclasses.replace(OPTIONS, **option))
    assert script.built == []


def test_build_engine_adds_a_cure_when_memory_is_short(build: Build, script: Script) -> None:
    script.plan, script.errors = None, ("Cuda Runtime (out of memory)",)
    with pytest.raises(ExportError, match=r"\(out of memory\) Lower workspace_mib"):
        build()
