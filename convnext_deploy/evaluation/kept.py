"""Keep measurements in files, each under the hash of what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar, cast

from convnext_deploy.config.records import read_record
from convnext_deploy.system.files import write_text

Record = TypeVar("Record")


def write_kept(path: Path, key: str, record: Any) -> None:
    """Keep a record; the folder of the file is made."""
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps({"key": key, **dataclasses.asdict(record)}))


def read_kept(kind: type[Record], path: Path, key: str) -> Record | None:
    """Return the record kept in `path`, or None if there is none with this key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # what was written has every field, also one that may be left out
        whole = content.keys() == {"key", *(field.name for field in dataclasses.fields(cast(Any, kind)))}
        return read_record(kind, content, "record") if content.pop("key") == key and whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
