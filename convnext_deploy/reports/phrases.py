"""Sentences that model cards of runs and of bundles share: what was done to a model, and what its images go through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.stages import STAGE_KINDS, stage_config


def one_line(name: str) -> str:
    r"""Return a class name; one that is not printable with Python's escapes, such as `\n`, and `\\` for a backslash."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() and c != "\\" else ascii(c)[1:-1] for c in name)


def describe_step(record: Mapping[str, Any]) -> str:
    """Say what one step of an artifact's history did, from its `kind`, `name`, `model`, `data` and `seed`."""
    kind = record["kind"]
    what = stage_config(kind).done if kind in STAGE_KINDS else kind
    model = f" {record['model']}" if record["model"] else ""
    data = f" on '{record['data']}'" if record["data"] else ""
    return f"{what}{model}{data} (stage {record['name']}, seed {record['seed']})"


def preprocessing_steps(preprocess: Preprocess) -> list[str]:
    """Return what is done to an image file before the network sees it; the last step normalizes."""
    side, resize = preprocess.image_size, preprocess.resize_size
    how = (
        f"both sides to {resize}"
        if preprocess.crop_mode == "squash"
        else f"the shorter side to {resize}, keeping the aspect"
    )
    grey = "grey (ITU-R 601 luma)" if len(preprocess.mean) == 1 else "RGB"
    return [
        f"decode to 8-bit {grey}, turned upright as EXIF says;",
        f"resize {how}, {preprocess.interpolation} with antialiasing;",
        f"cut out the centre, {side}×{side};",
        f"divide by 255, subtract {list(preprocess.mean)}, divide by {list(preprocess.std)} (per channel), as float32.",
    ]
