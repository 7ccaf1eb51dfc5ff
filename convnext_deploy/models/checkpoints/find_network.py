"""Find the network in whatever a training script wrapped around it, by the names that every ConvNeXt has.

A file may hold several networks, in tables within tables and under prefixes: raw weights and their average, a student and its
teacher, a backbone in a Lightning module. Each is found by its stem and first block, whatever stands before their names.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext_deploy.config.choices import Dialect
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.foreign_names import prefixes_before, with_official_names
from convnext_deploy.models.checkpoints.heads import Head, has_head, head_beside, take_head
from convnext_deploy.models.checkpoints.key_maps import BASE_MODELS, DIALECTS, MAIN_PARTS, SIGNATURES
from convnext_deploy.models.checkpoints.safe_reader import check_name, check_tensor

_DEEPEST = 16  # tables within tables
_MOST_TABLES = 10_000  # an optimizer has one for each of its parameters
_SHOWN = 3  # names of what is left out
_NO_HEADS = (
    "norms.",
    "projectors.",
)  # of DINOv3: the last norm once more, and what led the features of its distillation
_COUNTERS = re.compile(r"(^|\.)total_(ops|params)$")  # that thop leaves in every module it has counted
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_AVERAGES = {"ema", "swa", "average", "averaged"}
_BLOCK = re.compile(r"stages\.\d+\.\d+\.dwconv\.weight")
_OF_FASTAI = re.compile(r"1\.\d+\.weight")  # its head stands behind the body, "0."


@dataclass(frozen=True)
class FoundNetwork:
    """A network in a file.

    `entry`: the names of the tables and prefixes before those of its weights, with dots between; empty for a flat file.
    `library`: whose names they had in the file. `tensors`: its weights under the dialect's names, but for a `head` that is not the
    library's own. `left_out`: what stands beside them in the same table.
    """

    entry: str
    dialect: Dialect
    library: str
    tensors: dict[str, Tensor]
    head: Head
    left_out: tuple[str, ...]


def find_networks(content: Any, path: Path) -> list[FoundNetwork]:
    """Return the ConvNeXts in what a file holds, the one to take first.

    An average of the weights comes before the weights, since its authors publish that; a teacher comes last, and after all others
    what lacks its last model stage.

    Args:
        content: of `read_content`.
        path: the file, for messages.

    Raises: CheckpointError: if a name or tensor of a table with a network is none that weights can have.
    """
    found = [network for names, table in tensor_tables(content) for network in _in_table(names, table, path)]
    return sorted(found, key=_rank)


def tensor_tables(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield the tables that hold tensors, in tables and lists of any depth, with the names and numbers that lead to them."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while pending and len(seen) < _MOST_TABLES:
        names, table = pending.pop(0)
        if not isinstance(table, Mapping | list | tuple) or id(table) in seen or len(names) > _DEEPEST:
            continue
        seen.add(id(table))
        if isinstance(table, Mapping) and any(isinstance(value, Tensor) for value in table.values()):
            yield names, table
        items = table.items() if isinstance(table, Mapping) else enumerate(table)
        pending += [
            ((*names, str(key)), value)
            for key, value in items
            if isinstance(key, str | int) and isinstance(value, Mapping | list | tuple)
        ]


def _in_table(names: tuple[str, ...], table: Mapping[Any, Any], path: Path) -> Iterator[FoundNetwork]:
    table, libraries = with_official_names(table)
    keys = [key for key, value in table.items() if isinstance(key, str) and isinstance(value, Tensor)]
    known = set(keys)
    for dialect in DIALECTS:
        stem, block, _ = SIGNATURES[dialect]
        for prefix in prefixes_before(keys, stem):
            if prefix + block in known or (dialect == "facebook" and _has_blocks(prefix, keys)):
                root = prefix
                for base in BASE_MODELS if dialect == "huggingface" else ():  # the head stands beside the base model
                    root = root.removesuffix(base)
                yield _gather(names, table, path, dialect, root, libraries.get(root))


def _has_blocks(prefix: str, keys: list[str]) -> bool:
    """Whether there are blocks, also where the first was removed."""
    return any(_BLOCK.fullmatch(key, len(prefix)) for key in keys if key.startswith(prefix))


def _gather(
    names: tuple[str, ...], table: Mapping[Any, Any], path: Path, dialect: Dialect, prefix: str, library: str | None
) -> FoundNetwork:
    tensors: dict[str, Tensor] = {}
    left_out = []
    for key, value in table.items():
        check_name(path, key)
        name = key.removeprefix(prefix)
        own = key.startswith(prefix) and name.partition(".")[0] in MAIN_PARTS[dialect]
        if own and isinstance(value, Tensor) and not _COUNTERS.search(name):
            check_tensor(path, key, value)
            tensors[name] = value
        else:
            left_out.append(key)
    entry = ".".join((*names, prefix.removesuffix("."))).strip(".")
    head = take_head(tensors, dialect, path)
    last = _last_block(tensors, dialect)
    if prefix.startswith("0.") and last is not None:
        _check_not_fastai(table, left_out, last.shape[0], path)
    if prefix and last is not None and not head.tensors and not has_head(tensors, dialect):
        parent = ".".join(prefix.split(".")[:-2])
        not_heads = tuple(prefix + part for part in _NO_HEADS)
        beside = {
            key: table[key]
            for key in left_out
            if isinstance(table[key], Tensor)
            and key.startswith(parent)
            and not key.startswith(not_heads)
            and not _COUNTERS.search(key)
        }
        head = head_beside(beside, len(parent) + bool(parent), last.shape[0], path)
        left_out = [key for key in left_out if key not in head.taken]
    return FoundNetwork(entry, dialect, library or dialect, tensors, head, tuple(left_out))


def _last_block(tensors: Mapping[str, Tensor], dialect: Dialect) -> Tensor | None:
    """Return the depthwise weights of the first block of the last model stage; None where a network is cut before it."""
    return next((tensor for name, tensor in tensors.items() if name.endswith(SIGNATURES[dialect][2])), None)


def _check_not_fastai(table: Mapping[Any, Any], keys: list[str], width: int, path: Path) -> None:
    """Raises: CheckpointError: if behind a body stands fastai's head, which normalizes the features of two poolings."""
    for key in keys:
        value = table[key]
        if _OF_FASTAI.fullmatch(key) and isinstance(value, Tensor) and value.ndim == 1 and value.shape[0] != width:
            raise CheckpointError(
                f"{path} is a network of fastai, whose head pools and normalizes in its own way ('{key}'); export it to ONNX there "
                "and give that file."
            )


