"""Leave out the images that cannot be read, the same for every verb: they are found before anything is chosen among the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import find_damage_of_file, printable
from convnext_deploy.data.files import as_files, join, pick
from convnext_deploy.data.splits import ClassFiles
from convnext_deploy.errors import DataError

UNREADABLE = "unreadable.txt"  # in the folder of a run
_MOST_LISTED = 5  # images that were left out, on the console


@dataclass(frozen=True)
class Skipping:
    """How images that cannot be read are found, to be left out.

    `contents`: of the files, by which it is known what came of decoding them.
    """

    contents: Contents = field(default_factory=Contents)

    def find_damaged(self, paths: Sequence[Path]) -> list[tuple[Path, str]]:
        """Return the files that cannot be decoded, each with the reason. Raises: DataError: if one cannot be read at all."""
        digests = [digest.tobytes() for digest in self.contents.read(paths)]
        return self.contents.decoded.find_damaged(paths, digests, find_damage_of_file, self.contents.progress)


def take_out_unreadable(
    found: Mapping[Path, ClassFiles], skipping: Skipping | None, contents: Contents
) -> dict[str, Any]:
    """Take the images that cannot be read out of `found`, and return them with the reasons, by the names of fields.

    Which these are must be known before anything is chosen among the others: so all are decoded, unless they are to be an error.

    Raises: DataError: naming the first and counting the others, unless they are to be skipped; if a class has no others.
    """
    unreadable = find_unusable(
        join([paths for files in found.values() for paths in files.values()]), skipping, contents
    )
    left_out = {path for path, _ in unreadable}
    for split, files in found.items() if left_out else ():
        for name, paths in files.items():
            files[name] = pick(paths, [place for place, path in enumerate(paths) if path not in left_out])
            if not len(files[name]):
                raise DataError(f"no image of class '{name}' in {printable(split)} can be read; repair them.")
    return {"unreadable": tuple(path for path, _ in unreadable), "reasons": tuple(reason for _, reason in unreadable)}


def find_unusable(every: Sequence[Path], skipping: Skipping | None, contents: Contents) -> list[tuple[Path, str]]:
    """Return the files that cannot be read as images, each with the reason, to be left out.

    Raises: DataError: naming the first and counting the others, unless they are to be skipped.
    """
    every = as_files(every)
    unreadable = contents.find_unreadable(every)
    if skipping is not None:
        closed = {path for path, _ in unreadable}
        opened = [place for place, path in enumerate(every) if path not in closed] if closed else range(len(every))
        reasons = dict([*unreadable, *skipping.find_damaged(every.take(np.asarray(opened)))])
        return [(path, reasons[path]) for path in every if path in reasons] if reasons else []
    if unreadable:
        (path, reason), others = unreadable[0], len(unreadable) - 1
        more = "" if not others else f", and neither can {others} other{'s' if others > 1 else ''}"
        which = "them" if others else "it"
        raise DataError(
            f"{printable(path)} cannot be read as an image ({reason}){more}; repair or remove {which}, or leave {which} out "
            "with --skip-unreadable."
        )
    return []


def describe_left_out(paths: Sequence[Path]) -> Iterator[str]:
    """Yield how many images were left out and which are the first, a line each."""
    if paths:
        images = "image that cannot be read was" if len(paths) == 1 else "images that cannot be read were"
        yield f"{len(paths):,} {images} left out:"
        yield from (f"  {printable(path)}" for path in paths[:_MOST_LISTED])
    if (more := len(paths) - _MOST_LISTED) > 0:
        yield f"  and {more:,} more, which {UNREADABLE} in the folder of a run lists"
