"""What `verify.py` and `build_engine.py` read of `bundle.json`, and the check that it is there; needs nothing but Python 3.8."""

from __future__ import annotations

from typing import Any

SHAPE: dict[str, Any] = {
    "preprocess": dict,
    "golden": {"pixels": str},
    "models": [
        {
            **dict.fromkeys(("name", "file", "precision", "triton"), str),
            "input": dict,
            "outputs": [{"name": str, "golden": str}],
            "tolerance": {"onnx": dict, "engine": dict},
            "batch": {"maximum": int},
            "buildable": bool,
        }
    ],
    "engines": [{**dict.fromkeys(("file", "kind", "model"), str), "gpus": list, "host_code": bool}],
}
"""The types of what is read; a list has any number of its one entry."""


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
    return [record["golden"]["pixels"], *outputs, *(entry["file"] for entry in [*models, *record["engines"]])]
