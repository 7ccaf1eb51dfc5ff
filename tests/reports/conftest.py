"""Rows and reports with known numbers."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from convnext_deploy.artifacts.details import Selection, Step
from convnext_deploy.config.recipe import Gate
from convnext_deploy.evaluation.calibration import compare_calibration
from convnext_deploy.evaluation.flips import ClassChange, Flip, compare_classes, find_flips
from convnext_deploy.evaluation.gate import Verdict, measure_drop
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.evaluation.mistakes import find_confusions, find_sure_errors, score_classes
from convnext_deploy.evaluation.score import Score
from convnext_deploy.evaluation.timing.layer_times import LayerExcess
from convnext_deploy.evaluation.timing.speedup import Speed, Speedup
from convnext_deploy.metrics.paired import Drop
from convnext_deploy.reports.record import (
    Accuracy,
    History,
    Identity,
    Layer,
    MeasuredSpeed,
    Provenance,
    Report,
    StageRow,
)

BASELINE_ROW = StageRow(
    Identity(
        name="student",
        kind="distill",
        artifact="out/stages/student",
        variant="convnext_atto",
        format="torch",
        precision="fp32",
        size_bytes=13_513_756,
    ),
    Accuracy(runner="torch", device="cpu", correct=521, total=540, top1=521 / 540, top5=1.0),
    speed=MeasuredSpeed(Latency(1, p50_ms=1.236, p90_ms=2.5)),
    history=History(wall_s=61.25),
)
INT8_ROW = StageRow(
    Identity(
        name="onnx-INT8",
        kind="onnx",
        artifact="out/stages/student",
        variant="convnext_atto",
        format="onnx",
        precision="int8",
        size_bytes=3_849_999,
    ),
    Accuracy(
        runner="onnxruntime",
        device="cpu",
        correct=519,
        total=540,
        top1=519 / 540,
        top5=1.0,
        source_drop_pp=-100 * 1 / 540,
        drop=Drop(518, 3, 1, 18, 537 / 540, 100 * 2 / 540, (-0.5, 1.234), 0.625),
        flipped=3,
        classes=(ClassChange(0, "cat", 270, 260, 258, 3, 1, 100 * 2 / 270, 1.0),),
        flips=(Flip(17, "val/cat/17.png", 0, 0, 1, "lost"),),
    ),
    verdict=Verdict(False, ("top-1 drops by 0.37 pp, more than the 0.10 pp allowed",), False, 15_699),
    speed=MeasuredSpeed(Latency(1, p50_ms=1.236, p90_ms=2.5)),
    history=History(wall_s=0.04),
    provenance=Provenance(baseline="student", gate=Gate(max_top1_drop_pp=0.1)),
    notes=("not faster | than student",),
)
ENGINE_ROW = StageRow(
    Identity(
        name="engine",
        kind="tensorrt",
        artifact="out/stages/engine",
        variant="convnext_atto",
        format="tensorrt",
        precision="int8",
        size_bytes=9_000_000,
    ),
    not_run="built for SM86; not run: no GPU",
    history=History(wall_s=30.0),
    provenance=Provenance(baseline="student"),
)
SPEED = Speed(
    "student-float-onnxruntime",
    "out/stages/student-float-onnxruntime",
    "onnxruntime",
    "onnxruntime",
    "cpu",
    (Speedup(1, 0.5, 0.4, 0.6, 11.0, 5.5),),
    (LayerExcess("stages.0.0.pwconv1", 9.31, 0.62, 0.1, 0.78),),
)


def change(row: StageRow, **changes: Any) -> StageRow:
    """Return a row with fields replaced, of it or of the records in it: the first that has a field of the name."""
    left = dict(changes)
    found: StageRow = _change(row, left)
    assert not left, f"no such fields: {', '.join(left)}"
    return found


def _change(record: Any, left: dict[str, Any]) -> Any:
    fields = dataclasses.fields(record)
    new = {field.name: left.pop(field.name) for field in fields if field.name in left}
    inner = {field.name: getattr(record, field.name) for field in fields if field.name not in new}
    changed = {name: _change(value, left) for name, value in inner.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(record, **changed, **new)


UNPROVEN_ROW = change(INT8_ROW, name="qat", passed=True, reasons=(), notes=())
PASSED_ROW = change(UNPROVEN_ROW, name="ptq", proven=True, images_needed=None)
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


HOSTILE = "<script>alert('x')</script> \"&\" <b>%{x}</b>"
_DOT = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def scored(classes: int, changed: int = 0) -> dict[str, Any]:
    """Return the fields of `Accuracy` that answers to 10 images of each class give, of which every 7th is wrong.

    The first guess of `changed` images is not the baseline's, which is what comes of none.
    """
    labels = np.repeat(np.arange(classes), 10)
    draws = np.random.default_rng(0).random(len(labels))
    shift = 1 + np.arange(len(labels)) % min(3, classes - 1)
    before = np.where(np.arange(len(labels)) % 7 == 3, (labels + shift) % classes, labels)
    now = before.copy()
    now[3 : 3 + 7 * changed : 7] = labels[3 : 3 + 7 * changed : 7]
    now[4 : 4 + 9 * changed : 9] = (labels[4 : 4 + 9 * changed : 9] + 1) % classes

    def score(guesses: Any) -> Score:
        right = guesses == labels
        sure = tuple(np.where(right, 0.5 + draws / 2, 0.3 + draws / 2).tolist())
        return Score(int(right.sum()), len(labels), tuple(guesses.tolist()), tuple(labels.tolist()), sure)

    baseline = None if changed == 0 else score(before)
    own = score(now)
    return {
        "correct": own.correct,
        "total": own.total,
        "top1": own.top1,
        "per_class": score_classes(own),
        "confusions": find_confusions(own, baseline),
        "errors": find_sure_errors(own, lambda index: f"val/{HOSTILE}/{index}.png", 8),
        "calibration": compare_calibration(own, baseline),
        **(
            {}
            if baseline is None
            else {
                "drop": measure_drop(own, baseline),
                "classes": compare_classes(own, baseline, [_name(label) for label in range(classes)]),
                "flips": find_flips(own, baseline, lambda index: f"val/{HOSTILE}/{index}'\".png")[:12],
            }
        ),
    }


def _name(label: int) -> str:
    return HOSTILE if label == 1 else f"class {label}, with a rather long name as in ImageNet"


def create_full_report(classes: int) -> Report:
    """Return a report of a baseline and of two artifacts that answer differently, with everything that a run measures."""
    names, times = tuple(_name(label) for label in range(classes)), [1.0 + 0.01 * (i % 37) for i in range(200)]
    student = change(BASELINE_ROW, num_classes=classes, times_ms=tuple(times), **scored(classes))
    simulated = change(
        UNPROVEN_ROW,
        name="qat",
        format="torch",
        runner="torch",
        p50_ms=8.0,
        times_ms=(8.0, 8.5, 9.0),
        **scored(classes, 1),
    )
    graph = change(INT8_ROW, times_ms=tuple(0.3 * time for time in times), p50_ms=0.3, **scored(classes, 3))
    thumbnails = {str(index): _DOT for index in range(0, 10 * classes, 2)}
    return create_report(student, simulated, graph, class_names=names, thumbnails=thumbnails, started_in="/home/me")


def create_large_report(classes: int = 1000) -> Report:
    """Return a report with everything in it: so many classes, names that look like code, steps tried, training and pictures."""
    changes = tuple(
        ClassChange(
            label=label,
            name=HOSTILE if label == 6 else f"class {label}, with a rather long name as in ImageNet",
            total=50,
            baseline_correct=40,
            correct=40 - (lost := label % 7) + (gained := (label // 7) % 5),
            lost=lost,
            gained=gained,
            top1_drop_pp=2.0 * (lost - gained),
            p_value=0.03 if label % 50 == 6 else 1.0,
        )
        for label in range(classes)
    )
    kinds: tuple[Literal["lost", "gained", "other"], ...] = ("lost", "gained", "other", "lost")
    flips = tuple(
        Flip(index, f"val/{HOSTILE}/{index}'\".png", index, index, (index + 1) % classes, change)
        for index, change in enumerate(kinds)
    )
    layers = tuple(
        Layer(
            f"stages.{stage}.{block}.{part}",
            "float" if (stage, block) == (0, 0) else "int8",
            4000,
            10.0**-block,
            0.01,
            10**6,
        )
        for stage, depth in enumerate((3, 3, 9, 3))
        for block in range(depth)
        for part in ("dwconv", "pwconv1", "pwconv2")
    )
    epochs = tuple(
        {
            "epoch": epoch,
            "train_loss": 3.0 / epoch,
            "learning_rate": 1e-3 / epoch,
            "validation_loss": None if epoch == 2 else 2.5 / epoch,
            "validation_top1": 1 - 1 / epoch,
        }
        for epoch in range(1, 61)
    )
    step = Step("min-max", 0.8, 0.1, (-0.5, 0.6), 0.99, None, None, 0.3, 1.5, passed=False)
    student = change(BASELINE_ROW, epochs=epochs, num_classes=classes)
    quantized = change(
        UNPROVEN_ROW,
        name="quantize",
        kind="quantize",
        format="torch",
        runner="torch",
        layers=layers,
        selection=Selection(
            (step, dataclasses.replace(step, name="smoothing", kl=1e-4, sqnr_db=33.0, passed=True)),
            chosen="smoothing",
            reason="its risk is small",
            max_drop_pp=0.5,
        ),
        classes=changes,
        flips=flips,
        p50_ms=9.0,
    )
    graph = change(INT8_ROW, classes=changes, flips=flips, p50_ms=0.7, notes=(HOSTILE,))
    return create_report(
        student,
        quantized,
        graph,
        ENGINE_ROW,
        recipe=HOSTILE,
        data=f"/data/{HOSTILE}",
        command=f"convnext-deploy run {HOSTILE}",
        class_names=tuple(change.name for change in changes),
        thumbnails={"0": _DOT, "1": _DOT, "3": "javascript:alert(1)"},
    )
