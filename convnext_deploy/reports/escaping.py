"""Escape texts that come from anywhere, so that TOML, YAML, JSON, Markdown and pages show them as they are."""

import json
import re
import unicodedata

from convnext_deploy.errors import printable

# What Markdown, as GitHub reads it, takes for its own: `_` beside a letter is none, nor is `]` without a link behind it.
_MARKS = re.compile(r"[\\`*|#]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|](?=[(\[])|~(?=~)")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def quoted(text: str) -> str:
    r"""Return a text in double quotes as TOML, YAML and JSON read it; what is not printable is written as `\uXXXX`."""
    inside = (c if c.isprintable() else _escape(c) for c in json.dumps(text, ensure_ascii=False))
    return "".join(inside)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code < 0xE000:  # half of a pair, from a name that is no text: no format has it
        return "\ufffd"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clean(text: str) -> str:
    """Return lines of text in which what is not to be seen, such as the controls of writing direction, stands as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) == "Zs" else printable(c) for c in text)


def markdown(text: str) -> str:
    """Return a text that Markdown, also in a table, shows as it is, on one line."""
    shown = _MARKS.sub(r"\\\g<0>", printable(text))
    return _ENTITY.sub("&amp;", shown).replace("<", "&lt;")


def code(text: str) -> str:
    """Return a text as code within a line of Markdown."""
    shown, mark = printable(text), "`"
    while mark in shown:
        mark += "`"
    space = " " if len(mark) > 1 else ""
    return f"{mark}{space}{shown}{space}{mark}"


def fenced(text: str, language: str) -> str:
    """Return lines as a block of code in Markdown."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{clean(text)}\n{fence}"
