"""Check that installed packages have the versions that other packages ask for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; also where its metadata is damaged."""
    try:
        version: str | None = importlib.metadata.version(distribution)
    except Exception:  # metadata that others left behind is damaged in many ways
        return None
    return version


def requirements_of(distribution: str, *, extras: bool = False) -> list[Requirement]:
    """Return what a distribution needs on this machine, with `extras` also what any of its extras needs.

    What cannot be read is left out: pip has the last word, not this check.
    """
    try:
        metadata = importlib.metadata.metadata(distribution)
        asked = ["", *(metadata.get_all("Provides-Extra", []) if extras else [])]
        lines = metadata.get_all("Requires-Dist", [])
    except Exception:  # damaged, as above
        return []
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in asked):
            found.append(requirement)
    return found


def find_misfits(distributions: Iterable[str], own: str) -> list[tuple[str, Requirement, str]]:
    """Return each of the distributions that another one of them needs in another version: who needs it, what, and what is there.

    Args:
        distributions: names; those that are not installed do not count.
        own: the one of them whose extras count as well.
    """
    found = {canonicalize_name(name): version for name in distributions if (version := installed_version(name))}
    return [
        (name, requirement, found[needed])
        for name in found
        for requirement in requirements_of(name, extras=name == canonicalize_name(own))
        if (needed := canonicalize_name(requirement.name)) in found
        and not requirement.specifier.contains(found[needed], prereleases=True)
    ]
