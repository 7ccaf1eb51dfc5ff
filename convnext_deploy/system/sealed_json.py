"""JSON records that carry a checksum of themselves, so that one altered byte is found when they are read back."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "checksum"


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the SHA-256 of what it says as its last entry. Spaces and the order of keys do not count."""
    content = {key: value for key, value in record.items() if key != SEAL}
    return {**content, SEAL: _digest(content)}


def unseal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its checksum. One that has none was written by an earlier version, and is taken as it is.

    Raises: ValueError: if the record is not what it was when the checksum was made.
    """
    content = {key: value for key, value in record.items() if key != SEAL}
    if SEAL in record and record[SEAL] != _digest(content):
        raise ValueError("its checksum is that of another content: it was altered after it was written")
    return content


def _digest(record: Mapping[str, Any]) -> str:
    # once through JSON, because that is what a reader gets: lists for tuples, texts for keys
    read = json.loads(json.dumps(record))
    return hashlib.sha256(json.dumps(read, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
