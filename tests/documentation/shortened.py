"""What is written otherwise in a command before a test runs it, so that it takes seconds. Everything else is run as it stands."""

from __future__ import annotations

import re

from tests.brought import NETWORK
from tests.documentation.flags import verb_parameters

VALUES = {  # option → its value here, wherever it is given
    "--teacher": NETWORK,
    "--student": NETWORK,
    "--model": NETWORK,
    "--epochs": "1",
    "--augmentation-epochs": "1",
    "--image-size": "32",
    "--rounds": "1",
    "--latency-budget": "0.8x",
}
ADDED = {  # option → its value here, for every verb that has the option
    "--epochs": "1",
    "--workers": "0",
    "--device": "cpu",
    "--rounds": "1",
    "--seconds": "0.02",
    "--calibration-images": "12",
    "--selection-images": "12",
    "--range-images": "4",
}
WITHOUT = {  # option → beside which words a verb refuses it
    "--epochs": ("--calibration-method", "ptq"),
    "--selection-images": ("--calibration-method",),
}
# verb and argument → argument: no other library knows the small network, and in its time its blocks hardly count
WORDS = {("convert", "best.pth"): "atto.pth", ("compress", "best.pth"): "atto.pth"}
TEXTS = (  # in Python, files and scripts: pattern, what stands for it
    (r'"base", "tiny"', f'"{NETWORK}", "{NETWORK}"'),
    (
        r'DataOptions\("photos"\)',
        'DataOptions("photos"), training=cd.TrainingOptions(epochs=1), execution=cd.ExecutionOptions("cpu", 0)',
    ),
    (r'^name = "(nano|atto)"$', f'name = "{NETWORK}"'),
    (r"^image_size = \d+$", "image_size = 32"),
    (r"^epochs = \d+$", "epochs = 1"),
    (r"^max_drop_pp = 0.2$", "max_drop_pp = 100.0\ncalibration_images = 12\nselection_images = 12"),
    (r"224 \* 224", "160 * 160"),
)


def shorten(words: list[str]) -> list[str]:
    """Return the words after `convnext-deploy` as they are run."""
    verb, *arguments = words
    options = {option for parameter in verb_parameters(verb) for option in parameter.opts}
    result = [verb]
    for word in arguments:
        result.append(VALUES.get(result[-1], WORDS.get((verb, word), word)))
    halves = re.search(r"--precision fp16|--format tensorrt", " ".join(result))
    for option, value in ADDED.items():
        refused = any(word in result for word in WITHOUT.get(option, ())) or (option == "--range-images" and not halves)
        if option in options and option not in result and not refused:
            result += [option, value]
    return result


def shorten_text(text: str) -> str:
    """Return Python, a file or a script as it is run."""
    for pattern, replacement in TEXTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text
