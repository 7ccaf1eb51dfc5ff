"""Axes and layout of all plots; colours are names, which the page looks up for light, dark and paper."""

import html
from collections.abc import Sequence
from typing import Any

from convnext_deploy.reports.escaping import clean

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


def literal(text: str) -> str:
    """Return a user's text so that Plotly, which understands some HTML in texts, shows it as it is."""
    return html.escape(clean(text), quote=False)


def axis(title: str | None, **settings: Any) -> dict[str, Any]:
    """Return a quiet axis."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": "var(--muted)"}, "standoff": 8},
        "tickfont": {"size": 11, "color": "var(--muted)"},
        "gridcolor": "var(--line)",
        "linecolor": "var(--line)",
        "zerolinecolor": "var(--line)",
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        **settings,
    }


def draw(traces: Sequence[dict[str, Any]], height: int, **layout: Any) -> dict[str, Any]:
    """Return what the page hands to Plotly.js: traces and layout. Plain data, as building it in Python takes ten times as long."""
    quiet = {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": "var(--text)"},
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--muted)",
            "font": {"color": "var(--text)", "size": 12},
            "align": "left",
        },
        "hovermode": "closest",
        "dragmode": False,
    }
    return {"data": list(traces), "layout": {**quiet, **layout}}
