"""Where the preprocessing of a network comes from: told by a file, asked for, or assumed; and whether two are alike."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from convnext_deploy.artifacts.spec import Preprocess, default_preprocess
from convnext_deploy.config.image_size import show_size
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError

ASKED = "asked for"
_ASSUMED = "assumed: "
_NAMES = {
    "image_size": "size",
    "crop_pct": "crop",
    "crop_mode": "crop mode",
    "interpolation": "interpolation",
    "mean": "mean",
    "std": "std",
}
"""Field → how people call it."""
GEOMETRY = ("image_size", "crop_pct", "crop_mode", "interpolation")
"""What shows a network other images; mean and std are part of the network, and may be folded into it."""


def tell(preprocess: Preprocess, values: Mapping[str, Any], origin: str) -> Preprocess:
    """Return the preprocessing with some values, all of which come from `origin`."""
    origins = {**preprocess.origins, **dict.fromkeys(values, origin)}
    return replace(preprocess, **values, origins=origins)


def assume(preprocess: Preprocess, reason: str) -> Preprocess:
    """Return the preprocessing as one that no file tells; `reason` says why just this one."""
    return replace(preprocess, origins=dict.fromkeys(_NAMES, _ASSUMED + reason))


def assumed_fields(preprocess: Preprocess) -> tuple[str, ...]:
    """Return the fields that nobody told."""
    return tuple(name for name in _NAMES if preprocess.origins.get(name, "").startswith(_ASSUMED))


def ask(preprocess: Preprocess, settings: PreprocessSettings, what: str) -> Preprocess:
    """Return the preprocessing with what the user asked for.

    Args:
        preprocess: as the file tells, or assumed.
        settings: another image size without a crop brings the usual crop of that size.
        what: whose it is, for messages.

    Raises: ArtifactError: if mean or std are for another number of channels.
    """
    asked = {name: value for name, value in settings.asked().items() if name in _NAMES}
    channels = len(preprocess.mean)
    for name in asked.keys() & {"mean", "std"}:
        if len(asked[name]) not in (1, channels):
            raise ArtifactError(
                f"--{name} has {len(asked[name])} values, and {what} has {channels} channels; give one number, or {channels}."
            )
        asked[name] = tuple(asked[name]) * (channels if len(asked[name]) == 1 else 1)
    if settings.image_size is not None and settings.crop_pct is None:
        crop = {"crop_pct": default_preprocess(settings.image_size).crop_pct}
        preprocess = tell(preprocess, crop, _ASSUMED + "usual for this size")
    return tell(preprocess, asked, ASKED) if asked else preprocess


def describe(preprocess: Preprocess) -> str:
    """Say how images are made ready, with every value, and where each came from if that is known."""
    text = (
        f"{show_size(preprocess.image_size)} pixels, {preprocess.crop_mode} crop {preprocess.crop_pct:.3g}, "
        f"{preprocess.interpolation}, mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)}"
    )
    fields: dict[str, list[str]] = {}
    for field, name in _NAMES.items():
        if (origin := preprocess.origins.get(field)) is not None:
            fields.setdefault(origin, []).append(name)
    if len(fields) == 1 and len(*fields.values()) == len(_NAMES):
        return f"{text} (all {next(iter(fields))})"
    origins = "; ".join(f"{_list(names)} {origin}" for origin, names in fields.items())
    return f"{text} ({origins})" if origins else text


def describe_assumed(preprocess: Preprocess) -> str | None:
    """Say which values nobody told, and why these were taken; None if all are known."""
    fields: dict[str, list[str]] = {}
    for field in assumed_fields(preprocess):
        value = f"{_NAMES[field]} {_shown(field, getattr(preprocess, field))}"
        fields.setdefault(preprocess.origins[field].removeprefix(_ASSUMED), []).append(value)
    return "; ".join(f"{', '.join(values)} ({reason})" for reason, values in fields.items()) or None


def difference(one: Preprocess, other: Preprocess, fields: tuple[str, ...] = GEOMETRY) -> str | None:
    """Say in which fields two differ, such as `size 64 and 224`; None if in none."""
    unequal = [name for name in fields if getattr(one, name) != getattr(other, name)]
    return (
        ", ".join(
            f"{_NAMES[name]} {_shown(name, getattr(one, name))} and {_shown(name, getattr(other, name))}"
            for name in unequal
        )
        or None
    )


def _shown(name: str, value: Any) -> str:
    if name == "image_size":
        return show_size(value)
    if isinstance(value, tuple):
        return _numbers(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _numbers(values: tuple[float, ...]) -> str:
    same = len(set(values)) == 1
    return " ".join(f"{value:.3g}" for value in (values[:1] if same else values))


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
