"""`models` as a table, as one model in full, and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from convnext_deploy.cli.models import _columns
from convnext_deploy.models.variants import VARIANTS, short_name
from tests.cli.conftest import call


def records(*arguments: str) -> list[dict[str, Any]]:
    outcome = call("models", *arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    models: list[dict[str, Any]] = json.loads(outcome.out)["models"]
    return models


def test_models_prints_a_line_for_every_variant() -> None:
    outcome = call("models")
    assert (outcome.code, outcome.err) == (0, "next: convnext-deploy models tiny\n")
    lines = {line.split()[0]: line.split() for line in outcome.out.splitlines() if line.strip()}
    assert {short_name(variant) for variant in VARIANTS} <= set(lines)
    assert lines["tiny"] == [
        "tiny", "28.59", "4.46", "3-3-9-3", "96-192-384-768", "82.1", "224/0.875", "3e-4", "0.1–0.2", "convnext_tiny.fb_in1k",
    ]  # fmt: skip
    assert lines["v2-small"][5:] == ["–", "–", "2e-4", "0.2–0.4", "–"]
    assert lines["test_convnext"][5:] == ["47.8", "160/0.95", "–", "–", "test_convnext.r160_in1k"]


def test_models_cuts_nothing_off() -> None:
    outcome = call("models")
    assert "…" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 160
    assert "convnext_large_mlp.clip_laion2b_augreg_ft_in1k" in outcome.out


@pytest.mark.parametrize(("width", "columns"), [(80, 7), (99, 7), (100, 9), (149, 9), (150, 10)])
def test_models_shows_the_columns_that_fit(width: int, columns: int) -> None:
    assert len(_columns(width)) == columns


@pytest.mark.parametrize("width", [80, 100, 150])
def test_models_fits_into_the_width_of_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext_deploy.cli.tables.FILE_WIDTH", width)
    table = [line for line in call("models").out.splitlines() if line.startswith(tuple(map(short_name, VARIANTS)))]
    assert len(table) == len(VARIANTS)
    assert max(map(len, table)) <= width
    assert "…" not in "".join(table)


def test_models_says_what_the_figures_mean() -> None:
    text = " ".join(call("models").out.split())
    assert "multiply-accumulates of convolutions and linear layers" in text
    assert "AdamW, betas 0.9 and 0.999, weight decay 0.05" in text


def test_models_json_holds_every_variant_in_full() -> None:
    found = {record["variant"]: record for record in records()}
    assert list(found) == list(VARIANTS)
    large = found["convnext_large_mlp"]
    assert (large["parameters"], large["depths"], large["widths"]) == (
        200_128_168,
        [3, 3, 27, 3],
        [192, 384, 768, 1536],
    )
    assert large["published"]["weights"] == "convnext_large_mlp.clip_laion2b_augreg_ft_in1k"
    assert large["published"]["top1"] == 87.3
    assert large["published"]["evaluation"]["image_size"] == 256
    assert large["published"]["evaluation"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert large["settings"]["learning_rate"] == {"low": 8e-5, "high": 1e-4}
    assert found["convnextv2_small"]["published"] is None
    assert found["test_convnext"]["settings"] is None


def test_models_json_says_at_which_batch_learning_rates_hold() -> None:
    training = json.loads(call("models", "--json").out)["training"]
    assert (training["learning_rate_batch_size"], training["optimizer"], training["betas"]) == (
        128,
        "AdamW",
        [0.9, 0.999],
    )


def test_models_shows_one_in_full() -> None:
    outcome = call("models", "v2-tiny")
    assert outcome.code == 0
    facts = {line[:22].strip(): line[22:].strip() for line in outcome.out.splitlines()}
    assert facts["model"] == "convnextv2_tiny (short: v2-tiny), ConvNeXt version 2"
    assert facts["parameters"] == "28,635,496 with 1000 classes"
    assert facts["unlike the papers"] == "nothing"
    assert facts["published weights"] == "timm/convnextv2_tiny.fcmae_ft_in1k (CC BY-NC 4.0: not for commercial use)"
    assert facts["top-1"].startswith("83.0 % on ImageNet-1k")
    assert facts["evaluated"] == "at 224 pixels: resized to 256, bicubic, center crop of 0.875"
    assert facts["learning rate"] == "2e-4 at batch 128, scaled linearly"
    assert facts["regularization"] == "label smoothing 0.1, mixup 0.8, CutMix 1.0"
    assert [record["variant"] for record in records("v2-tiny")] == ["convnextv2_tiny"]


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        ("atto_rms", "RMSNorm in the place of LayerNorm", "top-1"),
        ("zepto_rms", "learning rates up to 20 % higher work as well", "commercial"),
        ("test_convnext2", "not recommended", "learning rate"),
        ("nano", "no mixup, no CutMix", "note"),
    ],
)
def test_models_shows_what_is_special(name: str, present: str, absent: str) -> None:
    outcome = call("models", name)
    assert outcome.code == 0
    assert present in outcome.out
    assert absent not in outcome.out


def test_models_refuses_an_unknown_name_with_the_nearest() -> None:
    outcome = call("models", "tinny")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: unknown model 'tinny'. Did you mean 'tiny'?")


@pytest.mark.heavy
def test_models_imports_nothing_heavy_for_json() -> None:
    code = """
import sys
sys.argv = ["convnext-deploy", "models", "--json"]
from convnext_deploy.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print([name for name in ("torch", "numpy", "rich", "PIL") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"
    assert len(json.loads(done.stdout)["models"]) == len(VARIANTS)
