"""What `predict` returns: the guesses for an image, as a list of all images or as they are made."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.system.results import Result
from convnext_deploy.system.torch_defaults import usual_torch


@dataclass(frozen=True)
class Guess:
    """A class, by its index and its name (the index as text where the artifact has no names), and its probability, 0 to 1."""

    class_name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, best first; for a file that cannot be read there are none, and `error` says why.

    A feature extractor gives `features`, `(D,)` float32, in their place; the features of others are None.
    """

    path: Path
    guesses: tuple[Guess, ...]
    error: str | None = None
    features: NDArray[np.float32] | None = field(default=None, compare=False)

    def to_record(self) -> dict[str, Any]:
        """Return what `--json` prints: `path`, `predictions` or `features` and, only where there is one, `error`."""
        if self.features is not None:
            return {"path": str(self.path), "features": [float(str(value)) for value in self.features]}
        guesses = [{"class": g.class_name, "index": g.index, "probability": g.probability} for g in self.guesses]
        record: dict[str, Any] = {"path": str(self.path), "predictions": guesses}
        return record if self.error is None else {**record, "error": self.error}


class Predictions(Result, list[Prediction]):
    """The predictions of images in their order, a list of `Prediction`."""

    def headline(self) -> str:
        """Say how many images there are."""
        unread = sum(found.error is not None for found in self)
        return f"{len(self):,} images" + (f", {unread:,} of which cannot be read" if unread else "")

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each image: its first guess, the probability, and the names of all guesses."""
        return [
            {
                "path": str(found.path),
                "class": found.guesses[0].class_name if found.guesses else None,
                "index": found.guesses[0].index if found.guesses else None,
                "probability": found.guesses[0].probability if found.guesses else None,
                "guesses": ", ".join(guess.class_name for guess in found.guesses),
                "error": found.error,
            }
            for found in self
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the records that `--json` prints, as `images`."""
        return {"images": [found.to_record() for found in self]}


class PredictionStream(Iterator[Prediction]):
    """Predictions as they are made.

    What makes them is closed once: at their end, after an error, by `close`, or when nobody has the stream any more. A generator
    alone, that nobody has asked for the first of them, would close nothing.
    """

    def __init__(self, found: Generator[Prediction, None, None], close: Callable[[], object]) -> None:
        """Take the predictions, and what closes their runner."""
        self._found, self._opened = found, ExitStack()
        self._opened.callback(close)
        self._opened.callback(found.close)

    def __next__(self) -> Prediction:
        """Return the prediction of the next image."""
        try:
            with usual_torch():  # the verb has returned long since
                return next(self._found)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Make no more predictions."""
        self._opened.close()

    def __del__(self) -> None:
        """Close what is still open."""
        self.close()
