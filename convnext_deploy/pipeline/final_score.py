"""The test images are scored once, at the end: the artifact to ship and its baseline, and nothing was chosen by them."""

from collections.abc import Callable
from dataclasses import replace

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.division import Division
from convnext_deploy.evaluation.gate import measure_drop
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.pipeline.ledger import Ledger
from convnext_deploy.reports.label_rows import label_accuracy
from convnext_deploy.reports.model_card import shipped_row
from convnext_deploy.reports.record import TestResult


def score_test(ledger: Ledger, measure: Callable[[str, Artifact, Data], Measurement]) -> None:
    """Score the artifact that the model card is about, and its baseline, on the test images, if there are any.

    Args:
        ledger: of a run whose stages are done; the result is entered.
        measure: of the artifact of a name, on the data whose validation images are those of the test.
    """
    data, row = ledger.data, shipped_row(ledger.report)
    if data is None or data.test is None or row is None or row.accuracy is None:
        return
    test = replace(data, validation=data.test, test=None, division=Division())
    score = measure(row.name, ledger.artifacts[row.name], test).score
    if score is None:
        return
    result = TestResult(row.name, score.total, score.value, metric=score.metric)
    name = row.provenance.baseline
    if name is not None and (baseline := measure(name, ledger.artifacts[name], test).score) is not None:
        result = replace(result, baseline=name, baseline_top1=baseline.value)
        if score.answers is None:
            drop = measure_drop(score, baseline)
            return ledger.change(test=replace(result, drop=drop, change=drop.change))
        compared = label_accuracy(score, "", "", baseline)
        result = replace(result, change=compared.change)
    return ledger.change(test=result)
