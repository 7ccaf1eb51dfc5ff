"""The recipe reader refuses what it does not understand, in one line that names the place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.config.recipe import Gate, Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.errors import RecipeError

START = 'name = "r"\n'
MODEL = '[[stages]]\nkind = "train"\nname = "net"\n[stages.model]\nname = "atto"\n'
FIT = START + MODEL + "[stages.fit]\n"
PTQ = START + MODEL + '[[stages]]\nkind = "ptq"\n'
DISTILL = START + MODEL + '[[stages]]\nkind = "distill"\nname = "student"\nmodel = { name = "atto" }\n'
QAT = PTQ + '[[stages]]\nkind = "qat"\n'
ENGINE = START + MODEL + '[[stages]]\nkind = "onnx"\n[[stages]]\nkind = "tensorrt"\nname = "engine"\n'


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def refuse(tmp_path: Path, text: str) -> str:
    """Return the message with which a recipe is refused, without the path that it starts with."""
    with pytest.raises(RecipeError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / "r.toml") in message
    return message


@pytest.mark.parametrize(
    ("text", "where", "key", "nearest"),
    [
        (START + "sed = 1\n" + MODEL, "recipe", "sed", "seed"),
        (START + MODEL.replace("[stages.model]", "optimizer = 1\n[stages.model]"), "stage 'net'", "optimizer", None),
        (START + MODEL + "imagesize = 32\n", "stage 'net': model", "imagesize", "image_size"),
        (FIT + "epoch = 3\n", "stage 'net': fit", "epoch", "epochs"),
        (FIT + "learning_rate = 0.1\n", "stage 'net': fit", "learning_rate", "base_learning_rate"),
        (PTQ + "calibration_image = 3\n", "stage 'ptq'", "calibration_image", "calibration_images"),
        (PTQ + "gate = { max_drop = 1.0 }\n", "stage 'ptq' gate", "max_drop", "max_top1_drop_pp"),
        (PTQ + "gate = { min_top_1 = 1.0 }\n", "stage 'ptq' gate", "min_top_1", "min_top1"),
        (START + "gate = { min_top = 1.0 }\n" + MODEL, "gate", "min_top", "min_top1"),
        (START + MODEL + '[[stages]]\nkind = "onnx"\nopset = 17\n', "stage 'onnx'", "opset", None),
    ],
)
def test_load_recipe_names_an_unknown_key_and_the_nearest_known_one(
    tmp_path: Path, text: str, where: str, key: str, nearest: str | None
) -> None:
    message = refuse(tmp_path, text)
    assert f"{where}: unknown key '{key}'." in message
    assert (f"Did you mean '{nearest}'?" in message) if nearest else ("Did you mean" not in message)


@pytest.mark.parametrize("text", ["reconstruction = true\n", "reconstruction_steps = 40\n"])
def test_load_recipe_says_what_has_replaced_a_setting_that_is_gone(tmp_path: Path, text: str) -> None:
    message = refuse(tmp_path, PTQ + text)
    assert f"stage 'ptq': there is no {text.split()[0]} any more: gptq, which is on by default, has replaced" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = 5\n" + MODEL, "name = 5 has the wrong type; expected str"),
        (START + 'seed = "0"\n' + MODEL, "seed = '0' has the wrong type; expected int"),
        (START + "speed_check = 1\n" + MODEL, "speed_check = 1 has the wrong type; expected bool"),
        (START + "seed = true\n" + MODEL, "seed = True has the wrong type; expected int"),
        (START + "data = 5\n" + MODEL, "data = 5 has the wrong type; expected str"),
        (START + "gate = 0.5\n" + MODEL, "gate must be a table, found 0.5"),
        (START + "stages = 5\n", "stages must be written as [[stages]] tables"),
        (START + '[stages]\nkind = "ptq"\n', "stages must be written as [[stages]] tables"),
        (START + "stages = [1]\n", "stages must be written as [[stages]] tables"),
        (START + '[[stages]]\nkind = "train"\nmodel = "atto"\n', "stage 'train': model must be a table, found 'atto'"),
        (
            START + MODEL + "image_size = 32.0\n",
            "stage 'net': model: image_size = 32.0 has the wrong type; expected int",
        ),
        (START + MODEL + 'crop_pct = "1"\n', "stage 'net': model: crop_pct = '1' has the wrong type; expected float"),
        (FIT + 'epochs = "3"\n', "stage 'net': fit: epochs = '3' has the wrong type; expected int"),
        (FIT + "epochs = 3.5\n", "stage 'net': fit: epochs = 3.5 has the wrong type; expected int"),
        (FIT + "weight_decay = true\n", "stage 'net': fit: weight_decay = True has the wrong type; expected float"),
        (
            FIT + 'autocast = "fp8"\n',
            "stage 'net': fit: autocast = 'fp8' is unknown; expected one of 'auto', 'off', 'bf16', 'fp16'",
        ),
        (
            PTQ + 'calibration_method = "median"\n',
            "calibration_method = 'median' is unknown; expected one of 'auto', 'minmax'",
        ),
        (PTQ + 'calibration_method = ["minmax"]\n', "calibration_method = ['minmax'] is unknown"),
        (ENGINE + 'gpus = "sm86"\n', "stage 'engine': gpus = 'sm86' has the wrong type; expected a list"),
        (ENGINE + "gpus = [86]\n", "stage 'engine': gpus[0] = 86 has the wrong type; expected str"),
        (DISTILL + "teacher = 5\n", "stage 'student': teacher = 5 has the wrong type; expected str"),
        (START + MODEL + "weights = 5\n", "stage 'net': model: weights = 5 has the wrong type; expected str"),
        (
            START + MODEL + "head_hidden_size = 1.5\n",
            "stage 'net': model: head_hidden_size = 1.5 has the wrong type; expected int",
        ),
        (
            START + MODEL + 'head_activation = "tanh"\n',
            "model: head_activation = 'tanh' is unknown; expected one of 'gelu', 'relu'",
        ),
        (
            FIT + "gradient_checkpointing = 1\n",
            "stage 'net': fit: gradient_checkpointing = 1 has the wrong type; expected bool",
        ),
        (PTQ + "gate = 0.5\n", "stage 'ptq' gate must be a table, found 0.5"),
        (PTQ + 'gate = { min_top1 = "1" }\n', "stage 'ptq' gate: min_top1 = '1' has the wrong type; expected float"),
        (PTQ + "source = 5\n", "stage 'ptq': source = 5 has the wrong type; expected str"),
        (START + '[[stages]]\nkind = "onnx"\nname = 5\n', "name = 5 has the wrong type; expected str"),
        (START + '[[stages]]\nkind = ["ptq"]\n', "stage kind ['ptq'] is unknown"),
    ],
)
def test_load_recipe_names_a_value_of_the_wrong_type(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refuse(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (START + MODEL + "patch_size = 3\n", "stage 'net': model: patch_size = 3 is out of range; expected 2"),
        (
            START + MODEL + "in_channels = 4\n",
            "stage 'net': model: in_channels = 4 is out of range; expected 1 (grey) or 3",
        ),
        (START + MODEL + "image_size = 31\n", "image_size = 31 is out of range; expected >= 32 with patch_size 4"),
        (START + MODEL + "crop_pct = 0.0\n", "stage 'net': model: crop_pct = 0.0 is out of range; expected 0.1 to 1.0"),
        (
            START + MODEL + "head_hidden_size = -1\n",
            "model: head_hidden_size = -1 is out of range; expected >= 1, or 0 for none",
        ),
        (FIT + "head_dropout = 1.0\n", "stage 'net': fit: head_dropout = 1.0 is out of range; expected 0 <= value < 1"),
        (FIT + "epochs = 0\n", "stage 'net': fit: epochs = 0 is out of range; expected >= 1"),
        (FIT + "batch_size = 0\n", "stage 'net': fit: batch_size = 0 is out of range; expected >= 1"),
        (FIT + "base_learning_rate = 0.0\n", "base_learning_rate = 0.0 is out of range; expected > 0"),
        (FIT + "base_learning_rate = nan\n", "base_learning_rate = nan is out of range"),
        (FIT + "base_learning_rate = inf\n", "base_learning_rate = inf is out of range"),
        (FIT + "warmup_epochs = inf\n", "warmup_epochs = inf is out of range"),
        (FIT + "weight_decay = inf\n", "weight_decay = inf is out of range"),
        (FIT + "warmup_epochs = -1\n", "warmup_epochs = -1.0 is out of range; expected >= 0"),
        (FIT + "label_smoothing = 1.0\n", "label_smoothing = 1.0 is out of range"),
        (FIT + "drop_path_rate = 1\n", "drop_path_rate = 1.0 is out of range"),
        (FIT + "layer_scale_init = 0\n", "layer_scale_init = 0.0 is out of range"),
        (FIT + "crop_scale_min = 0\n", "crop_scale_min = 0.0 is out of range"),
        (FIT + "flip_probability = 1.5\n", "flip_probability = 1.5 is out of range"),
        (PTQ + "percentile = 50\n", "stage 'ptq': percentile = 50.0 is out of range; expected 50 < value <= 100"),
        (PTQ + "calibration_images = 0\n", "stage 'ptq': calibration_images = 0 is out of range; expected >= 1"),
        (PTQ + "batch_size = -1\n", "stage 'ptq': batch_size = -1 is out of range; expected >= 1"),
        (QAT + "temperature = 0\n", "stage 'qat': temperature = 0.0 is out of range; expected > 0"),
        (
            QAT + "distill_loss_weight = 1.1\n",
            "stage 'qat': distill_loss_weight = 1.1 is out of range; expected 0 to 1",
        ),
        (ENGINE + "optimal_batch_size = 9\n", "stage 'engine': optimal_batch_size = 9 is out of range; expected 1 to"),
        (
            ENGINE + "optimization_level = 6\n",
            "stage 'engine': optimization_level = 6 is out of range; expected 0 to 5",
        ),
        (ENGINE + "workspace_mib = 0\n", "stage 'engine': workspace_mib = 0 is out of range; expected >= 1"),
        (ENGINE + "gpus = []\n", "stage 'engine': gpus = () is out of range; expected at least one"),
        (
            PTQ + "gate = { min_speedup = 0 }\n",
            "stage 'ptq' gate: min_speedup = 0.0 is out of range; expected a factor",
        ),
        (PTQ + "gate = { min_speedup = 101 }\n", "min_speedup = 101.0 is out of range; expected a factor, 0.1 to 100"),
        (
            PTQ + "gate = { min_top1 = 97.5 }\n",
            "stage 'ptq' gate: min_top1 = 97.5 is out of range; expected a fraction",
        ),
        (PTQ + "gate = { max_top1_drop_pp = -1 }\n", "max_top1_drop_pp = -1.0 is out of range; expected 0 to 100"),
        (START + "seed = -1\n" + MODEL, "seed = -1 is out of range"),
        (START + f"seed = {2**70}\n" + MODEL, f"seed = {2**70} is out of range; expected 0 to {2**63 - 1}"),
        (START + MODEL + "image_size = 1000000000\n", "image_size = 1000000000 is out of range; expected 1 to 16384"),
        (
            PTQ + "calibration_images = 1000000000000\n",
            "calibration_images = 1000000000000 is out of range; expected at most 2",
        ),
        (
            START + MODEL + "[stages.fit]\nepochs = 1000000000000000000\n",
            "epochs = 1000000000000000000 is out of range; expected at most 2147483647",
        ),
    ],
)
def test_load_recipe_names_a_value_out_of_range(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refuse(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MODEL, "recipe: 'name' is missing"),
        ("", "recipe: 'name' is missing"),
        (START, "recipe 'r' has no stages; add at least one [[stages]] table"),
        (START + '[[stages]]\nkind = "train"\nname = "net"\n', "stage 'net': 'model' is missing"),
        (START + '[[stages]]\nkind = "train"\nname = "net"\n[stages.model]\n', "stage 'net': model: 'name' is missing"),
        (DISTILL, "stage 'student': 'teacher' is missing"),
        (START + '[[stages]]\nname = "net"\n', "kind"),
    ],
)
def test_load_recipe_names_what_is_missing(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refuse(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (START + '[[stages]]\nkind = "trian"\n', "stage kind 'trian' is unknown. Did you mean 'train'?"),
        (START + '[[stages]]\nkind = "sparsify"\n', "Known: train, distill, prune, ptq, qat, quantize, onnx, tensorrt"),
        (PTQ + '[[stages]]\nkind = "ptq"\n', "the stage name 'ptq' is taken"),
        (PTQ + 'name = "source"\n', "the stage name 'source' is taken"),
        (PTQ + 'name = "baseline"\n', "the stage name 'baseline' is taken"),
        (
            PTQ + 'source = "nets"\n',
            "stage 'ptq': source = 'nets' is not an earlier stage. Did you mean 'net'? Known here: net.",
        ),
        (PTQ + 'source = "ptq"\n', "stage 'ptq': source = 'ptq' is not an earlier stage"),
        (DISTILL + 'teacher = "later"\n' + MODEL.replace("net", "later"), "teacher = 'later' is not an earlier stage"),
        (DISTILL + 'teacher = "source"\n', "stage 'student': teacher = 'source' is not an earlier stage"),
        (START + '[[stages]]\nkind = "ptq"\n', "stage 'ptq' (ptq) has nothing to work on; set its source"),
        (
            PTQ
            + MODEL.replace("net", "again").replace("[stages.model]", 'source = "net"\n[stages.model]')
            + 'weights = "w"\n',
            "stage 'again' has both a source and weights to start from; give one of them",
        ),
        *(
            (PTQ + f'name = "{name}"\n', "is not usable; expected letters, digits, '-', '_' and '.'")
            for name in ("", ".", "..", ".hidden", "-x", "a b", "a/b", "../a", "é", "a\\nb")
        ),
    ],
)
def test_load_recipe_names_a_wrong_kind_name_or_reference(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refuse(tmp_path, text)


@pytest.mark.parametrize("text", ["name = ", 'name = "r"\nname = "s"\n', "[[stages]\n", "a = 1\x00"])
def test_load_recipe_raises_when_the_file_is_no_toml(tmp_path: Path, text: str) -> None:
    message = refuse(tmp_path, text)
    assert "cannot be read: " in message
    assert re.search(r"line \d+|end of document", message)


def test_load_recipe_raises_when_the_file_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match=r"r\.toml cannot be read: "):
        load_recipe(tmp_path / "r.toml")


def test_load_recipe_raises_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"there is no recipe {tmp_path / 'r.toml'}; see recipes/README\.md"):
        load_recipe(tmp_path / "r.toml")


def test_load_recipe_raises_when_the_path_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_load_recipe_takes_the_stage_before_as_source(tmp_path: Path) -> None:
    recipe = load(tmp_path, QAT)
    assert [(stage.name, stage.source) for stage in recipe.stages] == [("net", None), ("ptq", "net"), ("qat", "ptq")]
    assert recipe.stages[2].config == QATConfig()


def test_load_recipe_takes_the_brought_artifact_as_source_of_the_first_stage(tmp_path: Path) -> None:
    recipe = load(tmp_path, START + 'source = "a.pth"\n[[stages]]\nkind = "ptq"\n')
    assert recipe.stages == (StageEntry("ptq", PTQConfig(), "source"),)


def test_load_recipe_lets_a_stage_override_one_value_of_the_common_gate(tmp_path: Path) -> None:
    text = START + "gate = { max_top1_drop_pp = 1, min_top1 = 0.5 }\n" + MODEL + '[[stages]]\nkind = "ptq"\n'
    recipe = load(tmp_path, text + "gate = { min_top1 = 0.25 }\n")
    assert [stage.gate for stage in recipe.stages] == [Gate(1.0, 0.5), Gate(1.0, 0.25)]


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        ("", 'max_top1_drop_pp = 0.5, on = "upper"', Gate(0.5, None, "upper")),
        ('gate = { max_top1_drop_pp = 1, on = "upper" }\n', "max_top1_drop_pp = 0.5", Gate(0.5, None, "upper")),
        ('gate = { max_top1_drop_pp = 1, on = "upper" }\n', 'on = "point"', Gate(1.0)),
        ("gate = { max_top1_drop_pp = 1 }\n", 'on = "upper"', Gate(1.0, None, "upper")),
        (
            "gate = { max_class_drop_pp = 5 }\n",
            'max_ece_increase_pp = 0.5, on = "upper"',
            Gate(on="upper", max_ece_increase_pp=0.5, max_class_drop_pp=5.0),
        ),
    ],
)
def test_load_recipe_reads_which_end_a_gate_is_on(tmp_path: Path, common: str, own: str, expected: Gate) -> None:
    recipe = load(tmp_path, START + common + MODEL + f'[[stages]]\nkind = "ptq"\ngate = {{ {own} }}\n')
    assert recipe.stages[-1].gate == expected


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            'max_top1_drop_pp = 1, on = "lower"',
            "stage 'ptq' gate: on = 'lower' is unknown; expected one of 'point', 'upper'",
        ),
        (
            'on = "upper"',
            "stage 'ptq' gate: on = 'upper' is about the drop, and no max_top1_drop_pp is given; give both",
        ),
        ("max_top1_drop_pp = 1, on = true", "on = True is unknown"),
    ],
)
def test_load_recipe_refuses_a_gate_on_something_else(tmp_path: Path, gate: str, message: str) -> None:
    assert message in refuse(tmp_path, PTQ + f"gate = {{ {gate} }}\n")


def test_load_recipe_accepts_whole_numbers_where_fractions_are_meant(tmp_path: Path) -> None:
    config = load(tmp_path, FIT + "flip_probability = 1\n").stages[0].config
    assert isinstance(config, TrainConfig)
    assert isinstance(config.fit.flip_probability, float)
    assert config.fit.flip_probability == 1.0


def test_load_recipe_reads_lists_in_order(tmp_path: Path) -> None:
    config = load(tmp_path, ENGINE + 'gpus = ["sm89", "sm86"]\n').stages[-1].config
    assert isinstance(config, TensorRTConfig)
    assert config.gpus == ("sm89", "sm86")


def test_load_recipe_reads_the_weights_that_a_stage_starts_from(tmp_path: Path) -> None:
    (net,) = load(tmp_path, START + MODEL + 'weights = "timm/convnext_atto.d2_in1k"\n').stages
    assert net.inputs == {"weights": "weights:timm/convnext_atto.d2_in1k"}
    assert net.source is None


def test_load_recipe_lets_a_student_have_weights_beside_its_teacher(tmp_path: Path) -> None:
    text = DISTILL.replace('{ name = "atto" }', '{ name = "atto", weights = "w.pth" }') + 'teacher = "net"\n'
    assert load(tmp_path, text).stages[-1].inputs == {"teacher": "net", "weights": "weights:w.pth"}
