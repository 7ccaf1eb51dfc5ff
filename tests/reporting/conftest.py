"""Rows and reports with known numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from convnext_deploy.reporting.record import Report, StageRow
from convnext_deploy.validation.changes import ClassChange, Flip

BASELINE_ROW = StageRow(
    name="student",
    kind="distill",
    artifact="out/stages/student",
    variant="convnext_atto",
    format="torch",
    precision="fp32",
    size_bytes=13_513_756,
    wall_s=61.25,
    runner="torch",
    device="cpu",
    correct=521,
    total=540,
    top1=521 / 540,
    top5=1.0,
    latency_p50_ms=1.236,
    latency_p90_ms=2.5,
)
INT8_ROW = dataclasses.replace(
    BASELINE_ROW,
    name="onnx-INT8",
    kind="onnx",
    format="onnx",
    precision="int8",
    size_bytes=3_849_999,
    wall_s=0.04,
    runner="onnxruntime",
    correct=519,
    top1=519 / 540,
    baseline="student",
    agreement=537 / 540,
    top1_drop_pp=100 * 2 / 540,
    top1_drop_interval_pp=(-0.5, 1.234),
    mcnemar_p=0.625,
    lost=3,
    gained=1,
    flipped=3,
    source_drop_pp=-100 * 1 / 540,
    gate={"max_top1_drop_pp": 0.1, "min_top1": None, "on": "point"},
    passed=False,
    proven=False,
    images_needed=15_699,
    reasons=("top-1 drops by 0.37 pp, more than the 0.10 pp allowed",),
    notes=("not faster | than student",),
    classes=(ClassChange(0, "cat", 270, 260, 258, 3, 1, 100 * 2 / 270, 1.0),),
    flips=(Flip(17, "val/cat/17.png", 0, 0, 1, "lost"),),
)
ENGINE_ROW = StageRow(
    name="engine",
    kind="tensorrt",
    artifact="out/stages/engine",
    variant="convnext_atto",
    format="tensorrt",
    precision="int8",
    size_bytes=9_000_000,
    wall_s=30.0,
    baseline="student",
    not_run="built for SM86; not run: no GPU",
)
UNPROVEN_ROW = dataclasses.replace(INT8_ROW, name="qat", passed=True, reasons=(), notes=())
PASSED_ROW = dataclasses.replace(UNPROVEN_ROW, name="ptq", proven=True, images_needed=None)
ENVIRONMENT = {"cpu": "AMD EPYC", "cores": 2, "system": "Linux", "versions": {"python": "3.12.1", "torch": "2.14.0"}}


def create_report(*rows: StageRow, **changes: Any) -> Report:
    values: dict[str, Any] = {
        "recipe": "small",
        "data": "photos",
        "validation_images": 540,
        "seed": 7,
        "environment": ENVIRONMENT,
        "rows": rows,
        "complete": True,
    }
    return Report(**(values | changes))
