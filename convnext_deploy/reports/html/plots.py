"""The plots of a run beside accuracy and latency: training curves, the layers' sensitivity, the change of each class."""

from collections.abc import Mapping, Sequence
from typing import Any

from convnext_deploy.evaluation.flips import ClassChange
from convnext_deploy.metrics.paired import SIGNIFICANCE
from convnext_deploy.reports.html.plotly_theme import axis, draw, literal
from convnext_deploy.reports.record import Layer

MOST_CLASSES = 30  # up to so many are all shown
_EXTREMES = 12  # of more, so many of the worst and of the best
_LONGEST_NAME = 26
_CURVES = (
    (
        "loss",
        "loss",
        (("train_loss", "training", "var(--int8)", "dash"), ("validation_loss", "validation", "var(--fp32)", "solid")),
    ),
    ("top-1", "top-1, %", (("validation_top1", "validation", "var(--fp32)", "solid"),)),
    ("mAP", "mAP, %", (("validation_map", "validation", "var(--fp32)", "solid"),)),
    ("learning rate", "learning rate", (("learning_rate", "learning rate", "var(--muted)", "solid"),)),
)
_PARTS = {
    "dwconv": "circle",
    "pwconv1": "square",
    "pwconv2": "diamond",
    "stem, downsampling": "triangle-up",
    "head": "star",
}


