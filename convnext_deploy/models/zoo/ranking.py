"""Rank the variants for a data set and a GPU, with the batch size that fits into its memory."""

from dataclasses import dataclass, replace

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.variants import VARIANTS, resolve_variant
from convnext_deploy.models.zoo.cost import activation_bytes, count_macs, count_parameters
from convnext_deploy.models.zoo.published import PUBLISHED
from convnext_deploy.models.zoo.training_settings import (
    LEAST_IMAGES,
    LEAST_IMAGES_FROM_SCRATCH,
    RATE_BATCH_SIZE,
    TIER_REASONS,
    TIERS,
    DataSize,
    TrainingSettings,
    data_size,
    settings_for_images,
    settings_for_size,
    size_of,
)
from convnext_deploy.system.progress import describe_time

GIB = 2**30
_BYTES_PER_PARAMETER = 16  # float32 weights, gradients and the two moments of AdamW
# What a kept value takes under bfloat16 autocast on a GPU: inputs of convolutions and linear layers are kept in bfloat16,
# those of norms in float32, and the squares of GRN (version 2) need a float32 copy of the widest tensor.
BYTES_PER_VALUE = {1: 2.4, 2: 3.3}
_BYTES_PER_CHECKPOINTED_VALUE = 4.0  # the residual stream of version 1 is float32, and so are gradients inside GRN
_RESERVED_GIB = 1.5  # CUDA context, workspaces of the libraries, fragmentation
_LARGEST_BATCH, _SMALLEST_BATCH = 256, 8
FLOPS_PER_CORE = 25e9  # in float32, of training steps with PyTorch: measured 23e9 and 37e9 on a core of an x86 server
_NIGHT_H = 8.0


@dataclass(frozen=True)
class Candidate:
    """A variant that suits the data, with its reasons as short sentences.

    `memory_gib` is the estimate for training with `batch_size` images per step. `latency_ms` is the time for one image in FP32
    PyTorch, None: not measured. `cpu_hours`: about how long training takes on this machine's cores, None on a GPU.
    """

    variant: str
    tier: int
    reasons: tuple[str, ...]
    settings: TrainingSettings
    batch_size: int
    gradient_checkpointing: bool
    memory_gib: float
    latency_ms: float | None = None
    cpu_hours: float | None = None


@dataclass(frozen=True)
class Exclusion:
    """A variant that is not recommended, and why."""

    variant: str
    reason: str


def training_memory(
    spec: ModelSpec, image_size: int, batch_size: int, *, gradient_checkpointing: bool = False
) -> float:
    """Estimate the GPU memory of training in GiB: AdamW in float32, the forward pass under bfloat16 autocast.

    16 bytes per parameter, what the forward pass keeps for each image, and 1.5 GiB that do not depend on the network. In
    float32 (GPUs before SM80) the images take about 1.7 times as much in version 1 and 1.2 times in version 2.
    """
    version = VARIANTS[resolve_variant(spec.variant)].version
    width = _BYTES_PER_CHECKPOINTED_VALUE if gradient_checkpointing else BYTES_PER_VALUE[version]
    kept = activation_bytes(spec, image_size, width, gradient_checkpointing=gradient_checkpointing)
    return _RESERVED_GIB + (_BYTES_PER_PARAMETER * count_parameters(spec) + batch_size * kept) / GIB


def training_hours(candidate: Candidate, images: int, classes: int, image_size: int, cores: int) -> float:
    """Estimate how long training takes on cores of a CPU: a backward pass computes twice what the forward pass does."""
    macs = count_macs(ModelSpec(candidate.variant, classes), image_size)
    return 3 * 2 * macs * images * candidate.settings.epochs / (cores * FLOPS_PER_CORE) / 3600


def order_for_cpu(
    candidates: tuple[Candidate, ...], images: int, classes: int, image_size: int, cores: int
) -> tuple[Candidate, ...]:
    """Put what these cores can train in a night before the rest, which comes by its time, and say how long each takes."""
    timed = [
        replace(
            each,
            cpu_hours=(hours := training_hours(each, images, classes, image_size, cores)),
            reasons=(*each.reasons, f"about {describe_time(3600 * hours)} of training on {cores} cores"),
        )
        for each in candidates
    ]
    quick = [each for each in timed if (each.cpu_hours or 0) <= _NIGHT_H]
    rest = sorted((each for each in timed if each not in quick), key=lambda each: each.cpu_hours or 0)
    return (*quick, *rest)


