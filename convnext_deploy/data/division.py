"""How images are divided into those to train on, to validate on and to test on, in words, with what is on both sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.data.decoding import printable
from convnext_deploy.data.splits import Split

_USUAL = ((), ("val/",), ("val-*.tar",), ("val/*.mds",))
_MOST_NAMED = 3


@dataclass(frozen=True)
class Division:
    """What came of dividing the images of a folder.

    `places`: where the images of training, validation and test lie, where each split has a place; `unused`: splits that lie there
    and are not read; `left_out`: images that the file of the split names for nothing. `repeated`: images of validation and test,
    by their paths in the folder, that are among the training images as well; `crossing`: groups that are on both sides; `unread`:
    training images that would have to be read to tell that, and were not. `told`: what was said of how to read and divide them, as
    words of the command line.
    """

    places: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_out: int = 0
    repeated: tuple[Path, ...] = ()
    crossing: tuple[str, ...] = ()
    unread: int = 0
    told: tuple[str, ...] = ()

    def describe(self, name: str, counts: Sequence[int], split: Split | None, kind: str) -> Iterator[str]:
        """Yield where the images come from, a line each, unless that is as it usually is.

        Args:
            name: of the data.
            counts: of images to train on, to validate on and for the test, if there is one.
            split: how validation images were chosen; None: they came with the data.
            kind: `folder` or `shards`.
        """
        if split is not None and split.file is None:
            together = "" if split.groups is None else f", groups by '{split.groups}' together"
            yield (
                f"{name} has no validation {kind}: {counts[1]} of {sum(counts[:2])} images, {100 * split.fraction:.3g}% of each "
                f"class{together}, are set aside to validate on (seed {split.seed})"
            )
        elif split is not None or self.places[1:] not in _USUAL:
            where = self.places if split is None else (f"the lists in {split.file}",) * len(counts)
            roles = ("to train on", "to validate on", "for the test, once at the end")
            parts = zip(counts, roles, where, strict=False)
            yield f"{name}: " + ", ".join(f"{count:,} images {role} from {place}" for count, role, place in parts)
        if self.unused:
            yield f"{name}: {', '.join(self.unused)} not used"
        if self.left_out:
            yield f"{name}: {self.left_out:,} images are in none of the lists and not used"

    def leaks(self, total: int) -> Iterator[str]:
        """Yield what is on both sides and should not be, a line each; `total`: of images that judge."""
        if self.repeated:
            yield (
                f"{len(self.repeated):,} of the {total:,} images that judge are among the training images as well "
                f"({_some([path.as_posix() for path in self.repeated])}): top-1 is better than on new images"
            )
        if self.unread:
            yield (
                f"whether images that judge are among the training images as well is not known: {self.unread:,} of these would "
                "have to be read, as train, distill and quantize do, after which it is remembered"
            )
        if self.crossing:
            yield (
                f"{len(self.crossing):,} groups have images to train on and images that judge ({_some(self.crossing)}): top-1 is "
                "better than on new groups"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(printable, names[:_MOST_NAMED])) + more