def curves(history: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Draw loss, what is scored and learning rate over the epochs; what was not recorded is left out. Titles → figures."""
    drawn = {}
    epochs = [epoch.get("epoch") or number for number, epoch in enumerate(history, 1)]
    for title, unit, lines in _CURVES:
        traces: list[dict[str, Any]] = []
        for key, name, color, dash in lines:
            values = [epoch.get(key) for epoch in history]
            if all(value is None for value in values):
                continue
            scale = 100.0 if key.endswith(("top1", "map")) else 1.0
            scaled = [None if value is None else scale * value for value in values]
            traces.append(
                {
                    "type": "scatter",
                    "x": epochs,
                    "y": scaled,
                    "name": name,
                    "mode": "lines+markers" if len(epochs) <= 40 else "lines",
                    "marker": {"size": 5, "color": color, "symbol": "circle" if dash == "solid" else "diamond"},
                    "line": {"color": color, "dash": dash, "width": 2},
                    "hovertext": [
                        f"epoch {epoch:g}<br>{name} {'not finite' if value is None else f'{value:.4g}'}"
                        for epoch, value in zip(epochs, scaled, strict=True)
                    ],
                    "hoverinfo": "text",
                }
            )
        if traces:
            drawn[title] = draw(
                traces,
                height=230,
                xaxis=axis("epoch", **({"dtick": 1} if len(epochs) <= 8 else {})),
                yaxis=axis(unit, nticks=6, exponentformat="e" if title == "learning rate" else "none"),
                showlegend=len(traces) > 1,
                legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
            )
    return drawn


def part_of(layer: Layer) -> str:
    """Return what kind of layer it is."""
    last = layer.name.rpartition(".")[2]
    return last if last in _PARTS else "head" if layer.name.startswith("head") else "stem, downsampling"


def sensitivity_plot(layers: Sequence[Layer]) -> dict[str, Any] | None:
    """Draw what each layer costs when it alone is quantized, in the network's order; None if that was not measured."""
    measured = [(place, layer) for place, layer in enumerate(layers) if layer.kl is not None and layer.kl > 0]
    if not measured:
        return None
    traces: list[dict[str, Any]] = []
    for part, symbol in _PARTS.items():
        for in_float in (False, True):
            chosen = [(i, x) for i, x in measured if part_of(x) == part and (x.choice == "float") is in_float]
            if not chosen:
                continue
            color = "var(--fp32)" if in_float else "var(--int8)"
            traces.append(
                {
                    "type": "scatter",
                    "x": [place for place, _ in chosen],
                    "y": [layer.kl for _, layer in chosen],
                    "mode": "markers",
                    "name": f"{part}, in float" if in_float else part,
                    "marker": {
                        "symbol": f"{symbol}-open" if in_float else symbol,
                        "size": 9,
                        "color": color,
                        "line": {"width": 1.5 if in_float else 0, "color": color},
                    },
                    "hovertext": [
                        f"<b>{literal(layer.name)}</b>: {literal(layer.choice)}<br>KL {layer.kl:.3g}, "
                        f"{100 * (layer.changed or 0):.2f} % of first guesses changed"
                        for _, layer in chosen
                    ],
                    "hoverinfo": "text",
                }
            )
    groups = [_stage(layer) for layer in layers]
    starts = {group: groups.index(group) for group in dict.fromkeys(groups)}
    middles = [start + (groups.count(group) - 1) / 2 for group, start in starts.items()]
    return draw(
        traces,
        height=340,
        shapes=[
            {
                "type": "line",
                "x0": start - 0.5,
                "x1": start - 0.5,
                "y0": 0,
                "y1": 1,
                "yref": "y domain",
                "line": {"color": "var(--line)", "width": 1},
            }
            for start in list(starts.values())[1:]
        ],
        xaxis=axis(None, tickvals=middles, ticktext=list(starts), range=[-1, len(layers)], showgrid=False),
        yaxis=axis("KL divergence, logarithmic", type="log", exponentformat="e", dtick=1),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )


def _stage(layer: Layer) -> str:
    """Return under which name of the axis a layer stands: the stem with the first model stage, the head with the last."""
    digits = [part for part in layer.name.split(".") if part.isdigit()]
    return f"stage {digits[0]}" if digits and not layer.name.startswith("head") else "stage 3"


def shown_classes(classes: Sequence[ClassChange]) -> list[ClassChange]:
    """Return the classes that a page shows, the largest drop first: all of few; of many the worst and the best that changed."""
    ordered = sorted(classes, key=lambda change: (-change.top1_drop_pp, change.label))
    if len(ordered) <= MOST_CLASSES:
        return ordered
    changed = [change for change in ordered if change.lost or change.gained]
    return changed if len(changed) <= 2 * _EXTREMES else changed[:_EXTREMES] + changed[-_EXTREMES:]


def class_plot(classes: Sequence[ClassChange]) -> dict[str, Any]:
    """Draw the drop of top-1 of each of these classes."""
    places = list(range(len(classes)))[::-1]  # the first one on top
    traces: list[dict[str, Any]] = []
    for is_loss in (True, False):
        for is_sure in (True, False):
            chosen = [
                (place, change)
                for place, change in zip(places, classes, strict=True)
                if (change.top1_drop_pp > 0) is is_loss and (change.p_value <= SIGNIFICANCE) is is_sure
            ]
            color = "var(--lost)" if is_loss else "var(--gained)"
            traces.append(
                {
                    "type": "bar",
                    "x": [change.top1_drop_pp for _, change in chosen],
                    "y": [place for place, _ in chosen],
                    "orientation": "h",
                    "width": 0.7,
                    "marker": {"color": color, "opacity": 1.0 if is_sure else 0.4},
                    "hovertext": [_describe_class(change) for _, change in chosen],
                    "hoverinfo": "text",
                }
            )
    names = [
        change.name if len(change.name) <= _LONGEST_NAME else f"{change.name[: _LONGEST_NAME - 1]}…"
        for change in classes
    ]
    return draw(
        traces,
        height=20 * len(classes) + 70,
        barmode="overlay",
        xaxis=axis("drop of top-1, pp (right: worse)", zeroline=True, zerolinecolor="var(--muted)", nticks=7),
        yaxis=axis(
            None,
            tickvals=places,
            ticktext=[literal(name) for name in names],
            range=[-0.6, len(classes) - 0.4],
            showgrid=False,
        ),
        showlegend=False,
    )


def _describe_class(change: ClassChange) -> str:
    before, after = (100 * correct / max(1, change.total) for correct in (change.baseline_correct, change.correct))
    return (
        f"<b>{literal(change.name)}</b><br>drop {change.top1_drop_pp:+.2f} pp: {change.lost} lost, {change.gained} gained of "
        f"{change.total} images<br>{before:.1f} → {after:.1f} %, p = {change.p_value:.2g}"
    )
