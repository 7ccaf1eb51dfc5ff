"""Where artifacts err: top-1 class by class, and which class is taken for which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from convnext_deploy.evaluation.flips import ClassChange
from convnext_deploy.evaluation.mistakes import WHOLE_UP_TO, ClassScore, Confusion
from convnext_deploy.metrics.intervals import wilson_interval
from convnext_deploy.metrics.paired import SIGNIFICANCE
from convnext_deploy.reports.html import svg
from convnext_deploy.reports.html.axes import Axis, percent_axis
from convnext_deploy.reports.html.tables import Cell, Table, create_table
from convnext_deploy.reports.record import Accuracy

MOST_CLASSES = 30  # up to so many are all shown
_EXTREMES = 12  # of more, so many of the lowest, and as many of those that change most
_LONGEST_NAME = 22
_ROW = 19  # pixels
_MOST_PAIRS = 15
_SHADES = 5  # classes --s1 to --s5 of the style sheet


@dataclass(frozen=True)
class Names:
    """What the classes are called."""

    names: Sequence[str]

    def __getitem__(self, label: int) -> str:
        known = self.names[label] if 0 <= label < len(self.names) else ""
        return known or f"class {label}"

    def short(self, label: int) -> str:
        """Return a name that fits beside a plot."""
        full = self[label]
        return full if len(full) <= _LONGEST_NAME else f"{full[: _LONGEST_NAME - 1]}…"


def shown_classes(rows: Sequence[Accuracy]) -> list[int]:
    """Return the classes that a page shows, the lowest top-1 of the first row first.

    All of few; of many the lowest of any row, and those that change most.
    """
    first = {each.label: each for row in rows[::-1] for each in row.per_class}

    def share(each: ClassScore) -> float:
        return each.correct / each.total

    chosen = set(first)
    if len(first) > MOST_CLASSES:
        lowest = sorted((each for row in rows for each in row.per_class), key=lambda each: (share(each), each.label))
        changes = sorted(
            (change for row in rows for change in row.classes if change.lost or change.gained),
            key=lambda change: (-abs(change.top1_drop_pp), change.label),
        )
        chosen = set(list(dict.fromkeys(each.label for each in lowest))[:_EXTREMES])
        chosen |= set(list(dict.fromkeys(change.label for change in changes))[:_EXTREMES])
    return sorted(chosen, key=lambda label: (share(first[label]), label))


def class_axis(rows: Sequence[Accuracy], labels: Sequence[int]) -> Axis:
    """Return the axis of top-1 that all rows share, with room for the intervals of these classes."""
    wanted = set(labels)
    ends = [end for row in rows for each in row.per_class if each.label in wanted for end in _interval(each)]
    return percent_axis(f"{rows[0].metric}, %" if rows else "", ends or [0.0, 100.0], count=4)


def class_legend(rows: Sequence[Accuracy], labels: Sequence[int]) -> Markup:
    """Return what the marks in the plots of these classes mean, of those that there are."""
    changes = [change for row in rows for change in row.classes if change.label in labels]
    colors = {_color(change) for change in changes}
    key = [svg.Key("circle", "fp32", f"{rows[0].metric}, 95 % interval")]
    key += [svg.Key("tick", "muted", "baseline")] if changes else []
    key += [svg.Key("circle", "lost", "worse beyond chance")] if "lost" in colors else []
    key += [svg.Key("circle", "gained", "better beyond chance")] if "gained" in colors else []
    return svg.legend(key)


def class_plot(accuracy: Accuracy, labels: Sequence[int], names: Names, axis: Axis) -> Markup:
    """Draw top-1 of these classes with its 95 % interval, and that of the baseline as a tick."""
    scores = {each.label: each for each in accuracy.per_class}
    changes = {change.label: change for change in accuracy.classes}
    rows = len(labels)
    y = Axis("", 0.0, float(rows), tuple((rows - i - 0.5, names.short(k)) for i, k in enumerate(labels)), grid=False)
    frame = svg.Frame(axis, y, _ROW * rows)
    marks: list[Markup] = []
    for row, label in enumerate(labels):
        if (found := scores.get(label)) is None:
            continue
        at = 100 * (row + 0.5) / rows
        low, high = _interval(found)
        change = changes.get(label)
        color = _color(change)
        title = f"{names[label]}\n{_share(found):.1f} % [{low:.1f}, {high:.1f}], {found.correct:,} of {found.total:,}"
        marks.append(svg.line((axis.place(low), at), (axis.place(high), at), color, "error"))
        if change is not None:
            before = 100 * change.baseline_correct / max(1, change.total)
            title += f"\nbefore {before:.1f} %: {change.lost} lost, {change.gained} gained, p = {change.p_value:.2g}"
            marks.append(svg.mark("tick", axis.place(before), at, "muted"))
        marks.append(svg.mark("small" if rows > 12 else "circle", axis.place(_share(found)), at, color, title))
    return svg.draw(frame, marks, f"{accuracy.metric} of {rows} classes with 95 % intervals; the table has the figures")


def _share(score: ClassScore) -> float:
    return 100 * score.correct / score.total


def _interval(score: ClassScore) -> tuple[float, float]:
    low, high = wilson_interval(score.correct, score.total)
    return 100 * low, 100 * high


def _color(change: ClassChange | None) -> str:
    if change is None or change.p_value > SIGNIFICANCE:
        return "fp32"
    return "lost" if change.top1_drop_pp > 0 else "gained"


def class_table(accuracy: Accuracy, labels: Sequence[int], names: Names) -> Table:
    """Return the figures of these classes."""
    changes = {change.label: change for change in accuracy.classes}
    titles = ["class", "images", f"{accuracy.metric} %", "95 % interval"]
    if changes:
        titles += ["before %", "drop pp", "lost", "gained", "p"]
    rows = []
    for found in sorted(
        accuracy.per_class, key=lambda each: list(labels).index(each.label) if each.label in labels else -1
    ):
        if found.label not in labels:
            continue
        low, high = _interval(found)
        line = [names[found.label], f"{found.total:,}", f"{_share(found):.1f}", f"{low:.1f} to {high:.1f}"]
        if changes and (change := changes.get(found.label)) is not None:
            before = 100 * change.baseline_correct / max(1, change.total)
            line += [f"{before:.1f}", f"{change.top1_drop_pp:+.2f}", str(change.lost), str(change.gained)]
            line.append(f"{change.p_value:.2g}")
        rows.append(line + ["–"] * (len(titles) - len(line)))
    return create_table(titles, ("class",), rows)


def fits_matrix(classes: int) -> bool:
    """Whether the matrix of so many classes is drawn; of more the most confused pairs are listed."""
    return 2 <= classes <= WHOLE_UP_TO


def matrix(accuracy: Accuracy, names: Names, classes: int) -> Markup:
    """Return the confusion matrix as a table: a row for each class, a column for each guess, with what changed against FP32."""
    totals = {each.label: each.total for each in accuracy.per_class}
    cells = {(pair.label, pair.prediction): (pair.count, pair.before) for pair in accuracy.confusions}
    before = {change.label: change.baseline_correct for change in accuracy.classes}
    cells |= {(each.label, each.label): (each.correct, before.get(each.label)) for each in accuracy.per_class}
    head = svg.join(
        Markup('<th scope="col" title="{}"><span>{}</span></th>').format(svg.text(names[k]), svg.text(names.short(k)))
        for k in range(classes)
    )
    body = []
    for label in range(classes):
        line = svg.join(_cell(cells.get((label, k)), totals.get(label, 0), label == k) for k in range(classes))
        body.append(
            Markup('<tr><th scope="row" title="{}">{}</th>{}</tr>').format(
                svg.text(names[label]), svg.text(names.short(label)), line
            )
        )
    return Markup(
        '<div class="scroll" tabindex="0" role="group" aria-label="Confusion matrix"><table class="matrix"><thead><tr>'
        '<td class="corner">label ↓ guess →</td>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, svg.join(body))


def _cell(found: tuple[int, int | None] | None, total: int, on_diagonal: bool) -> Markup:
    """Return a cell, shaded by its share of the class; errors and right answers have shades of their own."""
    if found is None or (found[0] == 0 and not found[1]):
        return Markup("<td></td>")
    count, before = found
    share = count / max(1, total)
    # few errors among many right answers are to be seen as well
    shade = 0 if count == 0 else 1 + min(_SHADES - 1, int((share if on_diagonal else share**0.5) * _SHADES))
    kinds = f"{'d' if on_diagonal else 'e'}{shade}"
    if before is None or before == count:
        return Markup('<td class="{}">{}</td>').format(kinds, f"{count:,}")
    worse = (count < before) is on_diagonal
    return Markup('<td class="{} {}">{}<sup>{}</sup></td>').format(
        kinds, "worse" if worse else "better", f"{count:,}", f"{count - before:+,}"
    )


def pair_table(accuracy: Accuracy, names: Names) -> Table:
    """Return which classes are most often taken for which others, and below them what changed most."""
    totals = {each.label: each.total for each in accuracy.per_class}
    compared = any(pair.before is not None for pair in accuracy.confusions)
    most = accuracy.confusions[:_MOST_PAIRS]
    rest = [pair for pair in accuracy.confusions[_MOST_PAIRS:] if compared and pair.before != pair.count]
    rest.sort(key=lambda pair: -abs(pair.count - (pair.before or 0)))
    titles = ["class", "taken for", "images", "of the class %", *(["before", "change"] if compared else [])]
    rows = [_pair(pair, names, totals, compared) for pair in (*most, *rest[:_MOST_PAIRS])]
    return create_table(titles, ("class", "taken for"), rows)


def _pair(pair: Confusion, names: Names, totals: Mapping[int, int], compared: bool) -> list[str | Cell]:
    total = totals.get(pair.label, 0)
    line: list[str | Cell] = [names[pair.label], names[pair.prediction], f"{pair.count:,}"]
    line.append(f"{100 * pair.count / total:.1f}" if total else "–")
    if compared:
        difference = pair.count - (pair.before or 0)
        badge = None if difference == 0 else "failed" if difference > 0 else "passed"
        line += [f"{pair.before or 0:,}", Cell(f"{difference:+,}" if difference else "0", badge)]
    return line
