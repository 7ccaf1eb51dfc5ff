"""The whole examination, of healthy and of broken machines that are made up of probes."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import convnext_deploy
from convnext_deploy import doctor
from convnext_deploy.api import doctor as checkup
from convnext_deploy.api.doctor import Diagnosis
from convnext_deploy.diagnosis import packages
from convnext_deploy.diagnosis.packages import COMPILER, DRIVER, LISTED, chains
from convnext_deploy.diagnosis.probing import Probe

PYPROJECT = Path(convnext_deploy.__file__).parents[1] / "pyproject.toml"
H200 = {"name": "NVIDIA H200", "capability": "SM90", "memory_bytes": 150 * 10**9}
ORIN = {"name": "Orin", "capability": "SM87", "memory_bytes": 8 * 10**9}
GTX = {"name": "GTX 1080", "capability": "SM61", "memory_bytes": 8 * 10**9}
WELL: Mapping[str, Probe] = {
    **{module: Probe() for chain in chains() for module in chain},
    "torch": Probe(version="2.14.1+cu130", facts={"cuda": "13.0", "gpus": 0}),
    "onnxruntime": Probe(facts={"providers": ["CPUExecutionProvider"]}),
    "tensorrt": Probe(version="10.13.0"),
    "tensorrt_rtx": Probe(version="1.7.1"),
    COMPILER: Probe(facts={"missing": None}),
    DRIVER: Probe(facts={"error": "no GPU"}),
}


def examine(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Diagnosis:
    """Examine a machine where these probes are different; `gpus` are those that its driver tells."""
    gpus = changes.pop("gpus", None)
    probes = {**WELL, **changes}
    if gpus:
        probes[DRIVER] = Probe(facts={"error": None, "cuda": "13.0", "gpus": gpus})
    monkeypatch.setattr(checkup, "probe", lambda chains, timeout_s: probes)
    return doctor()


def works(found: Diagnosis) -> set[str]:
    return {feature.name for feature in found.features if feature.works}


def detail(found: Diagnosis, name: str) -> str:
    (text,) = [feature.detail for feature in found.features if feature.name == name]
    return text


def seeing(*gpus: dict[str, Any], **changes: Any) -> dict[str, Any]:
    torch = Probe(version="2.14.1+cu130", facts={"cuda": "13.0", "gpus": len(gpus)})
    return {"torch": torch, "gpus": list(gpus), **changes}


def test_everything_but_gpus_works_where_all_packages_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(monkeypatch)
    assert found.works
    assert {f.name for f in found.features} - works(found) == {
        "several GPUs",
        "ONNX Runtime, GPU",
        "TensorRT-RTX, run",
        "TensorRT, build and run",
        "Torch-TensorRT",
        "GPU power, in bench",
    }


def test_gpu_features_work_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Probe(facts={"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]})
    found = examine(monkeypatch, **seeing(H200, H200, onnxruntime=cuda))
    assert works(found) == {feature.name for feature in found.features}
    assert detail(found, "several GPUs").startswith("torchrun --nproc-per-node 2 -m convnext_deploy run")
    assert detail(found, "train, distill, quantize") == "on NVIDIA H200"
    assert found.problems == examine(monkeypatch).problems


def test_orin_runs_tensorrt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(monkeypatch, **seeing(ORIN))
    assert "TensorRT, build and run" in works(found)
    for name in ("TensorRT-RTX, run", "Torch-TensorRT"):
        assert detail(found, name) == "not for a Jetson Orin: use the TensorRT of JetPack"
    assert detail(found, "several GPUs") == "there is one"


def test_old_gpu_is_told_to_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detail(examine(monkeypatch, **seeing(GTX)), "TensorRT, build and run") == "GTX 1080 is older than SM75"


@pytest.mark.parametrize("name", ["torch", "torchvision", "onnx", "onnxruntime", "safetensors", "numpy"])
def test_core_that_is_broken_breaks_the_main_path(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = examine(monkeypatch, **{name: Probe(error="ImportError: libfoo.so.1")})
    assert not found.works
    (problem,) = [p for p in found.problems if p.startswith(f"{name} cannot be used")]
    assert (
        problem == f"{name} cannot be used (ImportError: libfoo.so.1): pip install --force-reinstall --no-deps {name}"
    )


@pytest.mark.parametrize(
    ("name", "feature", "fix"),
    [
        ("openvino", "OpenVINO", "pip install 'convnext_deploy[openvino]'"),
        ("webdataset", "WebDataset shards", "pip install 'convnext_deploy[webdataset]'"),
        ("huggingface_hub", "published weights", "pip install 'convnext_deploy[hub]'"),
        ("tensorboard", "TensorBoard", "pip install 'convnext_deploy[tensorboard]'"),
    ],
)
def test_missing_extra_is_named_with_its_install_line_and_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, name: str, feature: str, fix: str
) -> None:
    monkeypatch.setattr(packages, "installed_version", lambda distribution: None)
    found = examine(monkeypatch, **{name: Probe(missing=True)})
    assert feature not in works(found)
    assert detail(found, feature) == fix
    assert not [problem for problem in found.problems if problem.startswith(name)]


def test_metadata_without_a_module_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed_version", lambda distribution: "3.1")
    found = examine(monkeypatch, onnxruntime=Probe(missing=True))
    assert "there is metadata of onnxruntime 3.1, and no module onnxruntime" in " ".join(found.problems)
    assert not found.works


def test_two_packages_of_onnx_runtime_are_told_to_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"onnxruntime": "1.31", "onnxruntime-gpu": "1.30"}
    monkeypatch.setattr(packages, "installed_version", here.get)
    (problem,) = [p for p in examine(monkeypatch).problems if "together" in p]
    assert problem.startswith("onnxruntime and onnxruntime-gpu are installed together")
    assert "pip uninstall onnxruntime onnxruntime-gpu" in problem


def test_torch_without_cuda_beside_a_gpu_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = Probe(version="2.14.1+cpu", facts={"cuda": None, "gpus": 0})
    found = examine(monkeypatch, torch=torch, gpus=[H200])
    (problem,) = [p for p in found.problems if "without CUDA" in p]
    assert problem.startswith("torch 2.14.1+cpu is a build without CUDA, and there is a GPU: pip uninstall torch")
    assert detail(found, "train, distill, quantize").startswith("on the CPU")
    assert not [p for p in examine(monkeypatch, torch=torch).problems if "without CUDA" in p]


def test_driver_that_is_too_old_for_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(monkeypatch, gpus=[H200])
    assert [p for p in found.problems if "finds no GPU, and the driver does (it runs CUDA up to 13.0)" in p]


@pytest.mark.parametrize(
    ("module", "version", "expected"), [("tensorrt", "8.6.1", "10.3 to 11.x"), ("tensorrt_rtx", "2.0.0", "1.7 to 1.x")]
)
def test_tensorrt_of_an_unknown_release_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, module: str, version: str, expected: str
) -> None:
    found = examine(monkeypatch, **{module: Probe(version=version)})
    (problem,) = [p for p in found.problems if p.startswith(f"{module} cannot be used")]
    assert f"{version} is installed; expected {expected}" in problem


def test_missing_compiler_is_told_by_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(monkeypatch, **{COMPILER: Probe(facts={"missing": "there is no g++; install one."})})
    assert found.works
    assert detail(found, "torch.compile") == "there is no g++; install one."


def test_driver_that_crashes_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(monkeypatch, **{DRIVER: Probe(error="importing it ends the process (SIGSEGV)")})
    assert found.machine.gpus == ()
    assert found.machine.gpu_error == "no GPU known (importing it ends the process (SIGSEGV))"


def test_diagnosis_as_json_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(examine(monkeypatch, **seeing(H200)).to_json())
    assert record["works"] is True
    assert record["machine"]["gpus"] == [H200]
    assert {package["name"] for package in record["packages"]} == {listed.name for listed in LISTED}
    assert {"name", "works", "detail", "core"} == set(record["features"][0])


def test_listed_packages_are_those_that_this_package_needs_or_offers() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "test"}
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    assert {listed.distributions[0] for listed in LISTED if listed.extra is None} == needed
    for listed in LISTED:
        if listed.extra is not None:
            assert any(line.startswith(listed.distributions[0]) for line in extras[listed.extra])
