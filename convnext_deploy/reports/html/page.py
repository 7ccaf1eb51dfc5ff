"""One self-contained HTML file from a template: styles and plots inside, no script, and nothing fetched from anywhere.

The page's own security policy forbids every request and every script, so that no text of a user can become one.
"""

import functools
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from convnext_deploy.reports.escaping import clean
from convnext_deploy.reports.html import svg

_TEMPLATES = Path(__file__).parent / "templates"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
GENERATOR = "convnext_deploy"
"""With the name of the template in the head of every page: what has that may be written again."""


def render_page(template: str, **values: Any) -> str:
    """Return the text of a page.

    Args:
        template: file in `templates`.
        values: what the template reads; plots are markup already.
    """
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            generator=f"{GENERATOR} {template}",
            style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
            policy=_POLICY,
            marks=svg.definitions(),
        )
    )


def _shown(value: Any) -> Any:
    """Return what a template prints as it may be shown; what is safe is our own."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _environment() -> Environment:
    """Return what compiles the templates, and keeps them for the pages of the stages to come."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_whole_flags"] = _with_whole_flags
    return environment


def _with_whole_flags(text: str) -> Markup:
    """Return a sentence in which browsers break no option of the command line, which they do at its hyphens."""
    return Markup(re.sub(r"(?<![\w-])--[a-z][a-z-]*", r'<span class="flag">\g<0></span>', str(escape(clean(text)))))
