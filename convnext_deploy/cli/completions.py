"""What a shell offers for a value when Tab is pressed. Every function here takes what click gives, and must be fast."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

RUNNER_NAMES = (
    "torch", "torch-compile", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-openvino", "openvino",
    "openvino-fp32", "openvino-bf16", "tensorrt", "torch-tensorrt",
)  # fmt: skip
"""As in `runners.RUNNERS`, which would import NumPy."""

_MODEL_SUFFIXES = (".onnx", ".safetensors", ".pth", ".pt", ".ckpt")
_MANIFEST, _REPORT = "manifest.json", "report.json"
_NO_ARTIFACTS = ("checkpoints", "cache")  # of a run: the state of its trainings
_DEPTH = 4  # folders below what was typed, such as runs/NAME/stages/STAGE
_MOST_FOLDERS = 500
# A shell takes some characters for its own, and click's scripts do not quote them; its own completion of files does.
_PLAIN = r"[\w@%+=:,./-]+"

Candidates: TypeAlias = "list[str] | list[CompletionItem]"


def recipes(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer TOML files."""
    return _paths(typed, lambda entry: entry.is_file() and entry.name.endswith(".toml"))


def runs(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer the folders of finished runs."""
    return _paths(typed, lambda entry: entry.is_dir() and os.path.exists(os.path.join(entry.path, _REPORT)))  # noqa: PTH110, PTH118


def artifacts(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer artifact folders and files with weights; after `timm/` the names of published weights."""
    if typed.startswith("timm/"):
        return weights(context, parameter, typed)
    return _paths(typed, _is_artifact)


def weights(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer the names of published weights."""
    from convnext_deploy.models.zoo.published import PUBLISHED

    names = (f"timm/{published.weights}" for published in PUBLISHED.values() if published is not None)
    return [name for name in names if name.startswith(typed)]


def weights_or_artifacts(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer the names of published weights and what `artifacts` does."""
    names = weights(context, parameter, typed)
    return names if typed and names else artifacts(context, parameter, typed)


def variants(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer models by their short names, and by their full ones once these are begun."""
    from convnext_deploy.models.variants import VARIANTS, short_name

    short = [short_name(full) for full in VARIANTS]
    return [name for name in dict.fromkeys((*short, *(VARIANTS if typed else ()))) if name.startswith(typed)]


def runners(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer the names of runners."""
    return [name for name in RUNNER_NAMES if name.startswith(typed)]


def gpus(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer the names of GPUs; of a list with commas the last one is completed."""
    from convnext_deploy.system.gpu_models import GPUS

    before, comma, last = typed.rpartition(",")
    names = [name for listed in GPUS.values() for name in listed.split()]
    return [f"{before}{comma}{name}" for name in (*names, *(f"sm{number}" for number in GPUS)) if name.startswith(last)]


def data(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer `digits`, and folders."""
    from click.shell_completion import CompletionItem

    return ["digits"] if typed and "digits".startswith(typed) else [CompletionItem(typed, type="dir")]


def folders(context: click.Context, parameter: click.Parameter, typed: str) -> Candidates:
    """Offer folders."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(typed, type="dir")]


def _is_artifact(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir():
        return os.path.exists(os.path.join(entry.path, _MANIFEST))  # noqa: PTH110, PTH118  (a Path costs ten times as much)
    return entry.name.endswith(_MODEL_SUFFIXES)


def _paths(typed: str, is_meant: Callable[[os.DirEntry[str]], bool]) -> Candidates:
    """Return all that is meant in the folders that begin as typed; where there is nothing of it, the shell completes files."""
    from click.shell_completion import CompletionItem

    base, _, begun = typed.rpartition("/")
    found = sorted(_walk(base or ("/" if typed.startswith("/") else "."), begun, is_meant))
    names = [path if base or typed.startswith("/") else path.removeprefix("./") for path in found]
    if not names or not all(re.fullmatch(_PLAIN, name) for name in names):
        return [CompletionItem(typed, type="file")]
    return names


def _walk(base: str, begun: str, is_meant: Callable[[os.DirEntry[str]], bool]) -> Iterator[str]:
    """Yield what is meant below a folder, the nearest first, without the insides of what is meant."""
    level = [base]
    opened = 0
    for depth in range(_DEPTH + 1):
        below: list[str] = []
        for folder in level:
            opened += 1
            if opened > _MOST_FOLDERS:
                return
            entries = _entries(folder, begun if depth == 0 else "")
            is_run = any(entry.name == "stages" for entry in entries)
            for entry in entries:
                if is_run and entry.name in _NO_ARTIFACTS:
                    continue
                if is_meant(entry):
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
        level = below


def _entries(folder: str, begun: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return []
    return [e for e in found if e.name.startswith(begun) and (begun.startswith(".") or not e.name.startswith("."))]
