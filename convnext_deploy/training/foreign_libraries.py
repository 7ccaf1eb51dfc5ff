"""Build networks of timm, torchvision and transformers, and put weights into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.details import ForeignDetails
from convnext_deploy.errors import BackendUnavailableError, CheckpointError, first_line, suggest
from convnext_deploy.models.checkpoints.safe_reader import read_content
from convnext_deploy.training.foreign_network import ForeignNetwork, as_map

_WRAPPERS = ("model_ema", "state_dict_ema", "ema_model", "model", "state_dict", "model_state_dict", "network", "net")
_DEEPEST = 4  # tables within tables
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.")
_HEADS = {  # where a library keeps the last layer, in the order of asking
    "timm": ("head.fc", "classifier", "head", "fc"),
    "torchvision": (
        "fc",
        "classifier.6",
        "classifier.3",
        "classifier.2",
        "classifier.1",
        "classifier",
        "heads.head",
        "head",
    ),
}


def build_timm(details: ForeignDetails, file: Path, classes: int) -> ForeignNetwork:
    """Build a network of timm and load its weights.

    Raises:
        BackendUnavailableError: if timm is missing.
        CheckpointError: if timm has no such network, or the weights are not its.
    """
    timm = import_timm()
    check_timm(details.architecture)
    arguments = {"num_classes": classes, **details.arguments}
    network = _build(lambda: timm.create_model(details.architecture, pretrained=False, **arguments), details, file)
    load_weights(network, file, str(details))
    channels, prefix = int(network.num_features), getattr(network, "num_prefix_tokens", None)

    def compute(images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        found = network.forward_features(images)
        features = as_map(found, channels, str(details), _timm_grid(network, images), prefix)
        return (network.forward_head(found) if classes else None), features

    return ForeignNetwork(network, compute, f"{details} in {file}")


def _timm_grid(network: Any, images: Tensor) -> tuple[int, int] | None:
    """Return rows and columns of the patches that a transformer of timm cuts images into; None: it does not tell."""
    count = getattr(getattr(network, "patch_embed", None), "dynamic_feat_size", None)
    return None if count is None else tuple(count(images.shape[-2:]))


def _grid_of(config: Any, images: Tensor) -> tuple[int, int] | None:
    """Return the same of a transformer of transformers, by its config."""
    sides = getattr(config, "patch_size", None)
    sides = (sides, sides) if isinstance(sides, int) else sides
    if (
        not isinstance(sides, tuple | list)
        or len(sides) != 2
        or not all(isinstance(side, int) and side for side in sides)
    ):
        return None
    return images.shape[-2] // sides[0], images.shape[-1] // sides[1]


def build_torchvision(details: ForeignDetails, file: Path, classes: int) -> ForeignNetwork:
    """Build a network of torchvision and load its weights. Raises: CheckpointError: as `build_timm`."""
    from torchvision import models

    check_torchvision(details.architecture)
    network = _build(
        lambda: models.get_model(details.architecture, weights=None, num_classes=classes, **details.arguments),
        details,
        file,
    )
    load_weights(network, file, str(details))
    kept: list[Tensor] = []
    place = _last_map(network)
    if place is not None:
        place.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))

    def compute(images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        kept.clear()
        logits = network(images)
        features = kept.pop() if kept and kept[-1].ndim == 4 else None
        # some networks pool what is channels-last, and have turned it before
        return logits, None if features is None else features.permute(0, 2, 3, 1)

    return ForeignNetwork(network, compute, f"{details} in {file}")


def build_transformers(details: ForeignDetails, file: Path, classes: int) -> ForeignNetwork:
    """Build an image classifier of transformers from its folder, without code of the folder's own.

    Raises: BackendUnavailableError, CheckpointError: as `build_timm`.
    """
    transformers = import_transformers()
    kind = transformers.AutoModelForImageClassification if classes else transformers.AutoModel
    show = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        network = kind.from_pretrained(
            str(file.parent), local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
    except Exception as error:  # the library raises everything from OSError to its own
        raise CheckpointError(f"transformers cannot open {file.parent} ({first_line(error)}).") from None
    finally:
        if show:
            transformers.utils.logging.enable_progress_bar()

    def compute(images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        found = network(images, output_hidden_states=True)
        states = getattr(found, "reshaped_hidden_states", None) or found.hidden_states
        last = states[-1] if states else getattr(found, "last_hidden_state", None)
        features = None
        if last is not None:
            channels = last.shape[1] if last.ndim == 4 else last.shape[-1]
            features = as_map(last, channels, str(details), _grid_of(network.config, images))
        return (found.logits if classes else None), features

    return ForeignNetwork(network, compute, f"{details} in {file.parent}")


def import_timm() -> Any:
    """Return timm. Raises: BackendUnavailableError: if it is missing."""
    try:
        import timm
    except ImportError:
        raise BackendUnavailableError(
            "a teacher of timm is built by timm: pip install 'convnext_deploy[teachers]'."
        ) from None
    return timm


def import_transformers() -> Any:
    """Return transformers. Raises: BackendUnavailableError: if it is missing."""
    try:
        import transformers
    except ImportError:
        raise BackendUnavailableError(
            "a teacher of transformers is built by transformers: pip install 'convnext_deploy[teachers]'."
        ) from None
    return transformers


def check_timm(architecture: str) -> None:
    """Check that timm has a network of this name, without the tag of its weights. Raises: CheckpointError: if not."""
    timm = import_timm()
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise CheckpointError(
            f"timm has no network '{architecture}'.{suggest(architecture, known)} See timm.list_models()."
        )


def check_torchvision(architecture: str) -> None:
    """Check that torchvision has a classifier of this name. Raises: CheckpointError: if not."""
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        raise CheckpointError(
            f"torchvision has no classifier '{architecture}'.{suggest(architecture, known)} See torchvision.models.list_models()."
        )


def count_classes(library: str, architecture: str, file: Path) -> int:
    """Return for how many classes the weights in a file are, by the shape of the last layer; 0: timm's have none.

    Raises: CheckpointError: if there is no such layer, or the file cannot be read.
    """
    heads = _timm_heads(architecture) if library == "timm" else _HEADS[library]
    tables = _tables_of(file)
    for table, name in ((table, name) for table in tables for name in heads):
        weight = table.get(f"{name}.weight")
        if weight is not None and weight.ndim in (2, 4):
            return len(weight)
    if library == "timm":
        return 0
    raise CheckpointError(
        f"{file} has no layer {' or '.join(heads)}, from which the number of classes of {library}'s {architecture} is read."
    )


def _timm_heads(architecture: str) -> tuple[str, ...]:
    config = import_timm().get_pretrained_cfg(architecture)
    found = getattr(config, "classifier", None)
    return ((found,) if isinstance(found, str) else tuple(found or ())) or _HEADS["timm"]


def _tables_of(file: Path) -> list[dict[str, Tensor]]:
    """Return the tables of tensors in a file, out of what training scripts wrap around them. Raises: CheckpointError: if none."""
    content, _ = read_content(file)
    tables = _tables(content, 0)
    if not tables:
        raise CheckpointError(f"{file} holds no state dict; expected a mapping from names to tensors.")
    return tables


def _tables(content: Any, depth: int) -> list[dict[str, Tensor]]:
    """Return the tables of tensors in what a file holds, averages of the weights first, each also without shared prefixes."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return []
    found: list[dict[str, Tensor]] = []
    for name in _WRAPPERS:
        found += _tables(content.get(name), depth + 1)
    own = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    while own:
        found.append(own)
        shorter = (
            {key.removeprefix(prefix): value for key, value in own.items()}
            for prefix in _PREFIXES
            if all(key.startswith(prefix) for key in own)
        )
        own = next(shorter, {})
    return found


