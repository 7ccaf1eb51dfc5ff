"""Options that mean the same in every command, from the table of what each verb uses."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.api.uses import USES
from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.quiet import Function, quiet_option
from convnext_deploy.config.choices import Device
from convnext_deploy.system.distributed import launched

POSITIVE = click.IntRange(min=1)

# By field of the records, but for `out`; in the order in which --help shows them.
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "data": click.option(
        "--data",
        metavar="DIR",
        shell_complete=candidates.data,
        help="Image folder with train/ and val/ (or validation/, test/), with train/ alone, or of class folders; or a folder of "
        "WebDataset shards; or 'digits'.",
    ),
    "validation_fraction": click.option(
        "--validation-fraction",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Share of each class held out where the folder has no validation images. Give the same to every verb, otherwise "
        "validation images leak into training.  [default: 0.1]",
    ),
    "skip_unreadable": click.option(
        "--skip-unreadable", is_flag=True, default=None, help="Leave out images that cannot be opened, and list them."
    ),
    "out": click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        shell_complete=candidates.folders,
        help="Folder for the results.  [default: runs/NAME]",
    ),
    "max_top1_drop_pp": click.option(
        "--max-drop",
        "max_top1_drop_pp",
        type=click.FloatRange(0, 100),
        help="Largest drop of top-1, in pp; more ends with exit code 3.  [default: 0.5, quantize 0.2; validate: none]",
    ),
    "min_speedup": click.option(
        "--min-speedup",
        type=click.FloatRange(0.1, 100),
        help="How many times as fast as its float baseline INT8 must be; less ends with exit code 3.  [default: 1, not slower]",
    ),
    "speed_check": click.option(
        "--no-speed-check",
        "speed_check",
        is_flag=True,
        flag_value=False,
        default=None,
        help="Do not time INT8 against its float baseline.",
    ),
    "image_size": click.option(
        "--image-size",
        type=POSITIVE,
        help="Side of the network's input in pixels.  [default: the artifact's; fresh weights: 224, digits 32]",
    ),
    "crop_pct": click.option(
        "--crop-pct",
        type=click.FloatRange(0.1, 1.0),
        help="Share of the resized image that the evaluation's centre crop keeps.  [default: the artifact's; fresh weights: 0.875 "
        "from 128 pixels on, 1.0 below]",
    ),
    "patch_size": click.option(
        "--patch-size",
        type=click.Choice(["2", "4", "8"]),
        callback=lambda _context, _parameter, value: None if value is None else int(value),
        help="Kernel and stride of the stem; 2 suits small images.  [default: 4]",
    ),
    "batch_size": click.option(
        "--batch-size", type=POSITIVE, help="Images per step.  [default: 128, digits and validation 64]"
    ),
    "epochs": click.option(
        "--epochs",
        type=POSITIVE,
        help="Passes over the training images.  [default: 300, fine-tuning 30, QAT 5, digits 5 to 15]",
    ),
    "base_learning_rate": click.option(
        "--base-learning-rate",
        type=click.FloatRange(min=0, min_open=True),
        help="Peak learning rate at batch 4096, scaled to the batch.  [default: 4e-3, fine-tuning and QAT 4e-4]",
    ),
    "flip_probability": click.option(
        "--flip-probability",
        type=click.FloatRange(0, 1),
        help="Share of mirrored training images.  [default: 0.5, digits 0]",
    ),
    "drop_path_rate": click.option(
        "--drop-path-rate",
        type=click.FloatRange(0, 1, max_open=True),
        help="Stochastic depth of the last block.  [default: 0.1, digits 0]",
    ),
    "head_hidden_size": click.option(
        "--head-hidden-size",
        type=click.IntRange(min=0),
        help="Width of a hidden layer between pooling and logits; 0: none.  [default: as in the model]",
    ),
    "head_dropout": click.option(
        "--head-dropout", type=click.FloatRange(0, 1, max_open=True), help="Dropout before the logits.  [default: 0]"
    ),
    "gradient_checkpointing": click.option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        default=None,
        help="Save memory by computing each block twice; for the large models.  [default: no]",
    ),
    "compile": click.option(
        "--compile/--no-compile", default=None, help="Let torch.compile make the kernels.  [default: no]"
    ),
    "augmentation_epochs": click.option(
        "--augmentation-epochs",
        type=click.IntRange(min=0),
        help="So many epochs have crops of their own, later ones repeat them in another order.  [default: 0, all]",
    ),
    "augmentation_seed": click.option(
        "--augmentation-seed",
        type=click.IntRange(min=0),
        help="Seed of order and crops alone; students with the same one see the same crops.  [default: --seed]",
    ),
    "seed": click.option(
        "--seed", type=click.IntRange(min=0), help="Seed of weights, crops and calibration.  [default: 0]"
    ),
    "device": click.option(
        "--device",
        type=click.Choice(get_args(Device)),
        help="Where PyTorch runs.  [default: auto, a GPU if there is one]",
    ),
    "workers": click.option(
        "--workers",
        type=click.IntRange(min=0),
        help="Processes that decode images.  [default: one per core, at most 8]",
    ),
    "cache_dir": click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        shell_complete=candidates.folders,
        help="Keep what can be computed again (decoded small images, indices of shards, teachers' predictions) here, for other "
        "runs too.  [default: memory and OUT/cache]",
    ),
    "tensorboard": click.option(
        "--tensorboard", is_flag=True, default=None, help="Write TensorBoard events to OUT/tensorboard as well."
    ),
}


artifacts_argument = click.argument(
    "artifacts",
    nargs=-1,
    required=True,
    metavar="ARTIFACT...",
    type=click.Path(path_type=Path),
    shell_complete=candidates.artifacts,
)


def common_options(verb: str, *others: str) -> Callable[[Function], Function]:
    """Add the options that a verb uses of the records, those named besides, and `--json` and `--quiet`, which all share."""
    used = {*others}.union(*USES.get(verb, {}).values())

    def decorate(function: Function) -> Function:
        function = quiet_option(function)
        function = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")(
            function
        )
        for name in reversed(_OPTIONS):
            if name in used:
                function = _OPTIONS[name](function)
        return function

    return decorate


def arguments_of(verb: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a verb's function from the values of its command: its own as they are, the others in records."""
    from convnext_deploy.api.options import RECORDS
    from convnext_deploy.cli.progress_bars import create_progress

    found = {**values, "progress": create_progress(), "command": _typed()}
    uses = USES.get(verb, {})
    records = {record: RECORDS[record](**{name: found[name] for name in names}) for record, names in uses.items()}
    shared = {"progress", "command"}.union(*uses.values())
    return {name: value for name, value in found.items() if name not in shared} | records


def _typed() -> str:
    """Return the command line as a shell reads it."""
    arguments = shlex.join(sys.argv[1:])
    if launched().size > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return f"torchrun --nproc-per-node {here} -m convnext_deploy {arguments}"
    return f"convnext-deploy {arguments}"
