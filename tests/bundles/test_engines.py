"""Engines are run through the CUDA driver alone, with what each release of TensorRT has, and compared like every other model."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext_deploy.api.bundle import bundle
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.device import tensorrt_device
from convnext_deploy.bundles.device.tensorrt_device import (
    GPU,
    DeviceError,
    Engine,
    NoDeviceError,
    import_bindings,
    open_driver,
)
from convnext_deploy.bundles.device.verify import verify
from convnext_deploy.system.cuda_driver import cuda_driver_error
from tests.bundles.conftest import read_record
from tests.bundles.gpu import STREAM, Driver, plug_in
from tests.bundles.graphs import FP32, INT8, row_sum_graph, write_engine_artifact, write_onnx_artifact
from tests.bundles.test_verify import by_name, rewrite
from tests.exporters.tensorrt_stand_in import RELEASES, RTX_RELEASE, Script, create_stand_in

NEWEST = RELEASES[-1]
SAME = "error 0.0e+00 of 5.0e-02 allowed, 5 of 5 images in the same class"


def built(folder: Path, name: str = INT8, content: bytes = b"a plan") -> str:
    """Put an engine where building on the device puts it, and return its place."""
    (folder / "built").mkdir()
    (folder / "built" / f"{name}.plan").write_bytes(content)
    return f"built/{name}.plan"


@pytest.mark.parametrize("release", RELEASES)
def test_an_engine_that_was_built_here_is_run_by_every_release(
    copied: Path, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, script, driver = built(copied), Script(), Driver()
    plug_in(monkeypatch, release, script, driver)
    status, detail = by_name(verify(copied))[place]
    assert (status, detail.split(" of ", 1)[1]) == ("passed", SAME.split(" of ", 1)[1])
    assert [shape[0] for shape in script.batches] == [1, 4]
    assert set(script.streams) == {STREAM}
    assert not driver.live


def test_engines_of_rtx_are_run_on_the_gpu_that_they_are_for(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, RTX_RELEASE, Script(), Driver(capability=(8, 9)))
    found = by_name(verify(copied))
    assert found[f"engines/{INT8}.sm86.plan"] == ("not run", "built for SM86, this GPU is SM89")
    assert found[f"engines/{INT8}.sm89.plan"][0] == "passed"


@pytest.mark.parametrize(
    ("arguments", "interface"),
    [
        ({"pixels": True}, {"input_type": "UINT8", "input_shape": (-1, 32, 32, 3)}),
        ({"batch": 4}, {"input_shape": (4, 3, 32, 32)}),
        ({"top_k": 3}, {"outputs": {"scores": "FLOAT", "classes": "INT64"}}),
        ({"top_k": 3}, {"outputs": {"scores": "FLOAT", "classes": "INT32"}}),
        ({}, {"outputs": {"logits": "FLOAT"}, "engine_batches": (1, 2, 2)}),
    ],
)
def test_every_interface_of_an_engine_is_run(
    make: Callable[..., Path], arguments: dict[str, Any], interface: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(**arguments)
    place, script = built(folder, FP32), Script(**interface)
    plug_in(monkeypatch, NEWEST, script, Driver())
    status, detail = by_name(verify(folder))[place]
    assert status == "passed", detail
    sizes = {shape[0] for shape in script.batches}
    assert sizes <= ({4} if "batch" in arguments else {1, 2} if "engine_batches" in interface else {1, 4})


@pytest.mark.parametrize(
    ("script", "driver", "status", "text"),
    [
        (Script(loads=False, errors=("no\nkernel image",)), Driver(), "failed", "cannot load it: no kernel image"),
        (Script(contexts=False), Driver(), "failed", "cannot run it: no reason given"),
        (Script(shapes_fit=False), Driver(), "failed", r"does not take images of shape \(1, 3, 32, 32\)"),
        (Script(runs=False), Driver(), "failed", "it failed: no reason given"),
        (Script(input_type="HALF"), Driver(), "failed", "takes float16 images, not float32"),
        (Script(outputs={"logits": "BF16"}), Driver(), "failed", "'logits' has the type BF16"),
        (Script(outputs={"other": "FLOAT"}), Driver(), "failed", "output 'logits' is None"),
        (Script(plan=b"another"), Driver(), "failed", "cannot load it"),
        (Script(), Driver(fails="cuMemAlloc_v2"), "failed", "cuMemAlloc_v2 of the CUDA driver failed with code 719"),
        (Script(), Driver(fails="cuStreamSynchronize"), "failed", "cuStreamSynchronize"),
        (Script(), Driver(fails="cuDevicePrimaryCtxRetain"), "not run", "cuDevicePrimaryCtxRetain"),
    ],
)
def test_what_goes_wrong_with_an_engine_is_one_line(
    copied: Path, script: Script, driver: Driver, status: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = built(copied)
    plug_in(monkeypatch, NEWEST, script, driver)
    found = by_name(verify(copied))[place]
    assert found[0] == status
    assert "\n" not in found[1]
    assert re.search(text, found[1])
    assert not driver.live


def test_an_engine_with_other_answers_fails(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = built(copied, FP32)  # its answers are larger by 0.25 than those of the stand-in
    plug_in(monkeypatch, NEWEST, Script(input_shape=(4, 3, 32, 32)), Driver())
    rewrite(copied, lambda record: record["models"][1]["tolerance"].update(engine=1e-3))
    status, detail = by_name(verify(copied))[place]
    assert status == "failed"
    assert detail.endswith("e-03 of 1.0e-03 allowed, 5 of 5 images in the same class")


def test_an_engine_of_another_version_is_not_run_when_it_does_not_load(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(monkeypatch, RTX_RELEASE, Script(loads=False), Driver())
    place = f"engines/{INT8}.sm86.plan"
    assert by_name(verify(copied))[place][0] == "failed"
    rewrite(copied, lambda record: record["engines"][0].update(version="1.9.0.1"))
    assert by_name(verify(copied))[place] == ("not run", "built with tensorrt-rtx 1.9.0.1, here is 1.7.1.116")


@pytest.mark.parametrize("version_compatible", [False, True])
def test_code_for_the_cpu_in_a_plan_is_allowed_only_where_it_was_asked_for(
    version_compatible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    engine = write_engine_artifact(
        tmp_path / "engine", source, flavor="tensorrt", gpus=(), version_compatible=version_compatible
    )
    bundle([source.path, engine.path], tmp_path / "out", golden_images=2)
    script = Script()
    plug_in(monkeypatch, RELEASES[0], script, Driver())
    assert by_name(verify(tmp_path / "out"))[f"engines/{FP32}.plan"][0] == "passed"
    assert script.assigned.get("Runtime.engine_host_code_allowed") is (True if version_compatible else None)


def test_bindings_that_are_missing_are_said(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = built(copied)
    monkeypatch.setattr(tensorrt_device, "open_driver", Driver)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    status, detail = by_name(verify(copied))[place]
    assert status == "not run"
    assert detail.startswith("the Python bindings of tensorrt cannot be loaded (")


def test_without_a_driver_nothing_of_tensorrt_is_touched(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, script = built(copied), Script()
    plug_in(monkeypatch, NEWEST, script, Driver())

    def refuse() -> None:
        raise NoDeviceError("no NVIDIA driver")

    monkeypatch.setattr(tensorrt_device, "open_driver", refuse)
    assert by_name(verify(copied))[place] == ("not run", "no NVIDIA driver")
    assert script.names == []


def test_open_driver_agrees_with_the_package() -> None:
    try:
        open_driver()
        found = None
    except NoDeviceError as error:
        found = str(error)
    assert (found is None) == (cuda_driver_error() is None)


def test_a_standard_engine_of_the_package_is_served_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    engine = write_engine_artifact(tmp_path / "engine", source, flavor="tensorrt", gpus=())
    bundle([source.path, engine.path], tmp_path / "out", golden_images=2)
    record = read_record(tmp_path / "out")["engines"][0]
    assert (record["kind"], record["gpus"], record["version"]) == ("tensorrt", [], "10.3.0")
    assert (tmp_path / "out" / "triton" / "tensorrt" / FP32 / "1" / "model.plan").read_bytes() == b"a plan"
    config = (tmp_path / "out" / "triton" / "tensorrt" / FP32 / "config.pbtxt").read_text(encoding="utf-8")
    assert "max_batch_size: 4" in config


def test_the_memory_of_a_gpu_is_given_back_when_a_run_fails(graphs: dict[str, Artifact]) -> None:
    driver = Driver(fails="cuMemcpyHtoD_v2")
    engine = Engine(create_stand_in(NEWEST, Script()), b"a plan", GPU(driver))
    with pytest.raises(DeviceError, match="cuMemcpyHtoD_v2"):
        engine.run(np.zeros((1, 3, 32, 32), np.float32))
    assert driver.called.count("cuMemAlloc_v2") == 2
    assert not driver.live


def test_import_bindings_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DeviceError, match="bindings of tensorrt-rtx cannot be loaded"):
        import_bindings("tensorrt-rtx")


def test_an_engine_for_triton_that_is_not_the_one_built_here_fails(copied: Path) -> None:
    plan = copied / built(copied)
    served = copied / "triton" / "tensorrt" / INT8 / "1" / "model.plan"
    name = served.relative_to(copied).as_posix()
    served.parent.mkdir(parents=True, exist_ok=True)
    served.write_bytes(plan.read_bytes())
    assert name not in by_name(verify(copied))
    served.write_bytes(b"a plam")
    assert by_name(verify(copied))[name] == ("failed", f"is not built/{INT8}.plan; copy that there again")
