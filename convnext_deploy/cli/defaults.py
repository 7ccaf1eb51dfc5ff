"""What happens where an option is not given, in words, for those options of which it depends on the verb."""

_FRESH = ("train", "distill")  # which may make a network that nobody trained before
_ARTIFACTS = "the artifact's"
_OF_FRESH = {
    "crop_pct": "0.875 from 128 pixels on, 1.0 below; given weights: theirs",
    "crop_mode": "center; given weights: theirs",
    "interpolation": "bicubic; given weights: theirs",
    "mean": "0.485,0.456,0.406; given weights: theirs",
    "std": "0.229,0.224,0.225; given weights: theirs",
}
# Option → verb → default; the verb "" stands for all others.
_DEFAULTS: dict[str, dict[str, str]] = {
    **{name: {"": _ARTIFACTS, **dict.fromkeys(_FRESH, text)} for name, text in _OF_FRESH.items()},
    "image_size": {
        "": _ARTIFACTS,
        "recommend": "224",
        **dict.fromkeys(
            _FRESH, "by the images, 64 for few to 224, at most their own; digits 32; given weights: theirs"
        ),
    },
    "max_top1_drop_pp": {"quantize": "0.2", "compress": "0.3", "export": "0.5", "validate": "not judged"},
    "out": {
        "": "runs/NAME",
        "run": "runs/NAME, as the recipe is called",
        "train": "runs/train-MODEL",
        "distill": "runs/distill-TEACHER-STUDENT",
        "quantize": "runs/quantize-MODEL",
        "compress": "runs/compress-MODEL",
        "export": "runs/FORMAT-MODEL",
        "validate": "no report is written",
    },
    "batch_size": {
        "": "64",
        **dict.fromkeys(_FRESH, "by the images, 8 to 128; digits 32 or 64"),
        "quantize": "by the images, 8 to 64; digits 64",
        "compress": "by the images, 8 to 128, with quantizers 64; digits 64",
    },
    "epochs": {
        **dict.fromkeys(_FRESH, "by the images, 40 for few to 300 for many; digits 4 to 15"),
        "quantize": "by the images, 5 to 30; digits 5",
        "compress": "by the images, as in fine-tuning; with quantizers 5 to 30; digits 15 and 5",
    },
    "base_learning_rate": {
        "": "by network, images and batch",
        "quantize": "5e-5 at batch 512, with the square root below; digits 0.0016",
    },
    "flip_probability": {"": "0.5; digits 0"},
    "drop_path_rate": {"": "by network and images; digits 0"},
}


def default_of(verb: str, option: str) -> str:
    """Return `  [default: …]` for an option of which it depends on the verb, nothing for any other."""
    known = _DEFAULTS.get(option)
    if known is None:
        return ""
    return f"  [default: {known.get(verb) or known['']}]"
