"""What verbs return: records that show themselves in a line, as a table in notebooks, as plain Python, and as a data frame."""

from __future__ import annotations

import dataclasses
import html
import json
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convnext_deploy.errors import BackendUnavailableError, printable

_LONGEST = 120  # characters of a value in a table
_MOST_ROWS = 60  # of a table in a notebook; `to_pandas` has all


class Result:
    """The base of what verbs return; `help` of one tells its fields.

    A subclass says what it is in one line (`headline`) and what its rows are (`to_rows`): artifacts, models, images.
    """

    def headline(self) -> str:
        """Say in one line what this is."""
        raise NotImplementedError

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat record for each thing that this tells of: numbers, texts, truth values and None."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as dicts, lists, numbers and texts: what `--json` prints."""
        if hasattr(self, "to_json"):
            found: dict[str, Any] = json.loads(self.to_json())
            return found
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def to_pandas(self) -> Any:
        """Return the rows as a `pandas.DataFrame`.

        Raises: BackendUnavailableError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise BackendUnavailableError(
                "to_pandas needs the package pandas: pip install pandas. to_dict() and to_rows() need nothing."
            ) from None
        return pd.DataFrame.from_records(self.to_rows())

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {printable(self.headline())}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the line, and the rows as a table; of a single row one line a field."""
        rows = self.to_rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        # a column without any value says nothing
        names = [name for name in names if any(row.get(name) is not None for row in rows)]
        if len(rows) == 1:
            body = "".join(f"<tr><th>{_text(name)}</th>{_cell(rows[0].get(name))}</tr>" for name in names)
        else:
            head = "".join(f"<th>{_text(name)}</th>" for name in names)
            lines = ("".join(_cell(row.get(name)) for name in names) for row in rows[:_MOST_ROWS])
            body = f"<thead><tr>{head}</tr></thead>" + "".join(f"<tr>{line}</tr>" for line in lines)
        more = f"<p>… and {len(rows) - _MOST_ROWS:,} more rows</p>" if len(rows) > _MOST_ROWS else ""
        table = f"<table>{body}</table>" if rows else ""
        return f"<div><p><b>{type(self).__name__}</b> {_text(self.headline())}</p>{table}{more}</div>"


def plain(value: Any) -> Any:
    """Return a value of ours as JSON has it: records as dicts, tuples as lists, paths as texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry) for entry in value]
    if isinstance(value, numbers.Real) and not isinstance(value, bool):  # also NumPy's
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def _text(value: object) -> str:
    return html.escape(printable(value))


def _cell(value: object) -> str:
    if value is None:
        return "<td>–</td>"
    shown = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else printable(value)
    if len(shown) > _LONGEST:
        shown = f"{shown[: _LONGEST - 1]}…"
    return f"<td>{html.escape(shown)}</td>"
