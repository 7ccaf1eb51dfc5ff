"""`models`: every variant with its architecture, its cost, what is published about it and how to train it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from convnext_deploy.api.options import verb
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.models.variants import VARIANTS, Variant, resolve_variant, short_name
from convnext_deploy.models.zoo import training_settings
from convnext_deploy.models.zoo.cost import count_macs, count_parameters
from convnext_deploy.models.zoo.published import PUBLISHED, Published
from convnext_deploy.models.zoo.ranking import tier_of
from convnext_deploy.models.zoo.training_settings import SettingRanges, settings_for_size, settings_note
from convnext_deploy.system.results import Result, plain

_CLASSES = 1000  # of ImageNet-1k, for which parameters are published


@dataclass(frozen=True)
class ModelRow:
    """A variant. `parameters` with 1000 classes, `macs` multiply-accumulates for one image of 224 x 224 pixels.

    `tier` 1 (best) to 4 of the ranking, None: not recommended. `published` None: nobody has published weights. `settings`
    None: there is no advice on how to train it. `settings_note`: what a modifier in the name changes in them.
    """

    variant: str
    short_name: str
    version: int
    parameters: int
    macs: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    differences: tuple[str, ...]
    tier: int | None
    published: Published | None
    settings: SettingRanges | None
    settings_note: str | None


class Models(Result, tuple[ModelRow, ...]):
    """Variants, a tuple of `ModelRow`."""

    __slots__ = ()

    def headline(self) -> str:
        """Say how many there are, and how large."""
        if len(self) == 1:
            return f"{self[0].variant}, {self[0].parameters / 1e6:.1f} million parameters"
        sizes = [row.parameters / 1e6 for row in self]
        return f"{len(self)} variants of {min(sizes):.1f} to {max(sizes):.0f} million parameters"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each variant; of what is published top-1 and the name of the weights."""
        return [self._row(row) for row in self]

    @staticmethod
    def _row(row: ModelRow) -> dict[str, Any]:
        nested = ("published", "settings")
        record = {name: value for name, value in plain(row).items() if name not in nested}
        return {
            **record,
            "top1": row.published and row.published.top1,
            "weights": row.published and row.published.weights,
        }

    def to_json(self) -> str:
        """Return what `--json` prints: the variants, and the training settings that all of them share."""
        shared = {
            "optimizer": "AdamW",
            "weight_decay": training_settings.WEIGHT_DECAY,
            "betas": training_settings.BETAS,
            "learning_rate_batch_size": training_settings.RATE_BATCH_SIZE,
            "mixup_alpha": training_settings.MIXUP_ALPHA,
            "cutmix_alpha": training_settings.CUTMIX_ALPHA,
        }
        return json.dumps({"training": shared, "models": [dataclasses.asdict(row) for row in self]}, indent=1)


@verb
def list_models(name: str | None = None) -> Models:
    """Return all variants, or the one that a full or short name means.

    Raises: RecipeError: if no variant has that name.
    """
    return Models(map(describe_variant, VARIANTS if name is None else (resolve_variant(name),)))


def describe_variant(variant: str) -> ModelRow:
    """Return the row of a variant, by its full name."""
    row, spec = VARIANTS[variant], ModelSpec(variant, _CLASSES)
    return ModelRow(
        variant=variant,
        short_name=short_name(variant),
        version=row.version,
        parameters=count_parameters(spec),
        macs=count_macs(spec, 224),
        depths=row.depths,
        widths=row.dims,
        differences=_differences(row),
        tier=tier_of(variant),
        published=PUBLISHED[variant],
        settings=settings_for_size(variant),
        settings_note=settings_note(variant),
    )


def _differences(row: Variant) -> tuple[str, ...]:
    """Say what sets a variant apart from the papers' networks."""
    norms = {
        "rmsnorm": "RMSNorm in the place of LayerNorm",
        "simplenorm": "norms that divide by the standard deviation and subtract no mean",
    }
    texts = {
        f"stem of two overlapping 3x3 convolutions, {row.stem_dim or row.dims[0]} channels between them": row.stem
        != "patch",
        norms.get(row.norm, ""): row.norm in norms,
        "the last norm stands before the pooling": row.head_norm_first,
        f"hidden layer of {row.head_hidden_size} in the head": row.head_hidden_size is not None,
        f"activation {row.activation}": row.activation != "gelu",
        f"depthwise kernels of {', '.join(map(str, row.kernel_sizes))}": len(set(row.kernel_sizes)) > 1,
        f"norm epsilon {row.norm_eps:g}": row.norm_eps != Variant.norm_eps,
    }
    return tuple(text for text, holds in texts.items() if holds)
