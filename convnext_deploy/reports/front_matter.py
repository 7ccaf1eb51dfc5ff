"""The YAML at the head of a model card, as Hugging Face's hub reads it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from convnext_deploy.artifacts.artifact import quantized_type
from convnext_deploy.evaluation.metric import METRICS
from convnext_deploy.models.checkpoints.hub import is_weights_name
from convnext_deploy.reports.escaping import quoted
from convnext_deploy.reports.record import Report, StageRow

_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")


def write_front_matter(report: Report, name: str) -> str:
    """Return the YAML between its two lines of dashes.

    The hub's own fields: license, base model, tags, and top-1 and top-5 of every artifact as `model-index`. What is not known is
    left out, but the license, which the hub wants, is then `unknown`.

    Args:
        report: of the run.
        name: of the model.
    """
    content: dict[str, Any] = {
        **_license(report),
        "library_name": "convnext_deploy",
        "pipeline_tag": report.metric.hub_task,
        "tags": _tags(report),
    }
    if (base := base_model(report)) is not None:
        content["base_model"] = base
    metrics = [metric for row in report.rows for metric in _metrics(row)]
    if metrics:
        data = PurePath(report.data).name or "images"
        result = {
            "task": {"type": report.metric.hub_task, "name": report.metric.hub_task.replace("-", " ").title()},
            "dataset": {"type": re.sub(r"[^\w.-]+", "-", data, flags=re.ASCII), "name": data, "split": "validation"},
            "metrics": metrics,
        }
        content |= {
            "metrics": list(dict.fromkeys(metric["type"] for metric in metrics)),
            "model-index": [{"name": name, "results": [result]}],
        }
    return "\n".join(["---", *_lines(content, ""), "---"])


def base_model(report: Report) -> str | None:
    """Return the published weights that the last artifact began with, by their name on the hub."""
    if report.source is not None and is_weights_name(report.source) and "/" in report.source:
        return report.source.removeprefix("hf-hub:")
    return next((base for row in reversed(report.rows) if (base := row.provenance.base_model)), None)


def known_license(report: Report) -> str | None:
    """Return the license of the last artifact of which one is known."""
    return next((found for row in reversed(report.rows) if (found := row.provenance.license)), None)


def _license(report: Report) -> dict[str, str]:
    found = known_license(report)
    if found is None:
        return {"license": "unknown"}
    return {"license": found} if _LICENSE_ID.fullmatch(found) else {"license": "other", "license_name": found}


def _tags(report: Report) -> list[str]:
    formats = dict.fromkeys(row.identity.format for row in report.rows)
    precisions = dict.fromkeys(row.identity.precision for row in report.rows if row.identity.precision != "fp32")
    names = {"torch": "pytorch", "torch-tensorrt": "tensorrt"}
    tags = [report.metric.hub_task, "convnext", *(names.get(name, name) for name in formats), *precisions]
    return list(dict.fromkeys([*tags, *(["quantized"] if any(quantized_type(p) for p in precisions) else [])]))


def _metrics(row: StageRow) -> Iterator[dict[str, Any]]:
    if (found := row.accuracy) is None:
        return
    if found.multi_label is not None:
        yield {"type": "mean_average_precision", "name": f"mAP, {row.name}", "value": round(found.value, 6)}
        if found.multi_label.auc is not None:
            yield {"type": "roc_auc", "name": f"mean AUC, {row.name}", "value": round(found.multi_label.auc, 6)}
        return
    for what, value in ((METRICS[found.metric].title, found.top1), (METRICS[found.metric].second_title, found.top5)):
        if value is not None:
            yield {"type": "accuracy", "name": f"{what} accuracy, {row.name}", "value": round(value, 6)}


def _lines(value: Any, indent: str) -> Iterator[str]:
    """Yield YAML in block style; every text is quoted, so that none is taken for something else."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if isinstance(entry, Mapping | list):
                yield f"{indent}{key}:"
                yield from _lines(entry, f"{indent}  ")
            else:
                yield f"{indent}{key}: {_scalar(entry)}"
    elif isinstance(value, Sequence):
        for entry in value:
            if isinstance(entry, Mapping):
                first, *rest = _lines(entry, f"{indent}  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{indent}- {_scalar(entry)}"


def _scalar(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value)