def _rank(network: FoundNetwork) -> tuple[bool, bool, int]:
    words = [word.lower() for word in _WORDS.findall(network.entry)]
    is_cut = _last_block(network.tensors, network.dialect) is None
    averages = sum(word in _AVERAGES for word in words)  # ema.ema_model stands beside ema.online_model
    return is_cut, "teacher" in words, -averages


def choose_network(networks: list[FoundNetwork], entry: str | None, path: Path) -> FoundNetwork:
    """Return the network that the user named, or the first.

    Args:
        networks: of `find_networks`, at least one.
        entry: the `entry` of one, or the end of it.
        path: the file, for messages.

    Raises: CheckpointError: if none or several have that name.
    """
    if entry is None:
        return networks[0]
    fitting = [each for each in networks if each.entry == entry]
    fitting = fitting or [each for each in networks if each.entry.endswith(f".{entry}")]
    if len(fitting) != 1:
        known = ", ".join(each.entry or "the file itself" for each in networks)
        raise CheckpointError(
            f"{path} has {'several networks' if fitting else 'no network'} '{entry}'; it has: {known}."
        )
    return fitting[0]


def describe_choice(chosen: FoundNetwork, networks: list[FoundNetwork], path: Path) -> list[str]:
    """Say which network of the file was taken, and what was left out."""
    others = [
        each.entry or f"the file itself in the names of {each.library}" for each in networks if each is not chosen
    ]
    notes = []
    if chosen.entry or others:
        took = f"{path.name}: took the weights " + (f"under '{chosen.entry}'" if chosen.entry else "of the file itself")
        notes.append(
            f"{took}, and not {', '.join(others)} (convert --entry NAME writes one of these)" if others else took
        )
    prefixes = tuple(f"{each.entry.rpartition('.')[2]}." for each in networks if each is not chosen and each.entry)
    rest = [key for key in chosen.left_out if not (prefixes and key.startswith(prefixes))]
    if rest:
        shown = ", ".join(rest[:_SHOWN]) + (f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else "")
        notes.append(f"{path.name}: left out {shown}, which are no part of the network")
    return notes
