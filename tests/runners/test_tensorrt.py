"""Opening engines with the TensorRT runner: stand-ins for the bindings of each release and for the GPU of PyTorch."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.errors import ArtifactError, BackendUnavailableError
from convnext_deploy.runners import open_profiled, open_runner, tensorrt
from convnext_deploy.runners.profiling import Kernel
from tests.exporters.tensorrt_stand_in import RELEASES, RTX_RELEASE, create_stand_in
from tests.runners.conftest import SIDE, Machine, Opened, details_for


def test_open_runner_takes_the_plan_of_the_gpu_present(
    open_release: Opened, machine: Machine, plan_artifact: Artifact
) -> None:
    machine.capability = (8, 9)
    (plan_artifact.path / "model.sm86.plan").unlink()
    logits = open_release(RTX_RELEASE).logits(np.ones((1, 3, SIDE, SIDE), np.float32))
    np.testing.assert_array_equal(logits, [[SIDE, SIDE + 1, SIDE + 2]])


def test_open_runner_raises_when_the_plan_of_this_gpu_is_missing(open_release: Opened, plan_artifact: Artifact) -> None:
    (plan_artifact.path / "model.sm86.plan").unlink()
    with pytest.raises(ArtifactError, match=r"^[^\n]*model\.sm86\.plan cannot be read[^\n]*$"):
        open_release(RTX_RELEASE)


def test_open_runner_says_that_a_stripped_plan_has_no_weights(open_release: Opened, machine: Machine) -> None:
    with pytest.raises(BackendUnavailableError, match=r"^built; not run: it has no weights[^\n]*$"):
        open_release("tensorrt-10.3.0", stripped=True)
    assert machine.script.built == []


@pytest.mark.parametrize("release", RELEASES)
def test_open_runner_allows_host_code_for_version_compatible_plans_only(
    open_release: Opened, machine: Machine, release: str
) -> None:
    open_release(release)
    assert "Runtime.engine_host_code_allowed" not in machine.script.assigned
    open_release(release, version_compatible=True)
    assert machine.script.assigned["Runtime.engine_host_code_allowed"] is True


@pytest.mark.parametrize(
    ("diagnostics", "error", "said"),
    [
        (32, ArtifactError, r"sm86\.plan is not an engine of TensorRT-RTX or is damaged"),
        (2 | 4, BackendUnavailableError, r"cannot run [^\n]* here: unsupported cc, old cuda driver"),
    ],
)
def test_open_runner_asks_the_header_of_a_plan_for_rtx(
    open_release: Opened, machine: Machine, diagnostics: int, error: type[Exception], said: str
) -> None:
    machine.script.diagnostics = diagnostics
    with pytest.raises(error, match=said):
        open_release(RTX_RELEASE)
    assert open_release("tensorrt-11.4.0.106")


@pytest.mark.parametrize("kind", ["BOOL", "INT8"])
def test_open_runner_raises_when_an_output_has_a_strange_type(
    open_release: Opened, machine: Machine, kind: str
) -> None:
    machine.script.outputs = {"logits": kind}
    with pytest.raises(ArtifactError, match=rf"'logits' of [^\n]* is DataType\.{kind}; expected one of FLOAT"):
        open_release(RTX_RELEASE)


def test_open_runner_says_which_gpu_is_here_when_the_engine_is_for_others(
    open_release: Opened, machine: Machine
) -> None:
    machine.capability = (12, 0)
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86, SM89; not run: this GPU is SM120$"):
        open_release(RTX_RELEASE)
    assert machine.script.built == []


def test_open_runner_touches_no_runtime_when_there_is_no_gpu(
    open_release: Opened, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86, SM89; not run: no GPU$"):
        open_release(RTX_RELEASE)
    with pytest.raises(BackendUnavailableError, match=r"^built; not run: no GPU$"):
        open_release("tensorrt-10.3.0")
    assert machine.script.built == []


def test_open_runner_says_so_when_pytorch_has_no_cuda(open_release: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86, SM89; not run: this PyTorch has no CUDA"):
        open_release(RTX_RELEASE)


@pytest.mark.parametrize("release", [*RELEASES, RTX_RELEASE])
def test_open_runner_gives_the_words_of_tensorrt_when_the_engine_cannot_be_loaded(
    open_release: Opened, machine: Machine, release: str
) -> None:
    machine.script.loads, machine.script.errors = False, ("the plan is of another version",)
    with pytest.raises(ArtifactError, match=r"^[^\n]*\.plan: the plan is of another version$"):
        open_release(release)


def test_open_runner_says_that_an_engine_is_of_another_release(open_release: Opened, machine: Machine) -> None:
    machine.script.loads = False
    with pytest.raises(
        ArtifactError, match=r"^it was built with TensorRT 1\.7\.1, and here is 11\.4\.0\.106; build it again: "
    ):
        open_release(RELEASES[-1])


def test_open_runner_gives_the_words_of_tensorrt_in_one_line(open_release: Opened, machine: Machine) -> None:
    machine.script.loads, machine.script.errors = False, ("the plan is\n  of another version",)
    with pytest.raises(ArtifactError, match=r"^[^\n]*: the plan is of another version$"):
        open_release(RTX_RELEASE)


def test_open_runner_raises_when_no_context_can_be_made(open_release: Opened, machine: Machine) -> None:
    machine.script.contexts = False
    with pytest.raises(ArtifactError, match=r"^[^\n]+$"):
        open_release(RTX_RELEASE)


def test_open_runner_prints_the_install_line_when_the_bindings_are_missing(
    plan_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'tensorrt_rtx"):
        open_runner(plan_artifact)


@pytest.mark.parametrize("release", [*RELEASES, RTX_RELEASE])
def test_profile_has_the_median_of_each_kernel_and_the_nodes_that_it_was_made_from(
    release: str, machine: Machine, plan_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = create_stand_in(release, machine.script)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    details = details_for(release, plan_artifact)
    if release != RTX_RELEASE:
        (plan_artifact.path / "model.sm86.plan").rename(plan_artifact.path / "model.plan")
        files = (describe_file(plan_artifact.path / "model.plan"),)
        plan_artifact = dataclasses.replace(plan_artifact, files=files)
    machine.script.layers = json.dumps(
        {"Layers": [{"Name": "fused", "Metadata": "[ONNX Layer: a/MatMul]\x1e[ONNX Layer: a/Add]"}]}
    )
    runner = open_profiled(dataclasses.replace(plan_artifact, details=details))
    for ms in (9.0, 2.0, 1.0):
        machine.script.kernels = {"fused": ms, "b/Conv": 0.5}
        runner.logits(np.ones((1, 3, SIDE, SIDE), np.float32))
    assert runner.kernels() == (Kernel("fused", "", 2.0, ("a/MatMul", "a/Add")), Kernel("b/Conv", "", 0.5))
