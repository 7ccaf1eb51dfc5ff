"""One self-contained HTML file from a template: styles, scripts and plots inside, and nothing fetched from anywhere.

The page's own security policy forbids every request, and runs the two scripts of known hash alone, so that no text of a user can
become one.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from convnext_deploy.reports.escaping import clean

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("plotly-basic.min.js", "page.js")  # plotly.js 4.1.1 with bars, pies and scatter plots alone
GENERATOR = "convnext_deploy"
"""With the name of the template in the head of every page: what has that may be written again."""


def render_page(template: str, figures: Mapping[str, Mapping[str, Any]], **values: Any) -> str:
    """Return the text of a page.

    Args:
        template: file in `templates`.
        figures: id of the element that a plot is drawn in → what `figures.draw` returned.
        values: what the template reads.
    """
    scripts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS] if figures else []
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            generator=f"{GENERATOR} {template}",
            style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
            scripts=scripts,
            policy=_policy(scripts),
            # a text may hold the tag that ends a script
            figures=json.dumps(figures).replace("<", "\\u003c"),
        )
    )


def _shown(value: Any) -> Any:
    """Return what a template prints as it may be shown; what is safe is our own."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _environment() -> Environment:
    """Return what compiles the templates, and keeps them for the pages of the stages to come."""
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _policy(scripts: list[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    # Plotly sets styles on what it draws
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"
