"""The stage that builds engines, given FP8: for which GPUs it does, and what it says of others."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import PrecisionReport
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.errors import ExportError
from convnext_deploy.stages import tensorrt
from tests.details import engine_details
from tests.exporters.quantized_product import write_product
from tests.exporters.recorded_progress import RecordingProgress
from tests.exporters.tensorrt_stand_in import Script
from tests.stages.test_engines import as_artifact, run, script, standard

__all__ = ["script", "standard"]  # fixtures


@pytest.fixture
def product_of_fp8(tmp_path: Path) -> Artifact:
    """One matrix product in FP8 and FP16."""
    path = write_product(tmp_path, "MatMul", dtype=np.float16, levels=ml_dtypes.float8_e4m3fn)
    return as_artifact(path, precision="fp8-fp16")


def test_run_builds_fp8_for_gpus_that_have_it_and_says_so(product_of_fp8: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    progress = RecordingProgress()
    config = TensorRTConfig(gpus=("rtx-4070,rtx-5080",), strict=True)
    engine = run(config, product_of_fp8, tmp_path / "engine", progress)
    expected = PrecisionReport({"FP8": 1}, 0, (), (), requested_fp8=1)
    assert engine_details(engine).precisions == {"SM89": expected, "SM120": expected}
    assert progress.said[0] == "engine: SM89: 1 of 1 FP8 MatMul/Conv nodes run in FP8 (all: 1 FP8)"


@pytest.mark.parametrize(
    ("gpus", "named"), [("sm86,sm89", "SM86"), ("a100", "SM80"), ("t4,rtx-3060", "SM75, SM86"), ("orin-nano", "SM87")]
)
def test_run_refuses_fp8_for_gpus_that_have_none(
    product_of_fp8: Artifact, tmp_path: Path, gpus: str, named: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(
        ExportError, match=rf"^FP8 needs SM89 or newer \([^\n]*\); asked for was {named}\. Leave [^\n]*$"
    ):
        run(TensorRTConfig(gpus=(gpus,)), product_of_fp8, tmp_path / "engine")
    assert not list((tmp_path / "engine").iterdir())


@pytest.mark.usefixtures("standard")
@pytest.mark.parametrize(("capability", "passes"), [("SM87", False), ("SM89", True), ("SM110", True)])
def test_run_builds_fp8_with_standard_tensorrt_where_the_gpu_has_it(
    product_of_fp8: Artifact,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    passes: bool,
) -> None:
    monkeypatch.setattr(tensorrt, "describe_gpus", lambda: {"gpus": [{"capability": capability}]})
    script.layers, script.input_shape = script.layers.replace("Int8", "FP8"), (-1, 4, 32)
    config = TensorRTConfig("tensorrt", strict=True)
    if passes:
        engine = run(config, product_of_fp8, tmp_path / "engine")
        report = engine_details(engine).precisions["this GPU"]
        assert report == PrecisionReport({"FP8": 1}, 0, (), (), requested_fp8=1)
    else:
        with pytest.raises(ExportError, match=rf"^FP8 needs SM89 or newer [^\n]* {capability}\."):
            run(config, product_of_fp8, tmp_path / "engine")
