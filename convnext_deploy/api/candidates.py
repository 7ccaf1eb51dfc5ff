"""Which forms of a network are worth building for a GPU: by what it computes, what NVIDIA documents, and what was seen here.

What is fastest nobody knows before it has run there: the forms are candidates, among which the device itself chooses.

Sources: compute capabilities and their precisions in TensorRT's and TensorRT-RTX's support matrices. FP8 products are computed from
Ada on (SM89), and not by Jetson Orin (SM87); INT8 products from Turing on (SM75), the first that TensorRT 10 runs on.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from convnext_deploy.config.choices import Target
from convnext_deploy.errors import RecipeError
from convnext_deploy.system.gpu_models import resolve_gpus

OLDEST, _FIRST_WITH_FP8 = 75, 89
_OF_RTX = (75, 80, 86, 89, 120, 121)  # which TensorRT-RTX builds for
_INT8_IN_RTX = (
    "TensorRT documents INT8 of weights and activations; TensorRT-RTX documents FP8 and weight-only INT8 alone, and its "
    "engines of such files had every node in INT8 where they were looked into, on no GPU yet"
)


@dataclass(frozen=True)
class Form:
    """A form of a network, and why it is a candidate; `target` of its quantization, None: it stays in float."""

    precision: str
    target: Target | None
    reason: str


def forms_for(gpus: Iterable[str]) -> tuple[str, tuple[Form, ...], tuple[str, ...]]:
    """Return the compute capability of GPUs, as `SM89`, the forms to try there, and why others are none.

    Args:
        gpus: names, as `resolve_gpus` takes them, of GPUs of one compute capability.

    Raises:
        ExportError: if one is unknown, or none is given.
        RecipeError: if they are of several capabilities, or too old for TensorRT 10.
    """
    found = resolve_gpus(gpus)
    if len(found) > 1:
        raise RecipeError(
            f"--target auto makes what one kind of GPU chooses among, and these are {', '.join(found)}; run it once for each."
        )
    number = int(found[0].removeprefix("SM"))
    if number < OLDEST:
        raise RecipeError(
            f"{found[0]} is older than Turing (SM{OLDEST}), on which TensorRT 10 and later run; give a newer GPU."
        )
    forms, without = [], []
    if number < _FIRST_WITH_FP8:
        without.append(f"no fp8: {found[0]} computes none, which begins with Ada (SM{_FIRST_WITH_FP8})")
    else:
        documented = "TensorRT and TensorRT-RTX document" if number in _OF_RTX else "TensorRT documents"
        forms.append(Form("fp8", "tensorrt-fp8", f"{found[0]} computes FP8, which {documented}"))
    of_int8 = _INT8_IN_RTX if number in _OF_RTX and number > OLDEST else "TensorRT documents it"
    forms.append(Form("int8", "tensorrt", f"{found[0]} computes INT8; {of_int8}"))
    forms.append(Form("fp16", None, "the measure of both: where it is as fast, nothing is to be lost"))
    return found[0], tuple(forms), tuple(without)
