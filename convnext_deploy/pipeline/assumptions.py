"""What scores rest on that was neither measured nor read from a file: the classes' numbers, and which images a network learned."""

from collections.abc import Iterable
from dataclasses import dataclass

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.stages import trains_a_network
from convnext_deploy.data.agreement import assumed_classes, assumed_labels, is_same_place, speaks_of
from convnext_deploy.data.datasets import Data
from convnext_deploy.reports.provenance import find_base_model


@dataclass(frozen=True)
class Assumptions:
    """`texts`: a sentence each. `leaks`: what is on both sides and should not be.

    `images`: what is known of the validation images, as the end of a sentence about them.
    """

    texts: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    images: str = "which were not trained on"


def find_assumptions(artifacts: Iterable[Artifact], data: Data | None) -> Assumptions:
    """Return what is assumed of the artifacts that the user brought, and of the images.

    Args:
        artifacts: what is scored, and what trainings start from.
        data: what it is scored on; None: nothing is.
    """
    if data is None:
        return Assumptions()
    own = [artifact for artifact in artifacts if speaks_of(artifact, data)]
    texts = [text for artifact in own if (text := assumed_classes(artifact, data)) is not None]
    texts += [text for artifact in own if (text := assumed_labels(artifact, data)) is not None]
    images = "which were not trained on"
    if any(may_have_seen(artifact, data) for artifact in own):
        images = "which it may have been trained on"
        texts.append(
            f"the {len(data.validation):,} validation images were taken here from {data.name}, and the network may have been "
            "trained on them: its score may be higher than on new images, and drops smaller. Name images that it has not seen with "
            "--split FILE, or put them into a val/ folder"
        )
    elif not all(_trained_here(artifact) for artifact in own):
        images = "which the data sets apart from those to train on"
    return Assumptions(tuple(dict.fromkeys(texts)), data.leaks, images)


def may_have_seen(artifact: Artifact, data: Data) -> bool:
    """Whether an artifact may have been trained on images that validate it now.

    Images that the data itself sets apart, by a folder or by the file of a split, are taken to be unseen unless the artifact was
    made here with others. A part that is chosen here is unseen only by what was trained here with the same part held out, from
    fresh or published weights.
    """
    read = [record for record in artifact.lineage if record.data != "none"]
    chosen = data.split is not None and data.split.file is None
    if not chosen:
        return any(is_same_place(record.data, data) and record.judged_on != data.judged_on for record in read)
    return not _trained_here(artifact) or any(record.judged_on != data.judged_on for record in read)


def _trained_here(artifact: Artifact) -> bool:
    """Whether all training that an artifact has seen was done here, but for that of published weights."""
    if not artifact.lineage or not trains_a_network(artifact.lineage[0].kind):
        return False
    brought = {"source", "weights"} & artifact.lineage[0].inputs.keys()
    return not brought or find_base_model(artifact) is not None
