"""What top-1 is known of a network on these very images: from its own training, or published with its weights."""

from dataclasses import dataclass

from convnext_deploy.artifacts.artifact import Artifact, StageRecord
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.image_size import show_size
from convnext_deploy.data.datasets import Data
from convnext_deploy.metrics.epochs import result_epoch

_IMAGENET_CLASSES = 1000
_TENCH = ("n01440764", "tench")  # how ImageNet's first class is named


@dataclass(frozen=True)
class Reference:
    """A top-1 known of a network, a fraction, and in words where it was measured."""

    top1: float
    source: str


def find_reference(artifact: Artifact, data: Data) -> Reference | None:
    """Return what is known of an FP32 PyTorch network on the validation images; None where nothing is.

    That is the top-1 after its own training, if the data is the same; or, of a network that was trained
    elsewhere and the classes of ImageNet-1k, the figure published with the weights of its variant.
    """
    if not artifact.is_baseline or not isinstance(artifact.details, TorchDetails):
        return None
    if artifact.lineage and _is_judged_alike(artifact.lineage[-1], data) and artifact.details.history:
        kept = artifact.details.history[result_epoch(artifact.details.history) or 0]
        # of multi-label data there is another figure
        top1 = kept.get("ema_validation_top1", kept.get("validation_top1"))
        return None if top1 is None else Reference(top1, "measured on them after its training")
    return None if artifact.lineage else _published(artifact, data)


def _is_judged_alike(record: StageRecord, data: Data) -> bool:
    """Whether a training was judged on these images: by their names and sizes, for which no training image need be read."""
    if record.judged_on is None or data.judged_on is None:
        return record.data_fingerprint == data.fingerprint
    return record.judged_on == data.judged_on


def _published(artifact: Artifact, data: Data) -> Reference | None:
    from convnext_deploy.models.zoo.published import PUBLISHED

    if artifact.model.num_classes != _IMAGENET_CLASSES or not any(n.startswith(_TENCH) for n in data.class_names):
        return None
    found = PUBLISHED.get(artifact.model.variant)
    if found is None:
        return None
    return Reference(
        found.top1 / 100,
        f"published for {found.weights} on the validation images of ImageNet-1k at {show_size(found.evaluation.image_size)} pixels",
    )
