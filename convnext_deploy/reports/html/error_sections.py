"""What the sections of a report's page show of errors: classes, confusions, and images."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from markupsafe import Markup

from convnext_deploy.reports.html import svg
from convnext_deploy.reports.html.class_plots import (
    Names,
    class_axis,
    class_legend,
    class_plot,
    class_table,
    fits_matrix,
    matrix,
    pair_table,
    shown_classes,
)
from convnext_deploy.reports.record import Accuracy, Report, StageRow

_SIDE = 64  # pixels of a picture


def names_of(report: Report) -> Names:
    """Return what the classes are called; of a report without a list of them, as far as what was compared knows them."""
    if report.class_names:
        return Names(report.class_names)
    known = {change.label: change.name for _, accuracy in _scored(report) for change in accuracy.classes}
    return Names([known.get(label, "") for label in range(max(known, default=-1) + 1)])


def _scored(report: Report) -> list[tuple[StageRow, Accuracy]]:
    return [(row, row.accuracy) for row in report.rows if row.accuracy is not None]


def classes(report: Report) -> dict[str, Any] | None:
    """Return top-1 class by class for every stage, and which stages changed in none."""
    found = [(row, accuracy) for row, accuracy in _scored(report) if accuracy.per_class]
    if not found:
        return None
    names, scores = names_of(report), [accuracy for _, accuracy in found]
    labels = shown_classes(scores)
    axis = class_axis(scores, labels)
    count = len({each.label for accuracy in scores for each in accuracy.per_class})
    first: dict[object, str] = {}
    entries, same = [], []
    for row, accuracy in found:
        changed = sum(change.lost + change.gained > 0 for change in accuracy.classes)
        parent = row.provenance.baseline
        if accuracy.classes and not changed and parent in first.values():
            same.append(row.name)
            continue
        first[row.name] = row.name
        text = f"{changed:,} of {count:,} classes changed against {parent}." if accuracy.classes else "A baseline."
        entries.append(
            {
                "title": row.name,
                "text": text,
                "plot": class_plot(accuracy, labels, names, axis),
                "table": class_table(accuracy, labels, names),
            }
        )
    note = (
        f" Shown are {len(labels)} of {count:,} classes: the lowest, and those that change most; report.json has all."
        if len(labels) < count
        else ""
    )
    return {"entries": entries, "legend": class_legend(scores, labels), "unchanged": same, "note": note}


def confusions(report: Report) -> Iterator[dict[str, Any]]:
    """Yield which class is taken for which, a matrix of few classes and the most confused pairs of many."""
    names = names_of(report)
    first: dict[object, str] = {}
    for row, accuracy in _scored(report):
        if not accuracy.per_class:
            continue
        seen = [each.label for each in accuracy.per_class] + [pair.prediction for pair in accuracy.confusions]
        size = max(len(report.class_names), max(seen) + 1)
        whole = fits_matrix(size)
        shown = (accuracy.per_class, tuple((pair.label, pair.prediction, pair.count) for pair in accuracy.confusions))
        earlier = first.setdefault(shown, row.name)
        parent = row.provenance.baseline
        changed = sum(pair.before not in (None, pair.count) for pair in accuracy.confusions)
        if earlier != row.name:
            yield {"title": row.name, "text": f"As {earlier}.", "matrix": None, "table": None}
            continue
        if parent is None:
            text = "A baseline."
        else:
            text = f"{changed:,} pair{'' if changed == 1 else 's'} of different classes changed against {parent}."
        if not accuracy.confusions:
            text += " It takes no class for another."
        table = None if whole or not accuracy.confusions else pair_table(accuracy, names)
        yield {
            "title": row.name,
            "text": text,
            "matrix": matrix(accuracy, names, size) if whole else None,
            "table": table,
        }


def errors(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the errors of which each stage is most sure, with pictures."""
    names = names_of(report)
    first: dict[object, str] = {}
    for row, accuracy in _scored(report):
        if not accuracy.errors:
            continue
        shown = tuple((error.index, error.prediction, round(error.confidence, 3)) for error in accuracy.errors)
        if first.setdefault(shown, row.name) != row.name:
            continue
        same = [
            other.name
            for other, found in _scored(report)
            if found.errors and other.name != row.name and _key(found) == shown
        ]
        wrong = accuracy.total - (accuracy.correct or 0)
        text = (
            f"The {len(accuracy.errors)} surest of {wrong:,} errors"
            if wrong > len(accuracy.errors)
            else f"All {wrong:,} errors"
        )
        text += f"; the same of {', '.join(same)}." if same else "."
        yield {
            "title": row.name,
            "text": text,
            "images": [
                {
                    "picture": _picture(report, error.index, error.image),
                    "short": _short(error.image, error.index),
                    "label": names[error.label],
                    "guess": names[error.prediction],
                    "note": f"{100 * error.confidence:.1f} % sure",
                    "change": "",
                }
                for error in accuracy.errors
            ],
        }


