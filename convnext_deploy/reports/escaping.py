"""Escape users' texts for TOML, YAML, JSON and UTF-8."""

import json


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
    """Return a text that can be written as UTF-8: halves of surrogate pairs, from names that are no text, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
