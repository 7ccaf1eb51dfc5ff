"""`build_engine.py` builds with what each release of TensorRT has, and says in one line why it did not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.bundles.device import build_engine, bundle_index, tensorrt_device
from convnext_deploy.bundles.device.tensorrt_device import NoDeviceError
from tests.bundles.gpu import Driver, plug_in
from tests.bundles.graphs import FP32, INT8
from tests.bundles.test_verify import rewrite, run_alone
from tests.exporters.tensorrt_stand_in import RELEASES, Script


class Device:
    """The program on a device with a release of TensorRT: `run` returns its exit code."""

    def __init__(self, bundle: Path, release: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle, self.script, self.monkeypatch = bundle, script, monkeypatch
        self.trt: Any = plug_in(monkeypatch, release, script, Driver())
        create = self.trt.Builder.create_builder_config

        def create_builder_config(builder: Any) -> Any:
            config = create(builder)
            config._state.setdefault("progress_monitor", None)  # the stand-in asks for it, TensorRT does not
            return config

        self.trt.Builder.create_builder_config = create_builder_config

    def run(self, *arguments: str) -> int:
        self.monkeypatch.setattr(sys, "argv", ["build_engine.py", str(self.bundle), *arguments])
        return build_engine.main()


@pytest.fixture
def script() -> Script:
    return Script(plan=b"built here")


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device(copied: Path, release: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(copied, release, script, monkeypatch)


@pytest.fixture
def newest(copied: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(copied, RELEASES[-1], script, monkeypatch)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_release_builds_the_smallest_model(device: Device, release: str, script: Script) -> None:
    assert device.run() == 0
    assert (device.bundle / "built" / f"{INT8}.plan").read_bytes() == b"built here"
    assert files_in(device.bundle / "built") == [f"{INT8}.plan", "timing.cache"]
    assert script.network_flags == [2 if release.startswith("tensorrt-10.") else 1]
    assert script.profiles == [("images", (1, 3, 32, 32), (1, 3, 32, 32), (6, 3, 32, 32))]
    assert script.pools == {"WORKSPACE": 1024 << 20}
    assert script.assigned["IBuilderConfig.builder_optimization_level"] == 3
    assert script.builder_flags == []
    assert "BuilderFlag" not in script.names


def test_the_engine_is_put_where_triton_looks_for_it(newest: Device) -> None:
    assert newest.run() == 0
    folder = newest.bundle / "triton" / "tensorrt" / INT8 / "1"
    assert files_in(folder) == ["model.plan"]
    assert (folder / "model.plan").read_bytes() == b"built here"


def test_settings_are_passed(newest: Device, script: Script, tmp_path: Path) -> None:
    settings = [
        "--batch",
        "2",
        "--max-batch",
        "4",
        "--workspace",
        "64",
        "--optimization-level",
        "5",
        "--precision",
        "int8",
    ]
    assert newest.run(*settings, "--out", str(tmp_path / "here")) == 0
    assert script.profiles == [("images", (1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))]
    assert script.pools == {"WORKSPACE": 64 << 20}
    assert script.assigned["IBuilderConfig.builder_optimization_level"] == 5
    assert files_in(tmp_path / "here") == [f"{INT8}.plan", "timing.cache"]


def test_what_to_do_next_is_said(newest: Device, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    newest.run("--max-batch", "4")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"next: python3 '{newest.bundle}/verify.py' --require engine"
    assert lines[-2] == f"note: write max_batch_size: 4 into {newest.bundle}/triton/tensorrt/{INT8}/config.pbtxt"
    newest.run("--out", str(tmp_path / "here"))
    assert capsys.readouterr().out.endswith(f" --require engine --built '{tmp_path}/here'\n")


def test_a_model_with_a_frozen_batch_needs_no_profile(newest: Device, script: Script) -> None:
    assert newest.run("--model", FP32) == 0
    assert script.profiles == []
    assert files_in(newest.bundle / "built") == [f"{FP32}.plan", "timing.cache"]


def test_all_models_are_built_with_one_timing_cache(newest: Device, script: Script) -> None:
    assert newest.run("--all") == 0
    assert files_in(newest.bundle / "built") == [f"{FP32}.plan", f"{INT8}.plan", "timing.cache"]
    assert script.caches == [b"cache", b"cache\nthis build"]


def test_timings_of_another_device_are_not_used(newest: Device, script: Script) -> None:
    (newest.bundle / "built").mkdir()
    (newest.bundle / "built" / "timing.cache").write_bytes(b"cache\nother")
    script.cache_of_others = b"other"
    assert newest.run() == 0
    assert script.caches == [b"cache\nother", b"cache"]
    assert (newest.bundle / "built" / "timing.cache").read_bytes() == b"cache\nthis build"


def test_an_old_engine_is_replaced_only_by_a_new_one(newest: Device, script: Script) -> None:
    (newest.bundle / "built").mkdir()
    (newest.bundle / "built" / f"{INT8}.plan").write_bytes(b"old")
    script.plan = None
    assert newest.run() == 1
    assert (newest.bundle / "built" / f"{INT8}.plan").read_bytes() == b"old"
    assert files_in(newest.bundle / "built") == [f"{INT8}.plan"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"parses": False, "parser_errors": ("no importer\nfor Foo", "second")},
            "cannot read .*: no importer for Foo; second",
        ),
        ({"inputs": 0}, "finds no network in"),
        ({"profile_index": -1}, "refuses batches of 1 to 6"),
        ({"plan": None}, "could not build .*: no reason given"),
        ({"errors": ("setting 7 is ignored",)}, "could not build .*: setting 7 is ignored"),
    ],
)
def test_what_a_release_only_logs_fails_the_build(
    device: Device, script: Script, changes: dict[str, Any], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in changes.items():
        setattr(script, name, value)
    assert device.run() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: TensorRT 1[01].* {text}", line)
    assert not (device.bundle / "built" / f"{INT8}.plan").exists()


def test_warnings_do_not_fail_the_build(device: Device, script: Script) -> None:
    script.warnings = ("this may be slow",)
    assert device.run() == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model", "other"), f"no model 'other' of this bundle .* those that can: {INT8}, {FP32}"),
        (("--precision", "fp16"), "no model 'fp16' of this bundle"),
        (("--batch", "8", "--max-batch", "4"), "--batch 8 is larger than --max-batch 4"),
        (("--model", FP32, "--batch", "2"), "takes batches of 4 and no others"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    newest: Device, arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert newest.run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{text}", line)
    assert not (newest.bundle / "built").exists()


@pytest.mark.parametrize(
    "arguments",
    [("--batch", "0"), ("--workspace", "many"), ("--optimization-level", "6"), ("--model", "x", "--all"), ("--what",)],
)
def test_wrong_usage_ends_with_2(newest: Device, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        newest.run(*arguments)


def test_a_batch_larger_than_the_usual_largest_makes_this_larger(newest: Device, script: Script) -> None:
    assert newest.run("--batch", "16") == 0
    assert [shapes[1:] for shapes in script.profiles] == [((1, 3, 32, 32), (16, 3, 32, 32), (16, 3, 32, 32))]


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0.19"])
def test_a_release_that_is_too_old_is_refused(newest: Device, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    newest.trt.__version__ = version
    assert newest.run() == 1
    assert capsys.readouterr().err == f"error: TensorRT {version} is too old; 10.3 (JetPack 6.1) or newer is needed.\n"


def test_without_a_driver_nothing_of_tensorrt_is_touched(
    newest: Device, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise NoDeviceError("no NVIDIA driver")

    monkeypatch.setattr(tensorrt_device, "open_driver", refuse)
    script.names.clear()  # of what set up the stand-in
    assert newest.run() == 1
    assert script.names == []
    assert capsys.readouterr().err.endswith("and here: no NVIDIA driver.\n")


def test_it_runs_without_this_package(copied: Path) -> None:
    done = run_alone(copied, program="build_engine.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: engines are built on the GPU that runs them, with TensorRT, and here: ")
    assert not (copied / "built").exists()


def test_a_bundle_without_models_for_tensorrt_is_said(
    copied: Path, newest: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(record: dict[str, Any]) -> None:
        for model in record["models"]:
            model["buildable"] = False

    rewrite(copied, change)
    assert newest.run() == 1
    assert "those that can: none" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_what_is_no_bundle_is_one_line(
    newest: Device, spoil: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(newest.bundle / "bundle.json")
    assert newest.run() == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_ctrl_c_is_one_line_and_leaves_nothing(
    newest: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_bytes

    def interrupt(path: Path, content: bytes) -> int:
        write(path, content[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    assert bundle_index.exit_code(newest.run) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert list((newest.bundle / "built").iterdir()) == []


def test_names_do_nothing_to_a_terminal(newest: Device, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert newest.run("--out", str(tmp_path / "a\x1b[2J\u202eb")) == 0
    assert r"a\x1b[2J\u202eb" in capsys.readouterr().out
    newest.bundle = newest.bundle.rename(newest.bundle.with_name("no\nbundle\x1b]0;"))
    (newest.bundle / "bundle.json").unlink()
    assert newest.run() == 1
    assert r"no\nbundle\x1b]0;" in capsys.readouterr().err


@pytest.mark.parametrize("name", [f"onnx/{INT8}.onnx", "bundle.json", "SHA256SUMS"])
def test_an_altered_bundle_is_not_built_from(
    name: str, newest: Device, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    file = newest.bundle / name
    content = file.read_bytes()
    place = content.index(
        b"row_sum" if name.startswith("onnx") else b"onnx/" if name == "bundle.json" else b"bundle.json"
    )
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert newest.run() == 1
    assert "copy the bundle again" in capsys.readouterr().err
    assert script.profiles == []