def _key(accuracy: Accuracy) -> tuple[tuple[int, int, float], ...]:
    return tuple((error.index, error.prediction, round(error.confidence, 3)) for error in accuracy.errors)


def flips(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the images whose first guess is another one than the baseline's."""
    names = names_of(report)
    for row, accuracy in _scored(report):
        if not accuracy.flips:
            continue
        images = [
            {
                "picture": _picture(report, flip.index, flip.image),
                "short": _short(flip.image, flip.index),
                "label": names[flip.label],
                "guess": f"{names[flip.baseline_prediction]} → {names[flip.prediction]}",
                "note": _WORDS[flip.change],
                "change": flip.change,
            }
            for flip in accuracy.flips
        ]
        count = accuracy.flipped if accuracy.flipped is not None else len(images)
        text = f"{count:,} of {accuracy.total:,} images flipped"
        if (drop := accuracy.drop) is not None:
            text += f": {drop.lost:,} lost, {drop.gained:,} gained, the others wrong before and after"
        if count > len(images):
            text += f". The first {len(images)}, lost ones before others; flips/{row.name}.json lists all"
        yield {
            "title": row.name,
            "text": f"{text}. In bold the label, below it the guess of {row.provenance.baseline} → that of {row.name}.",
            "images": images,
        }


_WORDS = {"lost": "right → wrong", "gained": "wrong → right", "other": "wrong → wrong"}


def _short(image: str | None, index: int) -> str:
    return PurePosixPath(image).name if image else f"#{index}"


def _picture(report: Report, index: int, image: str | None) -> Markup:
    """Return the picture of an image, which the page holds once; a blank where there is none."""
    described = svg.text(image or f"image {index}")
    if not _is_picture(report.thumbnails.get(str(index), "")):
        return Markup('<div class="blank" title="{}"></div>').format(described)
    return Markup(
        '<svg class="picture" width="{0}" height="{0}" role="img" aria-label="{1}"><title>{1}</title>'
        '<use href="#p-{2}"/></svg>'
    ).format(_SIDE, described, index)


def _is_picture(uri: str) -> bool:
    return uri.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))


def pictures(report: Report) -> Markup:
    """Return the pictures that errors and flips refer to."""
    wanted = {error.index for _, accuracy in _scored(report) for error in accuracy.errors}
    wanted |= {flip.index for _, accuracy in _scored(report) for flip in accuracy.flips}
    found = [(index, report.thumbnails.get(str(index), "")) for index in sorted(wanted)]
    shapes = svg.join(
        Markup('<image id="p-{0}" href="{1}" width="{2}" height="{2}"{3}/>').format(
            index, uri, _SIDE, Markup(' class="tiny"') if uri.startswith("data:image/png") else ""
        )
        for index, uri in found
        if _is_picture(uri)
    )
    if not shapes:
        return shapes
    return Markup('<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{}</defs></svg>').format(shapes)
