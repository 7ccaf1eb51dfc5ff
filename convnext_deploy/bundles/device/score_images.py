"""Score the models of a bundle on a folder of images: top-1, and what was lost against the FP32 network on the same images."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np

VALIDATION_FOLDERS = ("val", "validation", "valid", "test")  # the first that is there, and no training images
_CHUNK = 64  # images that are prepared at once
_REPORT_EVERY_S = 10.0


class DataError(Exception):
    """The folder has no images that can be scored."""


@dataclass(frozen=True)
class Item:
    """An image, the number of its class, and that of the FP32 network's first guess, where that is known."""

    path: Path
    label: int
    fp32: int | None = None


@dataclass(frozen=True)
class Found:
    """The images to score, those among them that are left out, and why these are."""

    items: list[Item]
    left_out: list[Path]
    why: str


@dataclass
class Tally:
    """What a model, `what`, answered so far. `problem`: why it is not scored, and whether that is a `fault`."""

    what: str
    kind: str
    problem: str | None = None
    fault: bool = False
    labels: list[int] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    fp32: list[int] = field(default_factory=list)


def find_items(
    bundle: Path, record: dict[str, Any], data: Path, extensions: Sequence[str], hash_file: Callable[[Path], str]
) -> Found:
    """Return the images to score: those whose answers in FP32 the bundle has, by their contents, or else all in folders of classes.

    Raises: DataError: if there are none.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder of images; give the one whose validation images shall be scored.")
    known = _read_answers(bundle, record)
    paths = _find_images(data, extensions)
    if not paths:
        raise DataError(f"{data} holds no images; images end in {', '.join(extensions)}.")
    items: dict[str, Item] = {}
    held_out = next((data / name for name in VALIDATION_FOLDERS if (data / name).is_dir()), data)
    others = []
    for path in paths:
        candidates = known.get(path.stat().st_size, {})
        digest = hash_file(path) if candidates else ""
        if digest in candidates:
            items[digest] = Item(path, *candidates[digest])  # a second copy of an image is not counted
        elif held_out in path.parents:
            others.append(path)
    if not items:
        return _by_folders(record, held_out, extensions)
    return Found(list(items.values()), others, "the bundle has no FP32 answers to them")


def _read_answers(bundle: Path, record: dict[str, Any]) -> dict[int, dict[str, tuple[int, int]]]:
    """Return size → SHA-256 → class and first guess of the FP32 network, for the images whose answers lie in the bundle."""
    known: dict[int, dict[str, tuple[int, int]]] = {}
    if record.get("fp32") is not None:
        for line in (bundle / record["fp32"]["answers"]).read_text(encoding="utf-8").splitlines():
            size, digest, label, guess = line.split("\t")
            known.setdefault(int(size), {})[digest] = (int(label), int(guess))
    return known


def _find_images(folder: Path, extensions: Sequence[str]) -> list[Path]:
    found = []
    for place, folders, files in os.walk(str(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions  # noqa: PTH122  (of odd names too)
        ]
    return sorted(path for path in found if path.is_file())


def _by_folders(record: dict[str, Any], held_out: Path, extensions: Sequence[str]) -> Found:
    """Return the images of folders that are called as the classes."""
    numbers = {_plain(name): number for number, name in enumerate(record["class_names"] or ())}
    items, others = [], []
    for path in _find_images(held_out, extensions):
        names = (_plain(part) for part in reversed(path.relative_to(held_out).parts[:-1]))
        label = next((numbers[name] for name in names if name in numbers), None)
        if label is None:
            others.append(path)
        else:
            items.append(Item(path, label))
    if items:
        return Found(items, others, "no folder that they are in is called as a class")
    expected = "one of those whose FP32 answers the bundle has" if record.get("fp32") is not None else ""
    named = f"in a folder called as a class ({first(numbers)})" if numbers else ""
    wanted = " or ".join(text for text in (expected, named) if text) or "labelled: the bundle knows no names of classes"
    raise DataError(f"no image in {held_out} is {wanted}; give the folder of the validation images.")


def first(names: Iterable[str]) -> str:
    """Return the first three of the names, each once."""
    found = list(dict.fromkeys(names))
    return ", ".join([*found[:3], *(["..."] if len(found) > 3 else [])])


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def limited(items: list[Item], limit: int | None) -> list[Item]:
    """Return at most `limit` of the images, spread evenly over all, which lie class by class."""
    if limit is None or limit >= len(items):
        return items
    return [items[place * len(items) // limit] for place in range(limit)]


def tally(
    openers: Sequence[Any], record: dict[str, Any], items: list[Item], siblings: Callable[[str], Any]
) -> tuple[list[Tally], list[str]]:
    """Show the images to every model that can be run here.

    Args:
        openers: of `open_models.Models`.
        record: of `bundle.json`.
        items: from `find_items`.
        siblings: imports a file that lies beside this one.

    Returns: what each answered, and why images could not be read, a line each.
    """
    opening = siblings("open_models")
    tallies, running = [], []
    for opener in openers:
        one = Tally(opener.what, opener.kind)
        tallies.append(one)
        try:
            one.problem = _not_scored(opener.model)
            if one.problem is None:
                running.append((one, opener.model, opener.open()))
        except opening.NotRunError as error:
            one.problem = str(error)
        except opening.BrokenError as error:
            one.problem, one.fault = str(error), True
    unreadable: list[str] = []
    for part, pixels in _chunks(items if running else [], record, siblings("pixels"), unreadable):
        for one, model, run in running:
            if one.problem is None:
                _answer(one, part, pixels, model, run, record, siblings)
    return tallies, unreadable


def _not_scored(model: dict[str, Any]) -> str | None:
    if model.get("multi_label", False):
        return "its answers to several labels an image are not scored here"
    if model["outputs"][0]["name"] in ("features", "feature_map"):
        return "it gives features, which are of no class"
    return None


def _answer(
    one: Tally,
    part: list[Item],
    pixels: np.ndarray,
    model: dict[str, Any],
    run: Any,
    record: dict[str, Any],
    siblings: Callable[[str], Any],
) -> None:
    import numpy as np

    answers = siblings("answers")
    try:
        found = run(answers.model_inputs(pixels, record["preprocess"], model["input"]))
    except siblings("open_models").BrokenError as error:
        one.problem, one.fault = str(error), True
        return
    if not all(np.isfinite(values).all() for values in found.values() if values.dtype.kind == "f"):
        one.problem, one.fault = "it answers with numbers that are not finite", True
        return
    one.guesses += [int(guess) for guess in answers.first_classes(found)]
    one.labels += [item.label for item in part]
    one.fp32 += [item.fp32 for item in part if item.fp32 is not None]


def _chunks(
    items: list[Item], record: dict[str, Any], pixels: Any, unreadable: list[str]
) -> Iterator[tuple[list[Item], np.ndarray]]:
    """Yield images and their pixels `(n, S, S, C)` uint8, and tell on standard error how far it is."""
    import numpy as np

    told = time.monotonic()
    for start in range(0, len(items), _CHUNK):
        part, arrays = [], []
        for item in items[start : start + _CHUNK]:
            try:
                with pixels.quiet(), item.path.open("rb") as stream, pixels.open_image(stream) as image:
                    arrays.append(pixels.evaluation_pixels(image, record["preprocess"]))
                part.append(item)
            except MemoryError:
                raise
            except Exception as error:  # damaged files make Pillow's readers raise errors of every kind
                unreadable.append(f"{item.path.name} ({' '.join(str(error).split())[:100]})")
        if part:
            yield part, np.stack(arrays)
        if time.monotonic() - told > _REPORT_EVERY_S:
            told = time.monotonic()
            print(f"scored {min(start + _CHUNK, len(items))} of {len(items)} images", file=sys.stderr, flush=True)


def judge(
    one: Tally, measured: dict[str, Any] | None, total: int, intervals: Any
) -> tuple[str, str, dict[str, Any] | None]:
    """Return `scored`, `not run` or `failed`, why, and the figures if there are any.

    Args:
        one: what a model answered.
        measured: what was measured of it where the bundle was made; None: nothing.
        total: how many images there were.
        intervals: the file of that name.
    """
    if one.problem is not None:
        return "failed" if one.fault else "not run", one.problem, None
    if not one.labels:
        return "failed", f"none of the {total} images can be read here", None
    found = summarize(one, measured, intervals.paired_difference_interval)
    return "failed" if found["worse"] else "scored", describe(found, measured), found


def summarize(one: Tally, measured: dict[str, Any] | None, interval: Any) -> dict[str, Any]:
    """Return top-1 of a model and of the FP32 network as fractions, the drop in percentage points with its 95 % interval.

    Args:
        one: with at least one answer.
        measured: what was measured of the model where the bundle was made; None: nothing.
        interval: `paired_difference_interval`.

    `worse`: the drop lies above what was measured there, both intervals taken whole.
    """
    total = len(one.labels)
    right = [guess == label for guess, label in zip(one.guesses, one.labels)]  # noqa: B905  (Python 3.8)
    found: dict[str, Any] = {"file": one.what, "images": total, "top1": sum(right) / total, "worse": False}
    if len(one.fp32) != total:
        return found
    before = [guess == label for guess, label in zip(one.fp32, one.labels)]  # noqa: B905
    both = sum(a and b for a, b in zip(before, right))  # noqa: B905
    lost, gained = sum(before) - both, sum(right) - both
    low, high = interval(both, lost, gained, total - both - lost - gained)
    same = sum(a == b for a, b in zip(one.guesses, one.fp32))  # noqa: B905
    there = (measured or {}).get("drop_interval_pp")
    return {
        **found,
        "fp32_top1": sum(before) / total,
        "drop_pp": 100 * (lost - gained) / total,
        "drop_interval_pp": [100 * low, 100 * high],
        "agreement": same / total,
        "worse": there is not None and 100 * low > there[1],
    }


def describe(found: dict[str, Any], measured: dict[str, Any] | None) -> str:
    """Return the figures of `summarize` in words."""
    text = f"top-1 {100 * found['top1']:.2f} % of {found['images']} images"
    if "fp32_top1" not in found:
        return f"{text}; the bundle has no FP32 answers to them"
    low, high = found["drop_interval_pp"]
    text += (
        f", FP32 {100 * found['fp32_top1']:.2f} %: drop {found['drop_pp']:+.2f} pp [{low:+.2f}, {high:+.2f}], "
        f"the same class as FP32 for {100 * found['agreement']:.1f} %"
    )
    if found["worse"] and measured is not None:
        low, high = measured["drop_interval_pp"]
        text += f"; where the bundle was made it was {measured['drop_pp']:+.2f} pp [{low:+.2f}, {high:+.2f}]"
    return text
