"""The part of a row that is about the answers to multi-label data: what is scored, what it lost, and what to know of it."""

from collections.abc import Iterator, Mapping, Sequence

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.evaluation.gains import explain_gain
from convnext_deploy.evaluation.label_score import compare_labels, doubt_labels
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.multi_label import MultiLabel
from convnext_deploy.reports.record import Accuracy

_MOST_NAMED = 5  # labels in a remark


def label_accuracy(
    score: Score, runner: str, device: str, baseline: Score | None = None, source: Score | None = None
) -> Accuracy:
    """Return the score of an artifact, compared with its baseline, where that was scored, and with the run's source, if another."""
    assert score.answers is not None  # the caller has looked
    found = compare_labels(score.answers, None if baseline is None else baseline.answers)
    return Accuracy(
        runner=runner,
        device=device,
        correct=None,
        total=score.total,
        top1=None,
        top5=None,
        source_drop_pp=None if source is None else 100 * (source.value - found.map),
        metric=score.metric,
        multi_label=found,
    )


def doubts_of_labels(accuracy: Accuracy, artifact: Artifact, baseline: str) -> tuple[str, ...]:
    """Say why the figures may mean nothing: chance, or a gain that nothing explains."""
    found = accuracy.multi_label
    assert found is not None  # of multi-label data
    chance = doubt_labels(found)
    gain = None
    if not artifact.is_baseline and found.drop_pp is not None and found.drop_interval_pp is not None:
        low, high = found.drop_interval_pp
        if high < 0:
            gain = explain_gain(
                artifact, baseline, f"mAP is {-found.drop_pp:.2f} pp", f"95 % interval {-high:.2f} to {-low:.2f} pp"
            )
    return tuple(doubt for doubt in (chance, gain) if doubt is not None)


def remarks_on_labels(accuracy: Accuracy, names: Sequence[str] | None) -> Iterator[str]:
    """Say which labels have no figures, and which lose beyond chance."""
    found = accuracy.multi_label
    assert found is not None  # of multi-label data
    if missing := [each.label for each in found.classes if each.ap is None]:
        yield (
            f"no validation image has {_named(missing, names)}: the average precision is undefined, and mAP is the mean over the "
            f"other {len(found.classes) - len(missing):,} labels"
        )
    if whole := [each.label for each in found.classes if each.ap is not None and each.auc is None]:
        yield (
            f"every validation image has {_named(whole, names)}: no AUC is defined, and an average precision of 100 %, whatever is "
            "answered, counts in mAP"
        )
    worse = [each for each in found.classes if each.drop_interval_pp is not None and each.drop_interval_pp[0] > 0]
    if worse:
        worse.sort(key=lambda each: -(each.drop_pp or 0.0))
        texts = [f"{_name(each.label, names)} {each.drop_pp:+.1f} pp" for each in worse[:_MOST_NAMED]]
        more = f" and {len(worse) - _MOST_NAMED} more" if len(worse) > _MOST_NAMED else ""
        yield f"labels whose average precision drops beyond chance, for all labels at once: {', '.join(texts)}{more}"


def is_guessing(found: MultiLabel) -> bool:
    """Whether a score cannot be told from chance."""
    return doubt_labels(found) is not None


def guessing_names(scores: Mapping[str, Score], names: Sequence[str | None]) -> list[str]:
    """Return those of some artifacts whose scores on multi-label data cannot be told from chance."""
    answers = {name: scores[name].answers for name in names if name is not None and name in scores}
    return [name for name, each in answers.items() if each is not None and is_guessing(compare_labels(each))]


def _named(labels: Sequence[int], names: Sequence[str] | None) -> str:
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    return ", ".join(_name(label, names) for label in labels[:_MOST_NAMED]) + more


def _name(label: int, names: Sequence[str] | None) -> str:
    return f"label {label}" if names is None else f"'{names[label]}'"
