"""The plots of how a network was made: training curves, and what quantizing each layer costs."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from convnext_deploy.metrics.intervals import wilson_interval
from convnext_deploy.reports.html import svg
from convnext_deploy.reports.html.axes import Axis, linear_axis, percent_axis, positive_axis
from convnext_deploy.reports.record import Layer

_HEIGHT = 190
_MOST_MARKED = 40  # epochs with marks on the line
_CURVES = (
    ("loss", "loss", (("train_loss", "training", "int8", "dash"), ("validation_loss", "validation", "fp32", "curve"))),
    (
        "top-1",
        "top-1, %",
        (
            ("validation_top1", "validation", "fp32", "curve"),
            ("ema_validation_top1", "averaged weights", "fp16", "dash"),
            ("selection_top1", "set aside", "muted", "dash"),
            ("ema_selection_top1", "set aside, averaged weights", "int8", "dash"),
        ),
    ),
    (
        "mAP",
        "mAP, %",
        (
            ("validation_map", "validation", "fp32", "curve"),
            ("ema_validation_map", "averaged weights", "fp16", "dash"),
            ("selection_map", "set aside", "muted", "dash"),
            ("ema_selection_map", "set aside, averaged weights", "int8", "dash"),
        ),
    ),
    ("learning rate", "learning rate", (("learning_rate", "learning rate", "muted", "curve"),)),
)
_PARTS = {
    "dwconv": "circle",
    "pwconv1": "square",
    "pwconv2": "diamond",
    "stem, downsampling": "triangle",
    "head": "star",
}
_LEAST_KL = 1e-12  # nats: what is less lies at the foot of the plot, as 0 does, below all others


def curves(history: Sequence[Mapping[str, float | None]], images: int | None = None) -> dict[str, Markup]:
    """Draw loss, what is scored and learning rate over the epochs; what was not recorded is left out.

    Args:
        history: what was measured after each epoch.
        images: that top-1 was counted on, for its 95 % interval; None: not known.

    Returns: title → plot.
    """
    epochs = [epoch.get("epoch") or float(number) for number, epoch in enumerate(history, 1)]
    drawn = {}
    for title, unit, lines in _CURVES:
        scale = 100.0 if unit.endswith("%") else 1.0
        found = {
            line: [
                (x, scale * y)
                for x, epoch in zip(epochs, history, strict=True)
                if (y := epoch.get(line[0])) is not None
            ]
            for line in lines
        }
        found = {line: points for line, points in found.items() if points}
        if found:
            drawn[title] = _curve(unit, epochs, found, images if title == "top-1" else None)
    return drawn


def _curve(
    unit: str,
    epochs: Sequence[float],
    lines: Mapping[tuple[str, str, str, str], list[tuple[float, float]]],
    images: int | None,
) -> Markup:
    values = [y for points in lines.values() for _, y in points]
    counted = {} if images is None else {line: points for line, points in lines.items() if "selection" not in line[0]}
    bands = {line: [_band(y, images or 1) for _, y in points] for line, points in counted.items()}
    ends = values + [end for band in bands.values() for pair in band for end in pair]
    y = percent_axis(unit, ends) if unit.endswith("%") else linear_axis(unit, [0.0, *ends], within=(0.0, float("inf")))
    key = tuple(svg.Key("line" if kind == "curve" else kind, color, name) for _, name, color, kind in lines)
    if bands:
        key = (*key, svg.Key("line", "band", "95 % interval"))
    frame = svg.Frame(_epoch_axis(epochs), y, _HEIGHT, key=key if len(key) > 1 else ())
    marks: list[Markup] = []
    for line, points in lines.items():
        _, name, color, kind = line
        places = [(frame.x.place(x), 100 - frame.y.place(value)) for x, value in points]
        if line in bands:
            low, high = ([100 - frame.y.place(pair[end]) for pair in bands[line]] for end in (0, 1))
            xs = [x for x, _ in places]
            marks.append(svg.path([*zip(xs, high, strict=True), *zip(xs[::-1], low[::-1], strict=True)], color, "area"))
        marks.append(svg.path(places, color, kind))
        if len(epochs) <= _MOST_MARKED:
            marks += [
                svg.mark("small", *place, color, f"epoch {x:g}\n{name} {value:.4g}")
                for place, (x, value) in zip(places, points, strict=True)
            ]
    return svg.draw(frame, marks, f"{unit} over {len(epochs)} epochs; the table has the figures")


def _band(top1_percent: float, images: int) -> tuple[float, float]:
    low, high = wilson_interval(round(top1_percent / 100 * images), images)
    return 100 * low, 100 * high


def _epoch_axis(epochs: Sequence[float]) -> Axis:
    first, last = min(epochs), max(epochs)
    if last - first < 1:
        return Axis("epoch", first - 0.5, last + 0.5, ((first, f"{first:g}"),), grid=False)
    axis = linear_axis("epoch", epochs, room=0.02)
    whole = tuple((value, label) for value, label in axis.ticks if value == round(value))
    return Axis("epoch", axis.low, axis.high, tuple((v, f"{v:g}") for v, _ in whole), grid=False)


def part_of(layer: Layer) -> str:
    """Return what kind of layer it is."""
    last = layer.name.rpartition(".")[2]
    return last if last in _PARTS else "head" if layer.name.startswith("head") else "stem, downsampling"


def sensitivity_plot(layers: Sequence[Layer]) -> Markup | None:
    """Draw what each layer costs when it alone is quantized, in the network's order; None if that was not measured."""
    costs = {place: layer.kl for place, layer in enumerate(layers) if layer.kl is not None}
    if not costs:
        return None
    least = max(_LEAST_KL, min((kl for kl in costs.values() if kl > 0), default=_LEAST_KL) / 10)
    shown = {place: max(kl, least) for place, kl in costs.items()}
    groups = [_stage(layer) for layer in layers]
    starts = {group: groups.index(group) for group in dict.fromkeys(groups)}
    middles = tuple((start + (groups.count(group) - 1) / 2, group) for group, start in starts.items())
    frame = svg.Frame(
        Axis("", -1.0, float(len(layers)), middles, grid=False),
        positive_axis("KL divergence", list(shown.values()), log=True),
        300,
        key=tuple(_parts(layers, costs)),
    )
    marks = [
        svg.line((at, 0), (at, 100), "line")
        for start in list(starts.values())[1:]
        for at in [frame.x.place(start - 0.5)]
    ]
    for place, kl in shown.items():
        layer = layers[place]
        title = f"{layer.name}: {layer.choice}\nKL {costs[place]:.3g}, {100 * (layer.changed or 0):.2f} % of first guesses changed"
        in_float = layer.choice == "float"
        at = frame.x.place(place), 100 - frame.y.place(kl)
        marks.append(svg.mark(_PARTS[part_of(layer)], *at, "fp32" if in_float else "int8", title, hollow=in_float))
    return svg.draw(frame, marks, f"KL divergence of {len(costs)} layers; the table has the figures")


def _parts(layers: Sequence[Layer], costs: Mapping[int, float]) -> Iterator[svg.Key]:
    """Yield what the marks mean, of those that there are."""
    measured = [layers[place] for place in costs]
    for part, shape in _PARTS.items():
        for in_float in (False, True):
            if any(part_of(layer) == part and (layer.choice == "float") is in_float for layer in measured):
                yield svg.Key(
                    shape, "fp32" if in_float else "int8", f"{part}, in float" if in_float else part, in_float
                )


def _stage(layer: Layer) -> str:
    """Return under which name of the axis a layer stands: the stem with the first model stage, the head with the last."""
    digits = [part for part in layer.name.split(".") if part.isdigit()]
    return f"stage {digits[0]}" if digits and not layer.name.startswith("head") else "stage 3"
