"""What a report says of the epochs of a training: the best, and the one whose weights are the result."""

from collections.abc import Sequence

from convnext_deploy.metrics.epochs import Figures, best_epoch, result_epoch, score_of


def describe_best(epochs: Sequence[Figures]) -> str:
    """Return the best epoch by the validation images and which one is the result, as a part of a sentence that goes on."""
    best, result = best_epoch(epochs), result_epoch(epochs)
    if best is None or result is None:
        return ""
    scored = [name for name in ("top-1", "mAP") if any(name.replace("-", "").lower() in key for key in _names(epochs))]
    if not scored:
        return f", least loss after epoch {best + 1}"
    text = f", best {scored[0]} {_percent(epochs[best])} % after epoch {best + 1}"
    if best_epoch(epochs, "selection") is not None:
        return f"{text}; epoch {result + 1} is the result, the best by training images set aside"
    if result != best and score_of(epochs[result]) is not None:
        text += f", and {_percent(epochs[result])} % after the last, which is the result"
    return text


def _names(epochs: Sequence[Figures]) -> set[str]:
    return {key for epoch in epochs for key in epoch}


def _percent(epoch: Figures) -> str:
    score = score_of(epoch)
    return "–" if score is None else f"{100 * score[0]:.2f}"
