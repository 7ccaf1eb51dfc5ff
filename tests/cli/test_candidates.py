"""`quantize --target auto`: which forms are made for a GPU, what is said of them, and that the printed bundle has them all."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from convnext_deploy.api.candidates import forms_for
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import Profile
from convnext_deploy.errors import DeployError
from convnext_deploy.exporters.tensorrt.build import build_engine
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions
from convnext_deploy.graphs.engine_precisions import read_plan_nodes, report_precisions
from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.system.progress import SilentProgress
from tests.cli.conftest import call

_SAID = {
    "orin": (
        ("int8-onnx: SM87 computes INT8; TensorRT documents it", "no fp8: SM87 computes none"),
        ("int8", "int8-onnx", "fp16-onnx"),
    ),
    "rtx-4070": (
        ("fp8-onnx: SM89 computes FP8, which TensorRT and TensorRT-RTX document", "int8-onnx: SM89 computes INT8; "),
        ("fp8", "fp8-onnx", "int8", "int8-onnx", "fp16-onnx"),
    ),
}
"""GPU → what is said of the forms, and the last rows of the report."""

HERE = ("--workers", "0", "--device", "cpu", "--calibration-images", "12", "--calibration-method", "minmax")


@pytest.mark.parametrize(
    ("gpus", "capability", "computes_fp8"),
    [
        (("orin",), "SM87", False),
        (("rtx-3060", "RTX 3070"), "SM86", False),
        (("t4",), "SM75", False),
        (("rtx-4070",), "SM89", True),
        (("thor",), "SM110", True),
        (("h100",), "SM90", True),
        (("rtx-5090",), "SM120", True),
    ],
)
def test_forms_are_those_that_a_gpu_computes(gpus: tuple[str, ...], capability: str, *, computes_fp8: bool) -> None:
    found, forms, without = forms_for(gpus)
    assert found == capability
    expected = ["fp8", "int8", "fp16"] if computes_fp8 else ["int8", "fp16"]
    assert [form.precision for form in forms] == expected
    assert bool(without) == (len(forms) == 2)
    if not computes_fp8:
        assert without == (f"no fp8: {capability} computes none, which begins with Ada (SM89)",)


def test_what_nvidia_documents_for_rtx_is_said_and_for_jetson_is_not() -> None:
    for gpu, of_rtx in (("rtx-4070", True), ("orin", False), ("h100", False), ("t4", False)):
        (int8,) = (form for form in forms_for((gpu,))[1] if form.precision == "int8")
        assert ("TensorRT-RTX documents FP8 and weight-only INT8 alone" in int8.reason) == of_rtx


@pytest.mark.parametrize("gpu", ["h100", "b200", "b300", "thor", "rtx-4070", "rtx-5090", "gb10"])
def test_fp8_is_said_to_be_documented_for_rtx_where_rtx_builds_for_the_gpu(gpu: str) -> None:
    fp8 = forms_for((gpu,))[1][0]
    of_rtx = gpu in ("rtx-4070", "rtx-5090", "gb10")
    documented = "TensorRT and TensorRT-RTX document" if of_rtx else "TensorRT documents"
    assert fp8.reason.endswith(f" computes FP8, which {documented}")


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (("orin", "rtx-4070"), "these are SM87, SM89; run it once for each"),
        (("xavier",), "SM72 is older than Turing"),
        (("rtx-9999",), "the GPU 'rtx-9999' is unknown"),
    ],
)
def test_gpus_that_have_no_choice_in_common_are_refused(gpus: tuple[str, ...], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        forms_for(gpus)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "auto"), "say which with --gpu"),
        (("--gpu", "orin"), "--gpu counts with --target auto only"),
        (("--target", "auto", "--gpu", "orin,thor"), "run it once for each"),
    ],
)
def test_target_and_gpu_go_together(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    outcome = call("quantize", "convnext_atto.d2_in1k", *options, "--data", tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert message in outcome.err


@pytest.mark.heavy
@pytest.mark.parametrize("gpu", ["orin", "rtx-4070"])
def test_bundle_that_is_printed_has_every_form(
    gpu: str, small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    said, made = _SAID[gpu]
    source = next(artifact for artifact in small_artifacts.values() if artifact.is_baseline)
    outcome = call(
        "quantize", source.path, "--target", "auto", "--gpu", gpu, "--data", image_folder, *HERE, "--max-drop", "100",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for line in said:
        assert line in outcome.err
    follows = [line.removeprefix("next: ") for line in outcome.err.splitlines() if line.startswith("next: ")]
    assert follows[1:] == [
        "on the device, in the bundle: bash build_on_device.sh --choose",
        f"convnext-deploy collect {tmp_path / 'run'} measured.json",
    ]
    rows = [row["identity"]["name"] for row in json.loads((tmp_path / "run" / "report.json").read_text())["rows"]]
    assert rows[-len(made) :] == list(made)
    bundled = call(*shlex.split(follows[0])[1:])
    assert bundled.code == 0, bundled.err
    (bundle,) = tmp_path.glob("run-bundle*")
    record = json.loads((bundle / "bundle.json").read_text())
    precisions = {name.removesuffix("-onnx") for name in made if name.endswith("-onnx")}
    assert {model["precision"].removesuffix("-fp16") for model in record["models"]} == precisions
    if gpu == "rtx-4070":
        _build_all(bundle, [model["file"] for model in record["models"]])


def _build_all(bundle: Path, files: list[str]) -> None:
    """Build what the device would build, by TensorRT-RTX, which needs no GPU for it; all products of FP8 and INT8 are such."""
    pytest.importorskip("tensorrt_rtx")
    for file in files:
        path = bundle / file
        options = BuildOptions(Profile(1, 1, 1), optimization_level=1)
        engine = build_engine(path, flavor="tensorrt-rtx", gpu="SM89", options=options, progress=SilentProgress())
        report = report_precisions(read_plan_nodes(engine.plan), open_view(path))
        assert report is not None
        assert (report.requested_fp8 > 0) == ("fp8" in file)
        assert report.nodes.get("FP8", 0) == report.requested_fp8
