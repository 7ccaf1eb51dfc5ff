"""The model card: front matter as the hub reads it, and code that runs."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import GraphIO, Preprocess, default_preprocess
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.model_card import render_model_card, shipped_row
from convnext_deploy.reports.record import Report, read_report
from convnext_deploy.reports.usage_code import write_usage
from convnext_deploy.runners import open_runner
from tests.conftest import draw_image
from tests.reports.conftest import (
    BASELINE_ROW,
    ENGINE_ROW,
    HOSTILE,
    INT8_ROW,
    PASSED_ROW,
    change,
    create_large_report,
    create_report,
)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def front_matter(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    return found


def test_card_of_a_run_is_one_that_the_hub_reads(small_run: RunResult) -> None:
    report = small_run.report
    card = ModelCard(render_model_card(report))
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"], data["metrics"]) == (
        "image-classification",
        "convnext_deploy",
        ["accuracy"],
    )
    assert {"onnx", "int8", "convnext"} <= set(data["tags"])
    assert isinstance(card.data, ModelCardData)
    results = card.data.eval_results
    assert results is not None
    measured = {result.metric_name: result.metric_value for result in results}
    expected = {f"Top-1 accuracy, {row.name}": row.accuracy.top1 for row in report.rows if row.accuracy is not None}
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    # what the hub's own library writes of it again is the same
    assert data["model-index"] == front_matter(render_model_card(report))["model-index"]


@pytest.mark.parametrize(
    "report",
    [
        create_report(),
        create_report(BASELINE_ROW, INT8_ROW, ENGINE_ROW),
        create_report(ENGINE_ROW, data="none", validation_images=0, environment={}, complete=False),
        create_large_report(),
        create_report(
            BASELINE_ROW, recipe="a: b\n---\nlicense: mit", data='x"y\\: #', class_names=("a|b", "<img src=x>", "`c`")
        ),
        create_report(change(BASELINE_ROW, preprocess=None, format="onnx", file="model.onnx")),
        create_report(BASELINE_ROW, recipe="\udcff\x7f\x85\U0001f600", data="/\udcff"),
        read_report(RESULTS / "cifar10.json"),
    ],
    ids=["nothing", "ordinary", "not run", "large", "code", "no preprocessing", "no text", "published"],
)
def test_card_of_any_report_is_one_that_the_hub_reads(report: Report) -> None:
    text = render_model_card(report)
    text.encode("utf-8")
    data = ModelCard(text).data.to_dict()
    assert (data["pipeline_tag"], data["license"]) == ("image-classification", "unknown")
    for heading in ("Intended use and limits", "How to use", "How it was made", "Environment"):
        assert f"\n## {heading}\n" in text
    assert "<img" not in text
    assert HOSTILE not in text.split("```sh")[0].split("\n---\n", 1)[1]


@pytest.mark.parametrize(
    ("license_", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("Our own, see LICENSE", {"license": "other", "license_name": "Our own, see LICENSE"}),
        (None, {"license": "unknown"}),
    ],
)
def test_license_is_what_is_known(license_: str | None, expected: dict[str, str]) -> None:
    found = front_matter(render_model_card(create_report(change(BASELINE_ROW, license=license_))))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


@pytest.mark.parametrize(
    ("source", "base", "expected"),
    [
        ("timm/convnext_tiny.fb_in1k", None, "timm/convnext_tiny.fb_in1k"),
        ("hf-hub:owner/name", None, "owner/name"),
        ("some/folder", "timm/convnext_atto.d2_in1k", "timm/convnext_atto.d2_in1k"),
        ("some/folder", None, None),
    ],
)
def test_base_model_is_named_as_on_the_hub(source: str, base: str | None, expected: str | None) -> None:
    report = create_report(change(BASELINE_ROW, base_model=base), source=source)
    assert front_matter(render_model_card(report)).get("base_model") == expected


def test_card_is_about_the_fastest_graph_that_failed_no_gate() -> None:
    fp32 = change(BASELINE_ROW, name="onnx-fp32", format="onnx", p50_ms=2.0)
    fast = change(PASSED_ROW, name="onnx-int8", p50_ms=1.0)
    failed = change(INT8_ROW, p50_ms=0.5)
    for rows, expected in (
        ((BASELINE_ROW, fp32, fast, failed), "onnx-int8"),
        ((BASELINE_ROW, fp32), "onnx-fp32"),
        ((failed,), "onnx-INT8"),
    ):
        shipped = shipped_row(create_report(*rows))
        assert shipped is not None
        assert shipped.name == expected
    assert shipped_row(create_report()) is None


def test_card_warns_of_failed_gates_and_unfinished_runs() -> None:
    text = render_model_card(create_report(BASELINE_ROW, INT8_ROW, complete=False))
    assert "**Failed gates: `onnx-INT8`; do not ship these.**" in text
    assert "**The run is not complete.**" in text


def run_code(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    monkeypatch.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "card", "exec"), {})
    return [(name, float(score)) for name, _, score in (line.rpartition(" ") for line in out.getvalue().splitlines())]


def test_code_on_the_card_gives_what_our_runner_gives(
    small_run: RunResult, small_artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", render_model_card(small_run.report), re.DOTALL)
    shipped = shipped_row(small_run.report)
    assert shipped is not None
    artifact = small_artifacts[shipped.name]
    image = draw_image(1, np.random.default_rng(7), side=50).crop((0, 0, 50, 41))
    image.save(tmp_path / "image.png")
    (tmp_path / "stages").symlink_to(artifact.path.parent)
    found = dict(run_code(code.replace("image.jpg", "image.png"), tmp_path, monkeypatch))
    pixels = torch.from_numpy(evaluation_transform(image, artifact.preprocess)[None].copy())
    runner = open_runner(artifact, "cpu")
    logits = runner.logits(normalize(pixels, artifact.preprocess).contiguous().numpy())[0]
    assert artifact.class_names is not None
    expected = dict(zip(artifact.class_names, map(float, logits), strict=True))
    assert found == pytest.approx(expected, abs=1e-4)


def test_code_says_what_a_graph_of_pixels_and_the_best_classes_takes() -> None:
    preprocess = Preprocess(32, 1.0, "bilinear", (0.5,), (0.5,), "squash")
    graph = GraphIO("uint8", "nhwc", "top-k", top_k=3, batch_size=2)
    code = write_usage("stages/x", "model.onnx", preprocess, graph)
    compile(code, "card", "exec")
    assert '.convert("L")' in code
    assert "np.stack([pixels] * 2)" in code
    assert "pixels.transpose" not in code
    assert "/ 255" not in code
    assert "(32, 32)" in code
    assert Image.Resampling.BILINEAR.name in code


def test_code_runs_fp8_on_older_releases_of_onnxruntime_too() -> None:
    entry = 'options.add_session_config_entry("session.disable_quant_qdq", "1")'
    fp8, int8 = (
        write_usage("stages/x", "model.onnx", default_preprocess(32), None, precision=precision)
        for precision in ("fp8-fp16", "int8-fp16")
    )
    compile(fp8, "card", "exec")
    assert fp8.index(entry) < fp8.index('InferenceSession(f"{FOLDER}/{FILE}", options, providers=')
    assert "options" not in int8
