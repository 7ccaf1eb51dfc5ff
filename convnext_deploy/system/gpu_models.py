"""Names of NVIDIA GPUs, as people and drivers write them → compute capability, as `SM89`.

Source: NVIDIA's page "CUDA GPU Compute Capability" (developer.nvidia.com/cuda-gpus, and /cuda-legacy-gpus for what is older
than Turing); GPUs that it leaves out, such as those made for one country or for laptops, have the capability of their chip.
"""

import re
from collections.abc import Iterable

from convnext_deploy.errors import ExportError, suggest

GPUS = {
    53: "nano",
    62: "tx2",
    70: "v100 titan-v",
    72: "xavier agx-xavier xavier-nx",
    75: "t4 t400 t500 t550 t600 t1000 t1200 t2000 mx450 mx550 gtx-1630 gtx-1650 gtx-1660 "
    "rtx-2060 rtx-2070 rtx-2080 titan-rtx quadro-rtx-3000 quadro-rtx-4000 quadro-rtx-5000 quadro-rtx-6000 quadro-rtx-8000",
    80: "a100 a30 a800",
    86: "a2 a10 a10g a10m a16 a40 a400 a500 a1000 a2000 a3000 a4000 a4500 a5000 a5500 a6000 "
    "rtx-a400 rtx-a500 rtx-a1000 rtx-a2000 rtx-a3000 rtx-a4000 rtx-a4500 rtx-a5000 rtx-a5500 rtx-a6000 "
    "rtx-2050 mx570 rtx-3050 rtx-3060 rtx-3070 rtx-3080 rtx-3090",
    87: "orin agx-orin orin-nx orin-nano",
    89: "l2 l4 l20 l40 l40s l40g "
    "rtx-500-ada rtx-1000-ada rtx-2000-ada rtx-3000-ada rtx-3500-ada rtx-4000-ada rtx-4500-ada rtx-5000-ada rtx-5880-ada "
    "rtx-6000-ada rtx-4050 rtx-4060 rtx-4070 rtx-4080 rtx-4090",
    90: "h20 h100 h200 h800 gh200",
    100: "b100 b200 gb200",
    103: "b300 gb300",
    110: "thor agx-thor t4000 t5000",
    120: "rtx-pro-500 rtx-pro-1000 rtx-pro-2000 rtx-pro-3000 rtx-pro-4000 rtx-pro-4500 rtx-pro-5000 rtx-pro-6000 "
    "rtx-5050 rtx-5060 rtx-5070 rtx-5080 rtx-5090",
    121: "gb10 dgx-spark",
}
"""Compute capability without its point → names in their shortest form. `t4000` and `t5000` are the modules of Jetson Thor."""

_THOR_IN_CUDA_12 = "101"  # CUDA 13 counts Jetson Thor as 11.0

# What is part of a name and does not tell GPUs of different capabilities apart.
_NOISE = (
    "nvidia geforce tesla jetson gpu graphics laptop mobile desktop notebook with max q design ti super d generation edition "
    "workstation server blackwell sff pcie nvl engineering reference developer kit devkit module"
)
_MEMORY = re.compile(r"\d+gb|hbm\d+e?|sxm\d*")
_CAPABILITY = re.compile(r"(?:sm|cc|compute)?_?(\d{1,2})\.?(\d)[af]?")
_BETWEEN_WORDS = re.compile(r"[^a-z0-9]+|(?<=geforce)(?=[a-z0-9])")
_GLUED = re.compile(r"((?:rtx|gtx)\d{4})(?:ti|super|d|m)+")

_HELP = (
    "Give a name such as rtx-4070, a10 or orin-nano, or what `nvidia-smi --query-gpu=compute_cap --format=csv` prints."
)


def resolve_gpu(text: str) -> str:
    """Return the compute capability, as `SM89`, of a name such as `rtx-4070`, `RTX 4070 Ti SUPER`, `orin-nano`, `sm89` or `8.9`.

    Raises: ExportError: if it is none that is known, with what is near.
    """
    lowered = text.strip().lower()
    capability = _CAPABILITY.fullmatch(lowered)
    if capability is not None:
        number = "".join(capability.groups())
        number = "110" if number == _THOR_IN_CUDA_12 else number
        if int(number) in GPUS:
            return f"SM{int(number)}"
        raise ExportError(
            f"there is no GPU of compute capability '{text}'.{suggest(f'sm{number}', _capabilities())} {_HELP}"
        )
    names = {_squeeze(name): f"SM{number}" for number, listed in GPUS.items() for name in listed.split()}
    found = names.get(_squeeze(lowered))
    if found is not None:
        return found
    shown = [name for listed in GPUS.values() for name in listed.split()]
    # `RTX 6000` was sold as Turing, Ada and Blackwell
    digits = re.fullmatch(r"(?:rtx)?(\d{3,4})", _squeeze(lowered))
    pattern = rf"(?:quadro-)?[gr]tx-(?:pro-)?{digits.group(1)}(?:-ada)?" if digits else "none"
    meant = [name for name in shown if re.fullmatch(pattern, name)]
    if len(meant) > 1:
        raise ExportError(f"'{text}' may be any of {', '.join(meant)}; write which.")
    if meant:
        return names[_squeeze(meant[0])]
    near = suggest("-".join(_words(lowered)), [*shown, *_capabilities()])
    raise ExportError(f"the GPU '{text}' is unknown.{near} {_HELP}")


def resolve_gpus(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the compute capabilities of names or of lists with commas, each once and in their order.

    Raises: ExportError: if one is unknown, or there is none.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise ExportError(f"no GPU is given. {_HELP}")
    return tuple(dict.fromkeys(resolve_gpu(name) for name in names))


def _capabilities() -> list[str]:
    return [f"sm{number}" for number in GPUS]


def _words(lowered: str) -> list[str]:
    words = [word for word in _BETWEEN_WORDS.split(lowered) if word]
    noise = _NOISE.split() if any(word.startswith("rtx") for word in words) else [*_NOISE.split(), "quadro"]
    return [word for word in words if word not in noise and not _MEMORY.fullmatch(word)]


def _squeeze(lowered: str) -> str:
    joined = "".join(_words(lowered))
    glued = _GLUED.fullmatch(joined)
    return glued.group(1) if glued else joined
