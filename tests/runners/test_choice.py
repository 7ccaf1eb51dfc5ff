"""Which runner opens an artifact, and one line for those that cannot."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, RunnerError
from convnext_deploy.runners import default_runner, open_runner, openvino, runners_of
from convnext_deploy.runners.session_options import onnxruntime_entries, openvino_properties, provider_options
from tests.details import onnx_details


def for_openvino(artifact: Artifact) -> Artifact:
    return dataclasses.replace(artifact, details=dataclasses.replace(onnx_details(artifact), target="openvino"))


@pytest.fixture
def noise() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)


def test_default_is_the_runtime_that_the_artifact_was_made_for(small_artifacts: dict[str, Artifact]) -> None:
    pytest.importorskip("openvino")
    names = ("student", "onnx-fp32", "onnx-int8", "engine")
    assert [default_runner(small_artifacts[name]) for name in names] == [
        "torch",
        "onnxruntime",
        "onnxruntime",
        "tensorrt",
    ]
    artifact = for_openvino(small_artifacts["onnx-int8"])
    assert default_runner(artifact) == "openvino"
    runner = open_runner(artifact)
    assert runner.name == "openvino"
    runner.close()


def test_default_of_a_float_graph_is_the_runtime_that_it_was_exported_for(small_artifacts: dict[str, Artifact]) -> None:
    pytest.importorskip("openvino")
    artifact = small_artifacts["onnx-fp32"]
    (*before, last) = artifact.lineage
    made = dataclasses.replace(last, config={**last.config, "runtime": "openvino"})
    assert default_runner(dataclasses.replace(artifact, lineage=(*before, made))) == "openvino"


def test_default_for_openvino_is_onnx_runtime_where_openvino_is_missing(
    small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert default_runner(for_openvino(small_artifacts["onnx-int8"])) == "onnxruntime"


def test_runners_of_an_artifact_are_those_that_open_it(small_artifacts: dict[str, Artifact]) -> None:
    assert runners_of(small_artifacts["student"]) == ("torch", "torch-compile")
    assert runners_of(small_artifacts["engine"]) == ("tensorrt",)
    assert runners_of(small_artifacts["onnx-fp32"])[0] == "onnxruntime"


def test_unknown_runner_is_one_line_with_the_nearest_name(small_artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(RunnerError, match=r"^there is no runner 'opnvino'; expected [^\n]* Did you mean 'openvino'\?$"):
        open_runner(small_artifacts["onnx-fp32"], runner="opnvino")


@pytest.mark.parametrize(
    ("name", "runner", "others"),
    [
        ("onnx-fp32", "torch", "onnxruntime, onnxruntime-cuda"),
        ("student", "openvino", "torch, torch-compile"),
        ("engine", "onnxruntime", "tensorrt"),
    ],
)
def test_runner_of_another_format_is_one_line_with_those_that_open_it(
    small_artifacts: dict[str, Artifact], name: str, runner: str, others: str
) -> None:
    artifact = small_artifacts[name]
    with pytest.raises(
        RunnerError, match=rf"^the runner {runner} opens no {artifact.format} artifacts, [^\n]*do: {others}[^\n]*\.$"
    ):
        open_runner(artifact, runner=runner)


@pytest.mark.parametrize("runner", ["openvino", "openvino-fp32", "openvino-bf16"])
def test_missing_openvino_is_one_line_that_installs_it(
    small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    # not the core that is there already
    monkeypatch.setattr(openvino, "openvino_core", openvino.openvino_core.__wrapped__)
    with pytest.raises(BackendUnavailableError, match=r"^openvino [^\n]*pip install 'convnext_deploy\[openvino\]'\.$"):
        open_runner(small_artifacts["onnx-fp32"], runner=runner)


@pytest.mark.parametrize(
    ("runner", "package"),
    [
        ("onnxruntime-cuda", "onnxruntime-gpu"),
        ("onnxruntime-tensorrt", "onnxruntime-gpu"),
        ("onnxruntime-openvino", "onnxruntime-openvino"),
    ],
)
def test_missing_provider_is_one_line_with_the_package_that_brings_it(
    small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, runner: str, package: str
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match=rf"^this onnxruntime has no [^\n]* pip install {package}\.$"):
        open_runner(small_artifacts["onnx-fp32"], runner=runner)


def test_missing_compiler_is_one_line(small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    with pytest.raises(
        BackendUnavailableError,
        match=r"^torch-compile needs a C\+\+ compiler, [^\n]*; install one, or use the runner torch\.$",
    ):
        open_runner(small_artifacts["student"], runner="torch-compile")


def test_openvino_computes_what_says_fp32_in_fp32(
    small_artifacts: dict[str, Artifact], noise: NDArray[np.float32], core: Any
) -> None:
    artifact = small_artifacts["onnx-fp32"]
    expected = open_runner(artifact).logits(noise)
    errors = {}
    for runner in ("openvino", "openvino-fp32", "openvino-bf16"):
        if runner == "openvino-bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            with pytest.raises(BackendUnavailableError, match="no bf16 units"):
                open_runner(artifact, runner=runner)
        else:
            found = open_runner(artifact, runner=runner).logits(noise)
            errors[runner] = float(np.abs(found - expected).max() / np.ptp(expected))
    assert max(errors["openvino"], errors["openvino-fp32"]) < 1e-4
    assert 1e-4 < errors.get("openvino-bf16", 0.01) < 0.05


@pytest.mark.parametrize("content", [b"", b"words\n", None], ids=["empty", "words", "cut"])
def test_openvino_says_in_one_line_that_a_file_is_damaged(
    small_artifacts: dict[str, Artifact], tmp_path: Path, content: bytes | None
) -> None:
    pytest.importorskip("openvino")
    artifact = dataclasses.replace(small_artifacts["onnx-fp32"], path=tmp_path)
    whole = small_artifacts["onnx-fp32"].main_file.read_bytes()
    artifact.main_file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ArtifactError, match=rf"^OpenVINO cannot open {re.escape(str(artifact.main_file))}: [^\n]+$"):
        open_runner(artifact, runner="openvino").logits(np.zeros((1, 3, 32, 32), np.float32))


def test_openvino_says_in_one_line_that_images_have_another_shape(small_artifacts: dict[str, Artifact]) -> None:
    pytest.importorskip("openvino")
    runner = open_runner(small_artifacts["onnx-fp32"], runner="openvino")
    with pytest.raises(
        ArtifactError, match=r"^OpenVINO cannot run [^\n]+ on images of shape \(1, 3, 64, 64\): [^\n]+$"
    ):
        runner.logits(np.zeros((1, 3, 64, 64), np.float32))


_USE = """
import sys
from pathlib import Path
import numpy as np
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.runners import open_runner
runner = open_runner(open_input(Path(sys.argv[1])), runner="openvino")
runner.logits(np.zeros((1, 3, 32, 32), np.float32))
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
import openvino_telemetry
"""


@pytest.mark.heavy
def test_openvino_tells_nobody_and_prints_nothing(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    if importlib.util.find_spec("openvino_telemetry") is None:
        pytest.skip("the package that would tell is not here")
    command = [sys.executable, "-c", _USE, str(small_artifacts["onnx-fp32"].main_file)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_threads_spin_only_where_nothing_else_runs() -> None:
    key = "session.intra_op.allow_spinning"
    assert tuple(onnxruntime_entries("fp32", alone=alone)[key] for alone in (False, True)) == ("0", "1")


def test_only_fp8_values_are_not_moved() -> None:
    key = "session.disable_quant_qdq"  # which FP8 files need on ONNX Runtime 1.31 and before
    assert [onnxruntime_entries(precision, alone=True).get(key) for precision in ("fp8", "fp8-fp16")] == ["1", "1"]
    assert not any(key in onnxruntime_entries(precision, alone=True) for precision in ("fp32", "fp16", "int8-fp16"))


@pytest.mark.parametrize(
    ("computed", "precision", "hint"),
    [
        ("artifact", "fp32", "f32"),
        ("artifact", "fp16", "f32"),
        ("artifact", "int8", None),
        ("artifact", "int8-fp16", None),
        ("fp32", "int8", "f32"),
        ("bf16", "fp32", "bf16"),
    ],
)
def test_openvino_is_told_the_type_that_the_artifact_claims(computed: str, precision: str, hint: str | None) -> None:
    properties = openvino_properties(computed, precision, 3)  # type: ignore[arg-type]
    assert properties.get("INFERENCE_PRECISION_HINT") == hint
    assert properties["INFERENCE_NUM_THREADS"] == 3
    assert "INFERENCE_NUM_THREADS" not in openvino_properties("artifact", precision, None)


def test_openvino_as_a_provider_gets_the_same_settings() -> None:
    assert provider_options("onnxruntime-openvino", "fp32", 2) == {
        "device_type": "CPU",
        "precision": "FP32",
        "num_of_threads": "2",
    }
    assert provider_options("onnxruntime-openvino", "int8", None) == {"device_type": "CPU"}
    assert provider_options("onnxruntime-cuda", "fp32", 2) == {}