def rank(
    images: int, classes: int, *, gpu_memory_gb: float | None = None, image_size: int = 224
) -> tuple[tuple[Candidate, ...], tuple[Exclusion, ...]]:
    """Rank the variants for a classification data set, and say why the others are left out.

    Args:
        images: training images, at least one for each class.
        classes: >= 2.
        gpu_memory_gb: memory of the one GPU to train on, as it is sold (12 means 12 GiB); None: no limit, and a batch of
            256 images at most.
        image_size: side of the network's input in pixels, >= 32.

    Returns: the candidates, best first, and the exclusions.
    Raises: RecipeError: if a number is out of range.
    """
    _require(classes >= 2, "classes", classes, ">= 2")
    _require(images >= classes, "images", images, f">= {classes}, one for each class")
    _require(gpu_memory_gb is None or gpu_memory_gb > 0, "gpu_memory_gb", gpu_memory_gb, "> 0")
    _require(image_size >= 32, "image_size", image_size, ">= 32")
    data = data_size(images)
    candidates: list[Candidate] = []
    exclusions: list[Exclusion] = []
    for variant in (*data.order, *(variant for variant in VARIANTS if variant not in data.order)):
        found = _unsuited(variant, images) or _judge(variant, data, images, classes, gpu_memory_gb, image_size)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            exclusions.append(Exclusion(variant, found))
    return tuple(candidates), tuple(exclusions)


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise RecipeError(f"{name} = {found} is out of range; expected {expected}.")


def tier_of(variant: str) -> int | None:
    return next((tier for tier, variants in TIERS.items() if variant in variants), None)


def _unsuited(variant: str, images: int) -> str | None:
    """Return why a variant does not suit a number of images, None if it does."""
    size = size_of(variant)
    if size == "test":
        return "for timm's own tests only (tier 6 of 6)"
    if tier_of(variant) is None:
        return "experimental, for comparisons only (tier 5 of 6)"
    if images < (least := LEAST_IMAGES.get(size, 0)):
        return f"too large for fewer than {least:,} images (overfitting)"
    if PUBLISHED[variant] is None and images < LEAST_IMAGES_FROM_SCRATCH:
        return f"no published weights to start from; from scratch it needs about {LEAST_IMAGES_FROM_SCRATCH:,} images"
    return None


def _judge(
    variant: str, data: DataSize, images: int, classes: int, gpu_memory_gb: float | None, image_size: int
) -> Candidate | str:
    """Return the candidate, or why it cannot be trained in the memory."""
    spec = ModelSpec(variant, classes)
    fitting = _fitting_batch(spec, image_size, images, gpu_memory_gb)
    if fitting is None:
        least = training_memory(spec, image_size, _SMALLEST_BATCH, gradient_checkpointing=True)
        return f"needs about {least:.1f} GB even with gradient checkpointing and batch {_SMALLEST_BATCH}"
    batch_size, checkpointing = fitting
    memory = training_memory(spec, image_size, batch_size, gradient_checkpointing=checkpointing)
    ranges, tier = settings_for_size(variant), tier_of(variant)
    assert ranges is not None  # only the test networks lack them
    assert tier is not None  # nor have the variants of tier 5 come here
    reasons = [TIER_REASONS[tier]]
    if size_of(variant) in data.suited:
        reasons.append(
            f"{data.name} data: {', '.join(data.suited[:-1])} and {data.suited[-1]} are the sizes that suit it"
        )
    reasons.append(_weights_reason(variant))
    needs = f"batch {batch_size} needs about {memory:.1f} GB"
    if checkpointing:
        needs += f" with gradient checkpointing; without it not even batch {_SMALLEST_BATCH} fits"
    reasons.append(needs)
    return Candidate(
        variant, tier, tuple(reasons), settings_for_images(ranges, images), batch_size, checkpointing, memory
    )


def _weights_reason(variant: str) -> str:
    published = PUBLISHED[variant]
    if published is None:
        return "no published weights: trained from scratch"
    terms = "; not for commercial use (CC BY-NC 4.0)" if published.non_commercial else ""
    return f"starts from {published.weights}, {published.top1} % on ImageNet-1k{terms}"


def _fitting_batch(
    spec: ModelSpec, image_size: int, images: int, gpu_memory_gb: float | None
) -> tuple[int, bool] | None:
    """Return the largest power of two that fits as batch size, and whether it needs gradient checkpointing; None: none fits.

    Checkpointing costs a second forward pass, so it is for networks that do not fit without it.
    """
    if gpu_memory_gb is None:
        return _power_of_two(min(RATE_BATCH_SIZE, images)), False
    for checkpointing in (False, True):
        batch_size = _LARGEST_BATCH
        while batch_size >= _SMALLEST_BATCH:
            if training_memory(spec, image_size, batch_size, gradient_checkpointing=checkpointing) <= gpu_memory_gb:
                return _power_of_two(min(batch_size, images)), checkpointing
            batch_size //= 2
    return None


def _power_of_two(limit: int) -> int:
    """Return the largest power of two that is not above `limit`."""
    return 1 << (limit.bit_length() - 1)
