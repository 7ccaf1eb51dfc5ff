"""A gain of what only computes with less: a sign that the baseline is not evaluated as it was trained."""

from itertools import takewhile

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.image_size import show_size
from convnext_deploy.config.stages import STAGE_KINDS, stage_config, trains_a_network
from convnext_deploy.metrics.paired import SIGNIFICANCE, Drop


def doubt_gain(drop: Drop | None, artifact: Artifact, baseline: str) -> str | None:
    """Say that an artifact gains on its baseline beyond chance (exact McNemar), and what to check; None if it does not.

    Args:
        drop: against the baseline.
        artifact: INT8, or another format than its baseline's; a network that was trained on its own may gain.
        baseline: its name.
    """
    if drop is None or artifact.is_baseline or drop.top1_drop_pp >= 0 or drop.p_value > SIGNIFICANCE:
        return None
    beyond = f"exact McNemar p = {drop.p_value:.2g}"
    return explain_gain(artifact, baseline, f"top-1 is {-drop.top1_drop_pp:.2f} pp", beyond)


def explain_gain(artifact: Artifact, baseline: str, gain: str, beyond: str) -> str:
    """Return what to check of a gain: `gain` is the beginning of the sentence, `beyond` tells that it is no chance."""
    own = artifact.preprocess
    learned = " without training" if may_have_learned(artifact) else ""
    return (
        f"{gain} above that of {baseline}, beyond chance ({beyond}); no export and no quantization{learned} makes a network "
        f"better, so check that {baseline} was trained as it is evaluated here: {show_size(own.image_size)} pixels, "
        f"{own.crop_mode} crop {own.crop_pct:.3g}, {own.interpolation}, its mean and std"
    )


def may_have_learned(artifact: Artifact) -> bool:
    """Whether anything since its FP32 ancestor may have trained an artifact further, so that a gain has a reason."""
    since = takewhile(lambda record: not trains_a_network(record.kind), reversed(artifact.lineage))
    known = [record for record in since if record.kind in STAGE_KINDS]
    return any(stage_config(record.kind).trains and record.config.get("method") != "ptq" for record in known)