def load_weights(network: nn.Module, file: Path, what: str) -> None:
    """Put the weights of a file into a network. Raises: CheckpointError: if they are not its, with the first name that differs."""
    expected = network.state_dict()
    state = max(_tables_of(file), key=lambda table: len(set(table) & set(expected)))
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in expected]
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or wrong:
        about = (
            f"'{missing[0]}' is missing"
            if missing
            else f"'{wrong[0]}' has shape {tuple(state[wrong[0]].shape)}, not {tuple(expected[wrong[0]].shape)}"
        )
        beside = f", and it has '{surplus[0]}'" if surplus else ""
        raise CheckpointError(f"{file} does not hold {what}: {about}{beside}; name the network that it was saved from.")
    network.load_state_dict({name: state[name] for name in expected if name in state}, strict=False)


def _build(build: Callable[[], Any], details: ForeignDetails, file: Path) -> Any:
    try:
        return build()
    except Exception as error:  # constructors raise what they like on arguments that are not theirs
        raise CheckpointError(f"{details} cannot be built as {file} asks for ({first_line(error)}).") from None


def _last_map(network: nn.Module) -> nn.Module | None:
    """Return the pooling before the head, whose input is the last feature map."""
    pools = [module for module in network.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    named = getattr(network, "avgpool", None)
    return named if isinstance(named, nn.Module) else pools[-1] if pools else None
