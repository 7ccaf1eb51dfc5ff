"""The recipes for sizes of networks and of data, and what their training stages train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.models.zoo.training_settings import DATA_SIZES, SettingRanges, settings_for_size

ROOT = Path(__file__).parents[2]
SIZE_FILES, DATA_FILES = (sorted((ROOT / "recipes" / folder).glob("*.toml")) for folder in ("sizes", "data"))
FILES = (*SIZE_FILES, *DATA_FILES)
DATA = {Path(size.recipe).stem: size for size in DATA_SIZES}
by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@dataclasses.dataclass(frozen=True)
class Training:
    """A training stage of a recipe: its name, the full name of its network, and its settings."""

    stage: str
    variant: str
    config: TrainConfig | DistillConfig

    @property
    def size(self) -> SettingRanges:
        ranges = settings_for_size(self.variant)
        assert ranges is not None
        return ranges

    @property
    def fit(self) -> FitConfig:
        return self.config.fit


def trainings(recipe: Recipe) -> list[Training]:
    return [
        Training(stage.name, resolve_variant(stage.config.model.name), stage.config)
        for stage in recipe.stages
        if isinstance(stage.config, TrainConfig | DistillConfig)
    ]


def cases(files: Sequence[Path]) -> list[object]:
    return [
        pytest.param(path, training, id=f"{path.stem}-{training.stage}")
        for path in files
        for training in trainings(load_recipe(path))
    ]


def comments(path: Path, stage: str) -> dict[str, str]:
    """Return the comment beside each key of a training stage's tables, its head's keys included."""
    text = path.read_text(encoding="utf-8").split(f'\nname = "{stage}"\n')[1].split("\n[[stages]]")[0]
    return {line.split(" = ")[0]: line.split("  # ")[1] for line in text.splitlines() if "  # " in line}
