"""What the programs of a bundle share: they read its texts, check what `bundle.json` tells, and print and end alike."""

from __future__ import annotations

import importlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 100_000_000  # bytes of a text
SHARED = {"pixels": "data", "intervals": "metrics"}  # files of the package's rooms that bundles carry as they are

SHAPE: dict[str, Any] = {
    "preprocess": dict,
    "golden": {"pixels": str, "images": int},
    "models": [
        {
            **dict.fromkeys(("name", "file", "precision", "triton"), str),
            "input": dict,
            "outputs": [{"name": str, "golden": str}],
            "tolerance": dict,
            "batch": {"maximum": int},
            "buildable": bool,
        }
    ],
    "engines": [{**dict.fromkeys(("file", "kind", "model"), str), "gpus": list, "host_code": bool}],
}
"""The types of what is read; a list has any number of its one entry."""


OPTIONAL: dict[str, Any] = {"fp32": {"answers": str}, "class_names": [str]}
"""What a record may have beside it, or have as None."""


def check_record(record: dict[str, Any]) -> None:
    """Check that `bundle.json` has what these programs read. Raises: TypeError: naming the place."""
    check_shape(record)
    for name, shape in OPTIONAL.items():
        if record.get(name) is not None:
            check_shape(record[name], shape, name)


def check_shape(value: object, shape: Any = SHAPE, where: str = "it") -> None:
    """Check that a value has what `shape` says, and maybe more. Raises: TypeError: naming the place."""
    expected = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, expected):
        raise TypeError(f"{where} is a {type(value).__name__}; expected a {expected.__name__}")
    if isinstance(shape, dict) and isinstance(value, dict):
        for key, inner in shape.items():
            if key not in value:
                raise TypeError(f"{where} has no '{key}'")
            check_shape(value[key], inner, key if where == "it" else f"{where}.{key}")
    elif isinstance(shape, list) and isinstance(value, list):
        for place, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{place}]")


def named_files(record: dict[str, Any]) -> list[str]:
    """Return all files that a record of this shape names."""
    models = record["models"]
    outputs = [output["golden"] for model in models for output in model["outputs"]]
    fp32 = [] if record.get("fp32") is None else [record["fp32"]["answers"]]
    return [record["golden"]["pixels"], *outputs, *(entry["file"] for entry in [*models, *record["engines"]]), *fp32]


def load_sibling(name: str) -> Any:
    """Import a file that lies beside this one: in a bundle, whose programs put its folder first, or in the package."""
    if not __package__:
        return importlib.import_module(name)
    root = __package__.split(".")[0]
    return importlib.import_module(f"{root}.{SHARED[name]}.{name}" if name in SHARED else f"{__package__}.{name}")


def open_file(path: Path) -> BinaryIO:
    """Open a regular file: a pipe would wait for ever, a device has no end. Raises: OSError."""
    descriptor = os.open(str(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """Return a text in UTF-8. Raises: OSError: if it cannot be read, or is too large. ValueError: if it is in another encoding."""
    with open_file(path) as stream:
        if os.fstat(stream.fileno()).st_size > LARGEST:
            raise OSError(f"it is larger than {LARGEST} bytes")
        return stream.read().decode("utf-8")


def printable(text: object) -> str:
    """Return a text on one line that does nothing to a terminal, and that every terminal has characters for."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def positive(text: str) -> int:
    """Return a number of at least 1. Raises: ValueError."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def exit_code(main: Callable[[], int]) -> int:
    """Return the exit code of a program; Ctrl-C ends it in one line, with that of a shell."""
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
