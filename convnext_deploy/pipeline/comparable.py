"""Refuse to compare what is shown other images: a drop would be that of the preprocessing."""

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.preprocessing import assumed_fields, difference
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.errors import ArtifactError


def check_comparable(name: str, artifact: Artifact, baseline_name: str, baseline: Artifact) -> None:
    """Check that an artifact and its baseline are evaluated alike.

    Size, crop and interpolation must be the same. Mean and std belong to a network, so those of two networks may differ, unless
    they are only assumed of one of them.

    Raises: ArtifactError: naming both, and in what they differ.
    """
    if artifact.model.output != baseline.model.output:
        gives = f"{name} gives {artifact.model.output}, and its baseline {baseline_name} gives {baseline.model.output}"
        raise ArtifactError(f"{gives}; compare what gives the same.")
    one, other = artifact.preprocess, baseline.preprocess
    if found := difference(one, other):
        raise ArtifactError(
            f"{name} and its baseline {baseline_name} are shown other images ({found}); evaluate both alike, with --image-size, "
            "--crop-pct, --crop-mode or --interpolation."
        )
    found = None if _is_folded(one) or _is_folded(other) else difference(one, other, ("mean", "std"))
    guessed = [
        label
        for label, preprocess in ((name, one), (baseline_name, other))
        if {"mean", "std"} & {*assumed_fields(preprocess)}
    ]
    if found and guessed:
        raise ArtifactError(
            f"{name} and its baseline {baseline_name} are normalized differently ({found}), and no file tells mean and std of "
            f"{' and '.join(guessed)}; give --mean and --std."
        )


def _is_folded(preprocess: Preprocess) -> bool:
    """Whether a network takes pixels from 0 to 1, as files of 0.2.0 with the normalization in the stem say: then both differ."""
    return not any(preprocess.mean) and all(value == 1 for value in preprocess.std)
