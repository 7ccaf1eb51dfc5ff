"""Labels that nobody gave: the names of the folders that images lie in, where these are classes of the network."""

from collections.abc import Sequence
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.class_names import same_name
from convnext_deploy.evaluation.guessing import doubt_score
from convnext_deploy.evaluation.score import Score


class FolderLabels:
    """Counts how many images are taken for the class that their folder is named as, as long as every folder is a class."""

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self._numbers = {same_name(name): label for label, name in enumerate(class_names or ())}
        self._labels: list[int] = []
        self._predictions: list[int] = []
        self._all_named = True

    def add(self, path: Path, prediction: int) -> None:
        """Count the image `path`, whose first guess is the class `prediction`."""
        label = self._numbers.get(same_name(path.parent.name))
        if label is None or not self._all_named:
            self._all_named = False
            return
        self._labels.append(label)
        self._predictions.append(prediction)

    def doubt(self, artifact: Artifact) -> str | None:
        """Say why the network seems not to work; None if it seems to, or if the folders name fewer than two classes."""
        if not self._all_named or len(set(self._labels)) < 2:
            return None
        correct = sum(label == guess for label, guess in zip(self._labels, self._predictions, strict=True))
        score = Score(correct, correct, tuple(self._predictions), tuple(self._labels))
        return doubt_score(score, artifact, None)
