"""Fetch published weights by name, with the download and the cache of the libraries that publish them."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.hashes import hash_file
from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convnext_deploy.errors import BackendUnavailableError, CheckpointError, OutputError, first_line, suggest
from convnext_deploy.system.disk_faults import DISK_FAULTS, Target, cannot_write, system_error

# Owners on the Hugging Face hub whose ConvNeXt repositories are meant by their bare names; others take the prefix `hf-hub:`.
_OWNERS = ("timm", "facebook")
_HUB_PREFIX = "hf-hub:"
_TORCHVISION = re.compile(r"ConvNeXt_\w+_Weights\.\w+", re.IGNORECASE)
_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Pretrained:
    """Where the weights lie (a folder with its config, or a file), and what the publisher says of them, if it is not there."""

    path: Path
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None


def is_weights_name(text: str) -> bool:
    """Whether a text names published weights: `timm/…`, `facebook/…`, `hf-hub:OWNER/…`, `ConvNeXt_…_Weights.…`."""
    parts = text.removeprefix(_HUB_PREFIX).split("/")
    on_hub = len(parts) == 2 and all(parts) and (text.startswith(_HUB_PREFIX) or parts[0] in _OWNERS)
    return on_hub or _TORCHVISION.fullmatch(text) is not None


def license_of(name: str) -> str | None:
    """Return the license of published weights where it is known by the name: that of ConvNeXt V2."""
    owner, _, model = name.removeprefix(_HUB_PREFIX).partition("/")
    return "cc-by-nc-4.0" if owner in _OWNERS and model.startswith(("convnextv2", "convnext-v2")) else None


def fetch_weights(name: str) -> Pretrained:
    """Return published weights from the cache of their library, downloading them if they are not there.

    Args:
        name: `timm/convnext_tiny.fb_in1k`, `facebook/convnext-tiny-224`, `hf-hub:OWNER/REPOSITORY` (Hugging Face hub), or
            `ConvNeXt_Tiny_Weights.IMAGENET1K_V1` (torchvision).

    Raises:
        BackendUnavailableError: if the package that downloads is missing.
        CheckpointError: if there are no such weights, or they are not in the cache and cannot be downloaded.
        OutputError: if what is downloaded cannot be written.
    """
    found = _find(name, download=True)
    assert found is not None  # what cannot be downloaded raises
    return found


def is_at_hand(name: str) -> bool:
    """Whether published weights are in the cache of their library; nothing is downloaded. Raises: as `fetch_weights`."""
    return _find(name, download=False) is not None


def _find(name: str, *, download: bool) -> Pretrained | None:
    """Return published weights; None if they are not in the cache and shall not be downloaded."""
    if _TORCHVISION.fullmatch(name):
        return _fetch_torchvision(name, download)
    return _fetch_hub(name.removeprefix(_HUB_PREFIX), download)


def _fetch_hub(repository: str, download: bool) -> Pretrained | None:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise BackendUnavailableError(
            f"'{repository}' is on the Hugging Face hub; to download it: pip install 'convnext_deploy[hub]'."
        ) from None
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(_FILES[:3]), local_files_only=not download))
        if not (folder / _FILES[2]).is_file() and download:
            folder = Path(snapshot_download(repository, allow_patterns=list(_FILES)))
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"the Hugging Face hub has no repository '{repository}', or it needs a login; names look like "
            "timm/convnext_tiny.fb_in1k."
        ) from None
    except LocalEntryNotFoundError:
        if not download:
            return None
        raise CheckpointError(_offline(repository)) from None
    except Exception as error:
        # the hub's client raises whatever its HTTP library, the proxy and the file system raise
        if (found := system_error(error)) is not None and found.errno in DISK_FAULTS:
            from huggingface_hub.constants import HF_HUB_CACHE

            raise _no_room(Path(HF_HUB_CACHE), repository, "HF_HOME", found) from None
        raise CheckpointError(f"{_offline(repository)} ({first_line(error)})") from None
    if not any((folder / name).is_file() for name in _FILES[2:]):
        if not download:
            return None
        raise CheckpointError(f"there are no weights of '{repository}' in {folder}: {_offline(repository)}")
    return Pretrained(folder)


def _no_room(path: Path, name: str, variable: str, error: OSError) -> OutputError:
    return cannot_write(Target(path, what=f"'{name}'", instead=f"another folder with {variable}"), error)


def _offline(repository: str) -> str:
    return (
        f"'{repository}' is not in the cache of the Hugging Face hub, and the hub cannot be reached. Where there is a network: "
        f"hf download {repository} {' '.join(_FILES[:3:2])} --local-dir DIR; bring DIR here and give it in the place of the name."
    )


def _fetch_torchvision(name: str, download: bool) -> Pretrained | None:
    from torchvision import models

    enums = [models.get_model_weights(model) for model in models.list_models(include="convnext*")]
    found = {f"{enum.__name__}.{key}".lower(): each for enum in enums for key, each in enum.__members__.items()}
    if name.lower() not in found:
        known = [str(weights) for enum in enums for weights in enum]
        raise CheckpointError(f"torchvision has no weights '{name}'.{suggest(name, known)} Known: {', '.join(known)}.")
    return _download(found[name.lower()], name, download)


def fetch_torchvision(architecture: str) -> Pretrained:
    """Return the best published weights of a classifier of torchvision, as `fetch_weights`.

    Raises: CheckpointError, OutputError: as `fetch_weights`.
    """
    from torchvision import models

    weights = getattr(models.get_model_weights(architecture), "DEFAULT", None)
    if weights is None:
        raise CheckpointError(f"torchvision publishes no weights of {architecture}; give a file of them.")
    fetched = _download(weights, str(weights))
    assert fetched is not None  # what cannot be downloaded raises
    return fetched


def _download(weights: Any, name: str, download: bool = True) -> Pretrained | None:
    """Return weights of torchvision from its cache; if they are not there, downloaded, or None."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    # the last eight digits of the published name are a hash of the content, which is checked
    digits = path.stem.rpartition("-")[2]
    if path.is_file() and not hash_file(path).startswith(digits):
        raise CheckpointError(
            f"{path} is not what its name says: it is damaged; remove it, and it is downloaded again."
        )
    if not path.is_file():
        if not download:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), digits, progress=sys.stderr.isatty())
        except Exception as error:
            # urllib, sockets, the file system and the hash check each raise their own
            if (fault := system_error(error)) is not None and fault.errno in DISK_FAULTS:
                raise _no_room(path, name, "TORCH_HOME", fault) from None
            raise CheckpointError(
                f"'{name}' is not in the cache, and downloading it failed ({first_line(error)}). Where there is a network, "
                f"download {weights.url}; bring the file here and give it in the place of the name."
            ) from None
    transform = weights.transforms()
    size = transform.crop_size[0]
    preprocess = Preprocess(
        size,
        size / transform.resize_size[0],
        transform.interpolation.value,
        tuple(transform.mean or IMAGENET_MEAN),
        tuple(transform.std or IMAGENET_STD),
    )
    return Pretrained(path, preprocess, tuple(weights.meta["categories"]))
