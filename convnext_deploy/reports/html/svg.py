"""Plots as SVG that a page shows at any width without a script: places are per cent of the plot's area, sizes are pixels.

Text and marks therefore stay as large on a phone as on a wide screen, and only the area between them shrinks. Colours are names,
which the style sheet knows for light, dark and paper. Hovering shows the `title` of a mark; everything is in tables as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from convnext_deploy.reports.escaping import clean
from convnext_deploy.reports.html.axes import Axis

MARKS = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.6-4.6h9.2v9.2h-9.2z",
    "diamond": "M0-6.2L6.2 0L0 6.2L-6.2 0z",
    "triangle": "M0-6L6 5H-6z",
    "star": "M0-6.5L1.9-2.1L6.5-1.8L3-1.2L4.2 5.6L0 2.6L-4.2 5.6L-3-1.2L-6.5-1.8L-1.9-2.1z",
    "small": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "tick": "M-1-6h2v12h-2z",
}
"""Marks by name, around the point (0, 0), in pixels."""
_CHARACTER = 6.6  # pixels, of the text at an axis


@dataclass(frozen=True)
class Key:
    """An entry of the legend: the mark (or `line`, `dash`), its colour and what it stands for."""

    mark: str
    color: str
    text: str
    hollow: bool = False


@dataclass(frozen=True)
class Frame:
    """A plot's area between its axes; None: an axis is not drawn. `height` of the area in pixels; `left` of it room for numbers."""

    x: Axis
    y: Axis
    height: int
    left: int | None = None
    key: tuple[Key, ...] = ()


def join(parts: Iterable[str]) -> Markup:
    """Return parts that are markup already, one after the other; what is no markup is escaped."""
    return Markup("").join(parts)


def text(value: str) -> Markup:
    """Return a user's text as it may stand in markup."""
    return escape(clean(value))


def percent(value: float) -> str:
    """Return a place as SVG wants it; what lies far outside stays near."""
    return f"{min(400.0, max(-300.0, value)):.2f}".rstrip("0").rstrip(".") + "%"


def draw(frame: Frame, marks: Iterable[Markup], label: str) -> Markup:
    """Return the plot: legend, axes and marks.

    Args:
        frame: what the marks stand in.
        marks: from `mark`, `line`, `path`, `bar` and `name`, in places of the frame's axes.
        label: what a reader who does not see it is told.
    """
    longest = max((len(clean(tick)) for _, tick in frame.y.ticks), default=0)
    left = frame.left if frame.left is not None else 14 + round(_CHARACTER * longest) + 20 * bool(frame.y.title)
    below = 44 if frame.x.title else 24
    inner = join([*_grid(frame.x, frame.y), *marks])
    return join(
        [
            legend(frame.key),
            Markup('<div class="area" style="padding:8px 16px {}px {}px">').format(below, left),
            Markup('<svg width="100%" height="{}" role="img" aria-label="{}">').format(frame.height, text(label)),
            inner,
            Markup("</svg></div>"),
        ]
    )


def definitions() -> Markup:
    """Return the marks that plots refer to, once for a page."""
    shapes = join(Markup('<path id="m-{}" d="{}"/>').format(name, path) for name, path in MARKS.items())
    return Markup('<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{}</defs></svg>').format(shapes)


def mark(shape: str, x: float, y: float, color: str, title: str = "", *, hollow: bool = False) -> Markup:
    """Return a mark at places in per cent, from the left and the top; `title` is shown when the mouse is over it."""
    return Markup('<use href="#m-{}" x="{}" y="{}" class="{}" style="color:var(--{})">{}</use>').format(
        shape, percent(x), percent(y), "hollow" if hollow else "full", color, _title(title)
    )


def line(start: tuple[float, float], end: tuple[float, float], color: str, kind: str = "thin") -> Markup:
    """Return a straight line between two places; `kind` is a class of the style sheet: `thin`, `error`, `dots`."""
    places = [percent(place) for place in (*start, *end)]
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}" style="color:var(--{})"/>').format(
        *places, kind, color
    )


def path(points: Sequence[tuple[float, float]], color: str, kind: str = "curve", *, closed: bool = False) -> Markup:
    """Return lines from place to place; `kind` is a class: `curve`, `dash`, `dots`, or `area` for one that is filled."""
    steps = " ".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return Markup(
        '<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" class="stretched">'
        '<path d="M{}{}" class="{}" style="color:var(--{})"/></svg>'
    ).format(steps, "z" if closed else "", kind, color)


def bar(x: tuple[float, float], y: tuple[float, float], color: str, title: str = "", kind: str = "full") -> Markup:
    """Return a filled rectangle between two places on either axis."""
    (left, right), (top, bottom) = sorted(x), sorted(y)
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}" style="color:var(--{})">{}</rect>').format(
        percent(left), percent(top), percent(right - left), percent(bottom - top), kind, color, _title(title)
    )


def name(x: float, y: float, words: str, anchor: str = "start", kind: str = "", dx: int = 0, dy: int = 0) -> Markup:
    """Return a text at a place, moved by `dx` and `dy` pixels. `anchor`: `start`, `middle` or `end`; `kind`: a class, as `wide`."""
    return Markup('<text x="{}" y="{}" dx="{}" dy="{}" text-anchor="{}" class="{}">{}</text>').format(
        percent(x), percent(y), dx, dy, anchor, kind, text(words)
    )


def _title(words: str) -> Markup:
    return Markup("<title>{}</title>").format(text(words)) if words else Markup("")


def _grid(x: Axis, y: Axis) -> Iterable[Markup]:
    for value, label in y.ticks:
        place = 100 - y.place(value)
        if y.grid:
            yield line((0, place), (100, place), "line")
        yield name(0, place, label, "end", "tick", dx=-8, dy=4)
    for number, (value, label) in enumerate(x.ticks):
        place = x.place(value)
        if x.grid:
            yield line((place, 0), (place, 100), "line")
        # every other number goes where there is no room
        yield name(place, 100, label, "middle", "tick wide" if number % 2 and len(x.ticks) > 5 else "tick", dy=18)
    yield line((0, 100), (100, 100), "muted")
    if x.title:
        yield name(50, 100, x.title, "middle", "title", dy=38)
    if y.title:
        yield Markup('<svg x="0" y="50%" class="stretched"><text transform="translate(-{} 0) rotate(-90)"').format(
            18 + round(_CHARACTER * max((len(label) for _, label in y.ticks), default=0))
        ) + Markup(' text-anchor="middle" class="title">{}</text></svg>').format(text(y.title))


def legend(keys: Sequence[Key]) -> Markup:
    """Return what the marks of one plot, or of several that stand together, mean; nothing for none."""
    if not keys:
        return Markup("")
    entries = []
    for key in keys:
        if key.mark in ("line", "dash", "dots"):
            kind = "curve" if key.mark == "line" else key.mark
            shape = Markup('<path d="M0 6H22" class="{}" style="color:var(--{})"/>').format(kind, key.color)
            width = 22
        else:
            shape = Markup('<use href="#m-{}" x="7" y="6" class="{}" style="color:var(--{})"/>').format(
                key.mark, "hollow" if key.hollow else "full", key.color
            )
            width = 14
        swatch = Markup('<svg width="{}" height="12" aria-hidden="true">{}</svg>').format(width, shape)
        entries.append(Markup("<li>{}{}</li>").format(swatch, text(key.text)))
    return Markup('<ul class="legend">{}</ul>').format(join(entries))
