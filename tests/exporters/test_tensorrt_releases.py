"""The engine builder calls only what each TensorRT release has, and fails the build on everything that a release only logs."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.config.choices import Flavor
from convnext_deploy.errors import BackendUnavailableError, ExportError
from convnext_deploy.exporters.tensorrt import bindings as tensorrt_releases
from convnext_deploy.exporters.tensorrt.bindings import RELEASES, check_version
from convnext_deploy.exporters.tensorrt.build import Engine
from tests.exporters.tensorrt_build import ALL_RELEASES, STANDARD, Build, flavor_of
from tests.exporters.tensorrt_stand_in import GOLDEN, RTX_RELEASE, Script, create_stand_in, read_api
from tests.golden.dump_tensorrt_api import as_json, dump


def test_build_engine_returns_the_plan_of_every_release(build: Build, script: Script) -> None:
    script.plan = b"the very bytes"
    assert build() == Engine(b"the very bytes", Profile(1, 2, 8), ())


@pytest.mark.parametrize("release", ALL_RELEASES)
def test_table_says_what_the_release_has(release: str) -> None:
    api, row = read_api(release), RELEASES[flavor_of(release)]
    assert row.builds_for_gpus == ("ComputeCapability" in api["names"])
    assert row.header_check == ("get_engine_validity" in api["classes"]["Runtime"])
    assert {"VERSION_COMPATIBLE", "STRIP_PLAN"} <= set(api["classes"]["BuilderFlag"])
    check_version(flavor_of(release), api["release"])


@pytest.mark.parametrize(
    ("flavor", "version"),
    [
        ("tensorrt", "10.2.0"),
        ("tensorrt", "8.6.1"),
        ("tensorrt", "12.0.0"),
        ("tensorrt-rtx", "1.6.1"),
        ("tensorrt-rtx", "new"),
    ],
)
def test_check_version_names_what_is_expected(flavor: Flavor, version: str) -> None:
    expected = {"tensorrt": "10.3 to 11.x", "tensorrt-rtx": "1.7 to 1.x"}[flavor]
    message = re.escape(f"{flavor} {version} is installed; expected {expected}: pip install")
    with pytest.raises(BackendUnavailableError, match=rf"^{message}[^\n]*$"):
        check_version(flavor, version)


def test_build_engine_asks_for_a_strongly_typed_network(build: Build, script: Script, release: str) -> None:
    build()
    assert script.network_flags == [2 if release.startswith("tensorrt-10.") else 1]


def test_build_engine_touches_no_precision_flag(build: Build, script: Script) -> None:
    build()
    assert script.builder_flags == []
    assert "BuilderFlag" not in script.names
    assert not {"IBuilderConfig.flags", "IBuilderConfig.int8_calibrator", "IBuilderConfig.quantization_flags"} & set(
        script.assigned
    )


def test_build_engine_passes_its_settings(build: Build, script: Script, release: str) -> None:
    build()
    assert script.pools == {"WORKSPACE": 64 << 20}
    assert script.profiles == [("images", (1, 3, 32, 32), (2, 3, 32, 32), (8, 3, 32, 32))]
    assert script.assigned["IBuilderConfig.builder_optimization_level"] == 4
    if release == RTX_RELEASE:
        assert script.assigned["IBuilderConfig.num_compute_capabilities"] == 1
        assert script.capabilities == [("SM86", 0)]
    else:
        assert script.capabilities == []


def test_build_engine_accepts_warnings(build: Build, script: Script) -> None:
    script.warnings = ("this may be slow",)
    engine = build()
    assert (engine.plan, engine.warnings) == (script.plan, ("this may be slow",))


def test_build_engine_fails_when_an_error_was_logged_beside_a_plan(build: Build, script: Script) -> None:
    script.errors = ("setting 7 is ignored",)
    with pytest.raises(ExportError, match=r"model\.onnx.*setting 7 is ignored"):
        build()


def test_build_engine_fails_when_parsing_fails(build: Build, script: Script) -> None:
    script.parses, script.parser_errors = False, ("no importer\n  for Foo", "second problem")
    with pytest.raises(ExportError, match=r"^[^\n]*no importer for Foo; second problem$"):
        build()


def test_build_engine_fails_when_the_parser_accepts_a_file_without_a_network(build: Build, script: Script) -> None:
    # This is what the real parser does with a text file or an empty file.
    script.inputs = 0
    with pytest.raises(ExportError, match=r"model\.onnx"):
        build()


def test_build_engine_fails_when_the_profile_is_refused(build: Build, script: Script) -> None:
    script.profile_index = -1
    with pytest.raises(ExportError, match=r"batch profile 1 to 8, tuned for 2"):
        build()


def test_build_engine_fails_with_the_reason_when_there_is_no_plan(build: Build, script: Script) -> None:
    script.plan, script.errors = None, ("no tactic\nfor node 3", "no tactic\nfor node 3")
    with pytest.raises(ExportError, match=r"^[^\n]*: no tactic for node 3$"):
        build()


def test_build_engine_fails_when_there_is_no_plan_and_no_reason(build: Build, script: Script) -> None:
    script.plan = None
    with pytest.raises(ExportError, match="no reason given"):
        build()


@STANDARD
def test_build_engine_touches_nothing_when_there_is_no_gpu(
    build: Build, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_releases, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^[^\n]*no GPU[^\n]*tensorrt-rtx[^\n]*$"):
        build()
    assert script.built == []
    assert script.names == []


ABSENT: dict[str, tuple[str, Callable[[Any], object]]] = {
    "explicit batch": ("tensorrt-11.0.0.114", lambda trt: trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH),
    "FP16 flag": ("tensorrt-11.0.0.114", lambda trt: trt.BuilderFlag.FP16),
    "INT8 flag on RTX": (RTX_RELEASE, lambda trt: trt.BuilderFlag.INT8),
    "calibrator class": ("tensorrt-11.4.0.106", lambda trt: trt.IInt8Calibrator),
    "compute capability": ("tensorrt-10.3.0", lambda trt: trt.ComputeCapability),
    "Orin on RTX": (RTX_RELEASE, lambda trt: trt.ComputeCapability.SM87),
    "device memory size": ("tensorrt-11.0.0.114", lambda trt: trt.ICudaEngine.device_memory_size),
    "fast INT8 of a builder": ("tensorrt-11.0.0.114", lambda trt: _builder(trt).platform_has_fast_int8),
    "tiling of a config": (
        "tensorrt-10.3.0",
        lambda trt: setattr(_builder(trt).create_builder_config(), "tiling_optimization_level", 1),
    ),
    "calibrator of a config": (
        "tensorrt-11.0.0.114",
        lambda trt: setattr(_builder(trt).create_builder_config(), "int8_calibrator", None),
    ),
    "dynamic range of a tensor": (
        "tensorrt-11.0.0.114",
        lambda trt: setattr(_builder(trt).create_network(1).get_input(0), "dynamic_range", (0, 1)),
    ),
}


def _builder(trt: Any) -> Any:
    return trt.Builder(trt.ILogger())


@pytest.mark.parametrize("case", ABSENT)
def test_stand_in_raises_when_the_release_lacks_a_name(case: str) -> None:
    release, use = ABSENT[case]
    trt = create_stand_in(release, Script())
    with pytest.raises(AttributeError):
        use(trt)


def test_stand_in_has_what_the_release_has() -> None:
    trt: Any = create_stand_in("tensorrt-10.3.0", Script())
    assert int(trt.BuilderFlag.FP16) == 0
    assert int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) == 0
    config = _builder(trt).create_builder_config()
    config.int8_calibrator = None
    assert config.int8_calibrator is None


def test_stand_in_says_that_a_known_name_is_not_imitated() -> None:
    trt: Any = create_stand_in("tensorrt-10.3.0", Script())
    with pytest.raises(NotImplementedError, match="Refitter"):
        trt.Refitter  # noqa: B018  (reading it is the test)
    with pytest.raises(NotImplementedError, match="DLA_core"):
        _builder(trt).create_builder_config().DLA_core  # noqa: B018  (likewise)


def test_golden_files_are_those_of_the_tested_releases() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(ALL_RELEASES)
    assert all(path.stat().st_size < 50_000 for path in GOLDEN.iterdir())


def test_golden_file_equals_the_installed_tensorrt_rtx() -> None:
    trt: ModuleType = pytest.importorskip("tensorrt_rtx")
    if trt.__version__ != read_api(RTX_RELEASE)["release"]:
        pytest.skip(f"TensorRT-RTX {trt.__version__} is installed, the golden file is of {RTX_RELEASE}")
    assert as_json(dump(trt)) == (GOLDEN / f"{RTX_RELEASE}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("flavor", ["tensorrt", "tensorrt-rtx"])
def test_import_tensorrt_prints_the_install_line_when_the_bindings_are_missing(
    flavor: Flavor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, flavor.replace("-", "_"), None)
    with pytest.raises(BackendUnavailableError, match=rf"^{flavor} is not installed; pip install [^\n]*\.$"):
        tensorrt_releases.import_tensorrt(flavor)


def test_import_tensorrt_gives_the_reason_when_the_bindings_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    reason = re.escape("cannot be loaded (libnvinfer.so.10: cannot open shared object file); pip install")
    with pytest.raises(BackendUnavailableError, match=reason):
        tensorrt_releases.import_tensorrt("tensorrt")


def test_import_tensorrt_refuses_a_release_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in: Any = create_stand_in("tensorrt-10.3.0", Script())
    stand_in.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    with pytest.raises(BackendUnavailableError, match=r"tensorrt 8\.6\.1 is installed"):
        tensorrt_releases.import_tensorrt("tensorrt")
