"""What artifacts are scored by: the one place that says it, which scores, gates, tables and the model card read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convnext_deploy.config.choices import MetricName

if TYPE_CHECKING:
    from convnext_deploy.artifacts.artifact import Artifact
    from convnext_deploy.data.datasets import Data


@dataclass(frozen=True)
class Metric:
    """What a score is a fraction of, in words.

    Attributes:
        name: as it stands in tables and sentences.
        second: the same of the first five guesses; None: there is no such thing.
        made_of: what such a network is, with its article.
        hub_task: its task in the words of Hugging Face's hub.
        explained: what the figure is, a sentence for the reader of a report.
    """

    name: MetricName
    second: str | None
    made_of: str
    hub_task: str
    explained: str

    @property
    def title(self) -> str:
        """Its name at the beginning of a sentence."""
        return "Top-1" if self.name == "top-1" else self.name

    @property
    def second_title(self) -> str:
        """The same of `second`."""
        return "Top-5" if self.second == "top-5" else self.second or ""


METRICS: dict[MetricName, Metric] = {
    "top-1": Metric(
        "top-1",
        "top-5",
        "an image classifier",
        "image-classification",
        "Top-1: the share of images whose most probable class is right.",
    ),
    "kNN top-1": Metric(
        "kNN top-1",
        "kNN top-5",
        "a feature extractor",
        "image-feature-extraction",
        "kNN top-1: the share of validation images whose class is that of most of the nearest gallery images, by the features that "
        "this very artifact gives of both.",
    ),
    "mAP": Metric(
        "mAP",
        None,
        "a multi-label image classifier",
        "image-classification",
        "mAP: the mean over the labels of the average precision, which tells how far the images that have a label come before the "
        "others when all are sorted by its score; labels that no validation image has are left out.",
    ),
}


def metric_of(artifact: Artifact, data: Data) -> MetricName:
    """Return what an artifact is scored by on these images."""
    if data.multi_label:
        return "mAP"
    return "top-1" if artifact.model.num_classes else "kNN top-1"
