"""The options that several verbs share: one row each, in the order in which `--help` shows them."""

from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.values import POSITIVE, Numbers, Size
from convnext_deploy.config.choices import CropMode, Device, InputRange, Interpolation

_COUNT = click.IntRange(min=0)
_RATE = click.FloatRange(0, 1, max_open=True)
_FOLDER: dict[str, Any] = {"metavar": "DIR", "shell_complete": candidates.folders}
_SWITCH: dict[str, Any] = {"is_flag": True, "default": None}
OPTIONS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "data": (
        str,
        "Image folder with train/ and val/ (or validation/, test/), with train/ alone, or of class folders; or a folder of "
        "WebDataset or MDS shards, also at a URL (s3://, gs://, https://, hf://); or 'digits'.",
        {"metavar": "DIR", "shell_complete": candidates.data},
    ),
    "labels": (
        click.Path(path_type=Path),
        "Labels of the images, any number for each, where folders do not tell them: CSV (filename,labels or a column of 0 and 1 "
        "for each label), JSON, or COCO.  [default: labels.csv or the like in DIR, where images lie in no class folders]",
        {"metavar": "FILE"},
    ),
    "unlabelled": (
        click.Path(path_type=Path),
        "Folder with images at any depth, or of shards, that the teacher alone labels, mixed with the labelled ones. Copies of "
        "images that validate are left out.",
        _FOLDER,
    ),
    "validation_fraction": (
        click.FloatRange(0, 1, min_open=True, max_open=True),
        "Share of each class held out where the folder has no validation images. Give the same to every verb, otherwise "
        "validation images leak into training.  [default: 0.1]",
        {},
    ),
    "split": (
        click.Path(path_type=Path),
        "Names of the validation images, one a line, or JSON with lists for train, val and test; paths as in the folder. Give the "
        "same to every verb.",
        {"metavar": "FILE"},
    ),
    "groups": (
        str,
        "Regular expression: images in whose names it finds the same (a patient, video or scene) stay on one side. Its first part "
        "in brackets counts, or all that it finds.",
        {"metavar": "PATTERN"},
    ),
    "classes": (
        click.Path(path_type=Path),
        "Names of the classes, as the folders are called, in the order of the network's outputs, where its file tells none or "
        "others: text, a name a line, or JSON.",
        {"metavar": "FILE"},
    ),
    "skip_unreadable": (bool, "Leave out images that cannot be read, and list them.", _SWITCH),
    "out": (click.Path(path_type=Path), "Folder for the results.", _FOLDER),
    "max_top1_drop_pp": (
        click.FloatRange(0, 100),
        "Largest drop of top-1, in pp; more ends with exit code 3.",
        {"flag": "--max-drop"},
    ),
    "max_ece_increase_pp": (
        click.FloatRange(0, 100),
        "Largest rise of the expected calibration error (ECE), in pp; more ends with exit code 3.  [default: not judged]",
        {"flag": "--max-ece-increase"},
    ),
    "max_class_drop_pp": (
        click.FloatRange(0, 100),
        "Largest drop of top-1 of any class, in pp; more ends with exit code 3.  [default: not judged]",
        {"flag": "--max-class-drop"},
    ),
    "min_speedup": (
        click.FloatRange(0.1, 100),
        "How many times as fast as its float baseline INT8 must be; less ends with exit code 3.  [default: 1, not slower]",
        {},
    ),
    "speed_check": (
        bool,
        "Do not time INT8 against its float baseline.",
        {**_SWITCH, "flag": "--no-speed-check", "flag_value": False},
    ),
    "image_size": (Size(), "Side of the network's input in pixels, or height x width, such as 32x48.", {}),
    "crop_pct": (click.FloatRange(0.1, 1.0), "Share of the resized image that the evaluation's centre crop keeps.", {}),
    "crop_mode": (
        click.Choice(get_args(CropMode)),
        "Whether the shorter side is resized before the crop, or both sides.",
        {},
    ),
    "interpolation": (click.Choice(get_args(Interpolation)), "How images are resized for evaluation.", {}),
    "mean": (
        Numbers(),
        "Subtracted from pixel values between 0 and 1: one number, or one per channel with commas between them.",
        {},
    ),
    "std": (Numbers(), "Divided by after that, likewise.", {}),
    "output_name": (
        str,
        "Which output of an ONNX file that another tool made holds the scores of the classes.  [default: what it tells]",
        {"metavar": "NAME"},
    ),
    "input_range": (
        click.Choice(get_args(InputRange)),
        "Values that such a file takes: normalized by mean and std, or pixels, which it normalizes itself.  [default: what its "
        "first nodes tell, else normalized]",
        {},
    ),
    "patch_size": (
        click.Choice(["2", "4", "8"]),
        "Kernel and stride of the stem; 2 suits small images.  [default: 4, and 2 where images below 64 pixels decide the size]",
        {"callback": lambda _context, _parameter, value: None if value is None else int(value)},
    ),
    "batch_size": (POSITIVE, "Images per step.", {}),
    "epochs": (POSITIVE, "Passes over the training images.", {}),
    "base_learning_rate": (
        click.FloatRange(min=0, min_open=True),
        "Peak learning rate at batch 4096, scaled to the batch.",
        {},
    ),
    "flip_probability": (click.FloatRange(0, 1), "Share of mirrored training images.", {}),
    "drop_path_rate": (_RATE, "Stochastic depth of the last block.", {}),
    "head_hidden_size": (
        _COUNT,
        "Width of a hidden layer between pooling and logits; 0: none.  [default: as in the model]",
        {},
    ),
    "head_dropout": (_RATE, "Dropout before the logits.  [default: 0]", {}),
    "gradient_checkpointing": (
        bool,
        "Save memory by computing each block twice; for the large models.  [default: no]",
        {"flag": "--gradient-checkpointing/--no-gradient-checkpointing", "default": None},
    ),
    "compile": (
        bool,
        "Let torch.compile make the kernels.  [default: no]",
        {"flag": "--compile/--no-compile", "default": None},
    ),
    "augmentation_epochs": (
        _COUNT,
        "Epochs with crops of their own; later ones repeat them in another order.  [default: 0, all]",
        {},
    ),
    "augmentation_seed": (
        _COUNT,
        "Seed of order and crops alone; runs with the same one see the same crops.  [default: --seed]",
        {},
    ),
    "patience": (
        _COUNT,
        "End when so many epochs were no better than the best, which is then the result; a tenth of the training images is set "
        "aside to tell.  [default: 0, all epochs, and the last is the result]",
        {},
    ),
    "seed": (_COUNT, "Seed of weights, crops and calibration.  [default: 0]", {}),
    "device": (
        click.Choice(get_args(Device)),
        "Where PyTorch runs; mps: the GPU of a Mac.  [default: auto, an NVIDIA GPU if there is one]",
        {},
    ),
    "workers": (_COUNT, "Processes that decode images.  [default: one per core, at most 8]", {}),
    "cache_dir": (
        click.Path(path_type=Path),
        "Keep what can be computed again (decoded small images, indices of shards, teachers' predictions) here, for other runs "
        "too.  [default: memory and OUT/cache; indices beside the shards]",
        _FOLDER,
    ),
    "tensorboard": (bool, "Write TensorBoard events to OUT/tensorboard: curves of trainings, and results.", _SWITCH),
    "mlflow": (bool, "Make a run of MLflow (MLFLOW_TRACKING_URI says where): settings, epochs, results.", _SWITCH),
    "measure_again": (
        bool,
        "Score and time again what an earlier run has measured.  [default: what changed, on another machine, with other versions]",
        _SWITCH,
    ),
    "dry_run": (bool, "Show what would be trained, how and in about which time, and do nothing.", _SWITCH),
    "restart": (
        bool,
        "Replace what an earlier run into OUT made with other settings, inputs or images; what is the same is kept.  [default: "
        "that is refused, with what differs]",
        _SWITCH,
    ),
}
"""Field of a record, or `out` → type, help, what else click is to know. Values that were not given are None, and the function of
the verb decides."""
