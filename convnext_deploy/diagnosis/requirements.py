"""What packages say of the versions that they need, and whether the installed ones fit."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?$")
_EXTRA = re.compile(r"\s*extra\s*==\s*\S+\s*")
_CLAUSE = re.compile(r"\s*(===|==|~=|!=|<=|>=|<|>)\s*v?([0-9][^\s,]*)\s*$")


@dataclass(frozen=True)
class Requirement:
    """A package, by its normalized name, and the versions of it that are allowed, such as `>=2.14,<2.15`."""

    name: str
    versions: str


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; also where its metadata is damaged."""
    try:
        version: str | None = importlib.metadata.version(distribution)
    except Exception:  # metadata that others left behind is damaged in many ways
        return None
    return version


def requirements_of(distribution: str, *, extras: bool = False) -> tuple[Requirement, ...]:
    """Return what a distribution needs in any case, with `extras` also what these need; not what depends on the platform."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except Exception:  # see `installed_version`
        return ()
    found = (_REQUIREMENT.match(line) for line in lines)
    return tuple(
        Requirement(normalize(m[1]), m[2].strip())
        for m in found
        if m is not None and (m[3] is None or (extras and _EXTRA.fullmatch(m[3])))
    )


def normalize(name: str) -> str:
    """Return the one way to write the name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def allows(versions: str, installed: str) -> bool:
    """Whether a version is among those allowed. What cannot be read is allowed: pip has the last word, not this check.

    Args:
        versions: clauses such as `>=2.14,<2.15`, `==2.14.*`, `~=2.1`.
        installed: such as `2.14.1+cu130`; the part behind `+` counts only where the clause has one.
    """
    return all(_holds(clause, installed) for clause in versions.split(",") if clause.strip())


def _holds(clause: str, installed: str) -> bool:
    match = _CLAUSE.match(clause)
    if match is None:
        return True
    operator, asked = match.groups()
    has = installed if "+" in asked else installed.partition("+")[0]
    if asked.endswith(".*"):
        begins = _numbers(has)[: len(_numbers(asked[:-2]))] == _numbers(asked[:-2])
        return begins if operator == "==" else not begins if operator == "!=" else True
    if operator == "===":
        return has == asked
    have, want = _padded(_numbers(has), _numbers(asked))
    if operator == "~=":
        return have >= want and have[: len(_numbers(asked)) - 1] == _numbers(asked)[:-1]
    order = (have > want) - (have < want)
    holds = {"==": order == 0, "!=": order != 0, "<=": order <= 0, ">=": order >= 0, "<": order < 0, ">": order > 0}
    return holds[operator]


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release of a version; what follows it, such as `rc1`, is left out."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else (0,)


def _padded(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = max(len(a), len(b))
    return a + (0,) * (size - len(a)), b + (0,) * (size - len(b))


def find_misfits(distributions: Iterable[str], own: str) -> list[tuple[str, Requirement, str]]:
    """Return each of the distributions that another one of them needs in another version: who needs it, what, and what is there.

    Args:
        distributions: names; those that are not installed do not count.
        own: the one of them whose extras count as well.
    """
    versions = {normalize(name): version for name in distributions if (version := installed_version(name)) is not None}
    return [
        (name, requirement, versions[requirement.name])
        for name in versions
        for requirement in dict.fromkeys(requirements_of(name, extras=name == normalize(own)))
        if requirement.name in versions and not allows(requirement.versions, versions[requirement.name])
    ]
