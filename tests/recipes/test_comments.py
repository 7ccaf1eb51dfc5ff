"""Beside every value of the recipes for sizes of networks and of data stands its source, and what it says is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.models.variants import VARIANTS, resolve_variant
from convnext_deploy.models.zoo.cost import count_parameters
from convnext_deploy.models.zoo.published import PUBLISHED
from convnext_deploy.models.zoo.ranking import training_memory
from convnext_deploy.models.zoo.training_settings import (
    LEAST_IMAGES,
    DataSize,
    fine_tuning,
    format_setting,
    settings_for_size,
    size_of,
    size_recipe,
)
from convnext_deploy.training.optimizer import scaled_learning_rate
from tests.recipes.training_stages import DATA, FILES, ROOT, SIZE_FILES, Training, by_file, cases, comments, trainings

PLAIN_KEYS = ("kind", "name", "source")
SOURCES = re.compile(
    r"paper, table \d|V2, \w+|arXiv \d{4}\.\d{5}|facebookresearch/|\(timm\)|ours(:| for |,| from )"
    r"|this tool's default|as above|the stage above|results: runs/"
)


@by_file
def test_every_key_has_its_source_beside_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    first_value = next(number for number, line in enumerate(lines) if line.startswith("name = "))
    header, body = " ".join(line.removeprefix("#").strip() for line in lines[:first_value]), lines[first_value:]
    assert f"convnext-deploy run {path.relative_to(ROOT)} --data DIR" in header
    assert all(f"'{word}' " in header for word in ("paper", "ours")), "the short forms are explained"
    assert ("V2, " in "\n".join(body)) == ("'V2' is TRAINING.md of facebookresearch/ConvNeXt-V2" in header)
    for line in body:
        if line and line[0] != "[":
            key, _, rest = line.partition(" = ")
            _, found, comment = rest.partition("  # ")
            assert found or key in PLAIN_KEYS, line
            assert not found or SOURCES.search(comment), line


@pytest.mark.parametrize(("path", "training"), cases(FILES))
def test_comments_state_the_ranges_of_the_tables(path: Path, training: Training) -> None:
    found, size = comments(path, training.stage), training.size
    rate = format_setting(scaled_learning_rate(training.fit.linear_learning_rate, 128))
    assert found["base_learning_rate"].startswith(f"{rate} at batch 128 x 32; ")
    data: DataSize | None = DATA.get(path.stem)
    for key, setting in (("base_learning_rate", "learning_rate"), ("drop_path_rate", "drop_path_rate")):
        spans = [getattr(size, setting)] + ([getattr(data.settings, setting)] if data is not None else [])
        stated = [str(span) in found[key] for span in spans]
        # the paper's rate for tiny on ImageNet lies in the range for the data alone, its drop path in that for the size alone
        assert any(stated) if path.stem == "imagenet" else all(stated), found[key]
    if path in SIZE_FILES:
        group = Path(size_recipe(training.variant) or "").stem.replace("_", " ")
        for key in ("epochs", "batch_size", "base_learning_rate", "warmup_epochs", "drop_path_rate"):
            assert f"ours for {group}" in found[key], found[key]
    start = fine_tuning(training.variant)
    assert start is not None
    if training.config.model.weights is not None:
        short = start.source.replace("TRAINING.md of facebookresearch/ConvNeXt-V2", "V2")
        assert found["layer_decay"].startswith(short.replace("arXiv 2201.03545", "paper"))


@pytest.mark.parametrize(("path", "training"), cases(FILES))
def test_comments_state_the_estimated_memory(path: Path, training: Training) -> None:
    found, spec = comments(path, training.stage), ModelSpec(training.variant, 1000)
    part = training.fit.batch_size // training.fit.accumulation_steps
    average = 4 * count_parameters(spec) / 2**30 if training.fit.ema_decay else 0.0
    memory = training_memory(spec, 224, part) + average
    if training.fit.accumulation_steps == 1:
        assert f"an estimated {memory:.1f} GB" in found["batch_size"]
    else:
        assert f"parts of {part} images need an estimated {memory:.1f} GB" in found["accumulation_steps"]


@pytest.mark.parametrize("path", SIZE_FILES, ids=lambda path: path.stem)
def test_header_says_how_many_images_it_takes(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\nname = ")[0]
    least = max(LEAST_IMAGES.get(size_of(training.variant), 0) for training in trainings(load_recipe(path)))
    texts = {50_000: "For 50,000 images and more", 1_000_000: "For a million images and more"}
    assert {number for number, text in texts.items() if text in header} == {least} - {0}


def table(name: str) -> Iterator[list[str]]:
    """Yield the rows on other variants in the header of a recipe, cut into cells."""
    for line in (ROOT / "recipes" / "sizes" / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#   "):
            yield re.split(r"\s{2,}", line[4:])


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("zepto_to_nano", {"zepto_rms_ols", "atto_ols", "atto_rms", "femto_ols", "pico_ols", "nano_ols"}),
        ("xlarge", set()),
    ],
)
def test_header_names_the_weights_of_the_other_variants(name: str, left_out: set[str]) -> None:
    rows = {resolve_variant(variant): weights for variant, weights, *_ in table(name)}
    path = f"recipes/sizes/{name}.toml"
    expected = {variant for variant in VARIANTS if size_recipe(variant) == path}
    assert set(rows) | {trainings(load_recipe(ROOT / path))[-1].variant} == expected - set(
        map(resolve_variant, left_out)
    )
    assert all(weights == f"timm/{published.weights}" for v, weights in rows.items() if (published := PUBLISHED[v]))


def test_header_of_v2_has_the_settings_of_every_size() -> None:
    head, *rows = table("v2")
    assert head == ["name", "base_learning_rate", "drop_path_rate", "layer_decay", "weights"]
    assert [resolve_variant(row[0]) for row in rows] == [v for v in VARIANTS if VARIANTS[v].version == 2]
    for name, *numbers, weights in rows:
        variant = resolve_variant(name)
        ranges, start, published = settings_for_size(variant), fine_tuning(variant), PUBLISHED[variant]
        assert ranges is not None
        assert start is not None
        expected = [ranges.learning_rate.middle * 32, ranges.drop_path_rate.middle, start.layer_decay]
        assert [float(number) for number in numbers] == pytest.approx(expected)
        assert weights == ("none published: from scratch" if published is None else f"timm/{published.weights}")
