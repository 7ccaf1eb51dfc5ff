"""Name bundles and the models in them, so that any shell, server and file system takes the names."""

import re
from collections import Counter
from collections.abc import Sequence

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import ONNXDetails


def bundle_name(artifact: Artifact) -> str:
    """Return the variant, or the name of a file that tells none."""
    return plain(artifact.main_file.stem if artifact.model.variant == "unknown" else artifact.model.variant)


def model_names(bundle: str, artifacts: Sequence[Artifact]) -> list[str]:
    """Return a name for each ONNX artifact: its precision, and where several have that, what tells these apart.

    That is the target of the quantization, the runtime that an FP16 graph is for, the input, the output and the batch; and where
    all these are the same, the stage or file it comes from, and a number.
    """
    names: list[str] = []
    for artifact in artifacts:
        same = [_features(other) for other in artifacts if other.precision == artifact.precision]
        telling = [feature for feature, *others in zip(_features(artifact), *same, strict=True) if len(set(others)) > 1]
        names.append(plain("-".join([bundle, artifact.precision, *filter(None, telling)])))
    for ambiguous in [name for name, count in Counter(names).items() if count > 1]:
        for place, artifact in enumerate(artifacts):
            if names[place] == ambiguous:
                stage = artifact.lineage[-1].name if artifact.lineage else artifact.main_file.stem
                names[place] = plain(f"{ambiguous}-{stage}")
    return [distinct(name, names[:place]) for place, name in enumerate(names)]


def _features(artifact: Artifact) -> list[str | None]:
    details = artifact.details_as(ONNXDetails)
    io = details.io
    return [
        details.target,
        None if details.fp16 is None else details.fp16.runtime,
        None if io.white is None else "pixels" if io.input_type == "uint8" else f"pixels_{io.white:g}",
        "nhwc" if io.input_layout == "nhwc" else None,
        None if io.output == "logits" else io.output,
        None if io.batch_size is None else f"batch{io.batch_size}",
    ]


def distinct(name: str, taken: Sequence[str]) -> str:
    """Return a name, with the smallest number from 2 on that makes it different from those taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def plain(text: str) -> str:
    """Return a text as a file name that no shell, Triton or file system takes for anything else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-") or "model"
