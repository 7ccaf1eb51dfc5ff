"""What the row of a feature extractor says, and what is to be known of any time."""

from collections.abc import Iterator

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.evaluation.feature_score import FeatureQuality
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.models.zoo.cost import describe_features
from convnext_deploy.system.load import unreliable


def describe_load(latency: Latency, *, is_kept: bool) -> Iterator[str]:
    """Say that the machine did other work while an artifact was timed; `is_kept`: whether a run keeps its time."""
    if latency.loaded is not None:
        how = "in a run with --measure-again" if is_kept else "by validating it again"
        yield f"{unreliable(latency.loaded)}; time it again on a free machine, {how}"


def feature_quality(artifact: Artifact, measured: Measurement) -> FeatureQuality:
    """Return what a feature extractor gives, and how like its baseline."""
    shape = describe_features(artifact.model, artifact.preprocess.image_size)
    assert measured.features is not None  # who asks has seen it
    return FeatureQuality(artifact.model.output, shape, measured.features, measured.similarity)
