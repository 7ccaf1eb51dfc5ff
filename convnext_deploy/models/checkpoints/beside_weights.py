"""What lies beside weights in a file, such as what their training was called with: read as plain values, nothing of it is run."""

import argparse
import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convnext_deploy.documents import parse_json
from convnext_deploy.models.checkpoints.stand_ins import StandIn

# Where training scripts keep what they were called with: timm, torchvision and the official repositories; Lightning; many others.
_ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "meta")
BESIDE = "other entries"
"""The name under which the plain values beside the weights stand among the arguments of a training."""
_MOST_ARGUMENTS = 50_000  # the names of 21,841 classes are the most that anybody gives
# Characters that are read as JSON and as literals; these take a hundred times as much memory. 21,841 class names with descriptions
# take about 2 million.
_LONGEST_JSON, _LONGEST_LITERAL = 5_000_000, 1_000_000
_DEEPEST = 4  # tables within tables of arguments; what lies deeper is no setting


@dataclass(frozen=True)
class Beside:
    """What a file holds beside its weights.

    `arguments`: what its training was called with, by where that stands, such as `args` or `hyper_parameters` → name → plain value.
    `not_made`: the classes of objects in it, of which nothing was run and only plain values were read.
    """

    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_made: tuple[str, ...] = ()


def read_arguments(content: Any, weights: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a training was called with, by where that stands in a checkpoint; `weights`: names of entries with such."""
    if not isinstance(content, dict):
        return {}
    from torch import Tensor

    found = {name: plain(content.get(name)) for name in _ARGUMENTS}
    beside = {
        name: plain(value)
        for name, value in content.items()
        if type(name) is str and name not in (*weights, *_ARGUMENTS) and not isinstance(value, Tensor)
    }
    found[BESIDE] = {name: value for name, value in beside.items() if _is_setting(value)}
    return {name: table for name, table in found.items() if isinstance(table, dict) and table}


def _is_setting(value: Any) -> bool:
    """Whether a plain value is one, or a list or table of such."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is not None and not any(isinstance(item, dict | list) or item is None for item in inside)


def read_properties(properties: Mapping[str, str]) -> dict[str, Any]:
    """Return the texts in the metadata of a file as plain values: JSON, or literals of Python, as many tools write them."""
    return {name: plain(_parse(text)) for name, text in properties.items()}


def _parse(text: str) -> Any:
    for parse, longest in ((parse_json, _LONGEST_JSON), (ast.literal_eval, _LONGEST_LITERAL)):
        try:
            if len(text) <= longest:
                return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return text


def plain(value: Any) -> Any:
    """Return a value of a file made of nothing but text, numbers, lists and tables with names; whatever else is in it is None.

    So is what lies deeper than settings do, and all that comes after as many values as no training was called with.
    """
    left = _MOST_ARGUMENTS  # a list that holds itself many times would have no end

    def copy(value: Any, deepest: int) -> Any:
        nonlocal left
        left -= 1
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        for _ in range(_DEEPEST):  # one that holds itself would have no end
            value = value.value() if isinstance(value, StandIn) else value
        if left < 0 or (deepest == 0 and isinstance(value, Mapping | list | tuple)):
            return None
        if isinstance(value, Mapping):
            numbered = all(type(key) is int for key in value)  # as classes are
            items = ((str(key) if numbered else key, item) for key, item in value.items())
            return {key: copy(item, deepest - 1) for key, item in items if type(key) is str and left > 0}
        if isinstance(value, list | tuple):
            return [copy(item, deepest - 1) for item in value if left > 0]
        return value if type(value) in (bool, int, float, str) else None

    return copy(value, _DEEPEST)
