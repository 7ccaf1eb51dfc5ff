"""Which verb uses which option: the command line offers these, and a verb refuses any other."""

from convnext_deploy.config.choices import CHANGE_LIMITS

_IMAGES = ("data", "labels", "validation_fraction", "split", "groups", "classes", "skip_unreadable")
_INPUT = ("image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
_CHANGES = tuple(CHANGE_LIMITS)
_GRAPH = ("output_name", "input_range")  # of ONNX files that others made
_REPORTED = ("progress", "command")
_KEPT = ("tensorboard", "mlflow", "measure_again", "restart")  # of a run in a folder
# of quantization-aware training, which keeps the network as it is
_FIT = (
    "epochs", "batch_size", "base_learning_rate", "flip_probability", "compile", "augmentation_epochs", "augmentation_seed",
    "patience",
)  # fmt: skip
_REGULARIZED = ("drop_path_rate", "head_dropout", "gradient_checkpointing")
_NETWORK = (*_REGULARIZED, "patch_size", "head_hidden_size")
_TRAINED = {
    "data": (*_IMAGES, *_INPUT),
    "training": (*_FIT, *_NETWORK),
    "execution": ("device", "workers", "seed", "cache_dir", *_KEPT, "dry_run", *_REPORTED),
}
USES: dict[str, dict[str, tuple[str, ...]]] = {
    "run": {
        "data": (*_IMAGES, "unlabelled"),
        "evaluation": ("speed_check",),
        "execution": ("device", "workers", "cache_dir", *_KEPT, *_REPORTED),
    },
    "train": _TRAINED,
    "distill": {**_TRAINED, "data": (*_IMAGES, "unlabelled", *_INPUT, *_GRAPH)},
    "quantize": {**_TRAINED, "evaluation": _CHANGES, "training": _FIT},
    "compress": {
        **_TRAINED,
        "evaluation": _CHANGES,
        "training": (*_FIT, "drop_path_rate", "head_dropout", "gradient_checkpointing"),
    },
    "export": {
        "data": (*_IMAGES, *_INPUT, *_GRAPH),
        "evaluation": (*_CHANGES, "min_speedup", "speed_check"),
        "execution": ("device", "workers", "seed", "cache_dir", *_KEPT, *_REPORTED),
    },
    "validate": {
        "data": (*_IMAGES, *_INPUT, *_GRAPH),
        "evaluation": ("batch_size", *_CHANGES),
        "execution": ("device", "workers", "cache_dir", "restart", *_REPORTED),
    },
    "predict": {
        "data": (*_INPUT, *_GRAPH, "classes"),
        "evaluation": ("batch_size",),
        "execution": ("device", "workers", "progress"),
    },
    "bench": {"data": ("image_size", *_GRAPH), "execution": ("device", "progress")},
    "convert": {"data": _INPUT, "execution": ("progress",)},
    "bundle": {"data": (*_IMAGES, "image_size", *_GRAPH), "execution": ("cache_dir", "progress")},
    "recommend": {"data": ("data", "labels", "skip_unreadable"), "execution": ("progress",)},
}
"""Verb → parameter → fields of its record, see `api.options`. Verbs that are not here take none."""
