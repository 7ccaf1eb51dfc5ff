"""From a stage's settings to a training: network, batches, and the call of the loop."""

import dataclasses
import functools
import hashlib
import math
from contextlib import closing
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import History
from convnext_deploy.artifacts.preprocessing import ask
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, default_preprocess
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.agreement import is_in_order
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.data.pixel_cache import LARGEST_IN_MEMORY, RESULT_VERSION, PixelCache, decode_small
from convnext_deploy.errors import ArtifactError, RecipeError
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint, load_into
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import build_model, resolve_variant
from convnext_deploy.quantization.prepare import quantized_layers
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.foresight import Given, Outlook, check_fit
from convnext_deploy.system.distributed import world
from convnext_deploy.system.random_state import forked_random
from convnext_deploy.system.shared_work import from_first
from convnext_deploy.training.evaluate_labels import evaluate_labels
from convnext_deploy.training.fit import fit
from convnext_deploy.training.schedule import Schedule, autocast_dtype
from convnext_deploy.training.scoring import Evaluation, Scoring, epochs_between, evaluate_classifier, own_images
from convnext_deploy.training.step import Objective
from convnext_deploy.training.teacher import evaluate_features
from convnext_deploy.training.torch_compile import compile_network

_MOST_KEPT = 256 << 20  # bytes of decoded images, from one stage to the next
_SCORED_AT_ONCE = 64  # images, so that of many processes each has about as many batches
_MOST_WEIGHT = 100.0  # of a label that few images have


def model_of(config: ModelConfig, data: Data, start: Artifact | None) -> tuple[ModelSpec, Preprocess]:
    """Return the network and the evaluation transform that a training stage asks for.

    Args:
        config: of the stage.
        data: its classes are the network's.
        start: what the stage starts from, if not from fresh weights; everything but the head must be as the stage asks.

    Raises: ArtifactError: if the stage starts from weights of another network.
    """
    spec = ModelSpec(
        resolve_variant(config.name),
        len(data.class_names),
        config.in_channels,
        config.patch_size,
        config.head_hidden_size,
        config.head_activation,
        multi_label=data.multi_label,
    )
    settings = config.preprocess
    if start is None:
        usual = default_preprocess(config.image_size, config.crop_pct, config.in_channels)
        return spec, _as_trained(ask(usual, settings, config.name))
    _check_start(start.model, spec, str(start.main_file))
    if config.head_hidden_size is None:
        spec = dataclasses.replace(
            spec, head_hidden_size=start.model.head_hidden_size, head_activation=start.model.head_activation
        )
    spec = dataclasses.replace(
        start.model,
        num_classes=spec.num_classes,
        multi_label=spec.multi_label,
        head_hidden_size=spec.head_hidden_size,
        head_activation=spec.head_activation,
    )
    if config.image_size == start.preprocess.image_size:
        settings = dataclasses.replace(settings, image_size=None)  # another size would bring its own crop
    return spec, _as_trained(ask(start.preprocess, settings, config.name))


def _check_start(found: ModelSpec, asked: ModelSpec, called: str) -> None:
    for name in ("variant", "in_channels", "patch_size"):
        if getattr(found, name) != getattr(asked, name):
            raise ArtifactError(
                f"{called} cannot be fine-tuned as asked: its {name} is {getattr(found, name)}, this stage asks for "
                f"{getattr(asked, name)}."
            )


def foresee_training(config: ModelConfig, fit: FitConfig, given: Given) -> Outlook:
    """Return what a training would make.

    Raises: DeployError: if this machine cannot train as asked, or what the stage starts from is none for that.
    """
    data, start = given.need_data(), given.start
    check_fit(fit, given.device)
    if start is not None:
        given.expect(start, "torch", "a training starts from a PyTorch artifact")
        if start.precision != "fp32":
            raise ArtifactError(f"{given.called(start)} is {start.precision}; a training starts from FP32.")
    if start is None or start.artifact is not None:
        spec, _ = model_of(config, data, None if start is None else start.artifact)
    else:
        spec = ModelSpec(
            resolve_variant(config.name),
            len(data.class_names),
            config.in_channels,
            config.patch_size,
            hidden_widths=start.model.hidden_widths,
        )
        _check_start(start.model, spec, f"stage '{given.name}': its source")
    return Outlook(given.name, "torch", "fp32", spec)


def _as_trained(preprocess: Preprocess) -> Preprocess:
    """Return a preprocessing that is no longer of unknown origin, because the network is trained with it."""
    return dataclasses.replace(preprocess, origins={})


def training_options(config: FitConfig) -> dict[str, Any]:
    """Return what training alone changes in a network, as arguments of `build_model` and `load_network`."""
    return {
        "drop_path_rate": config.drop_path_rate,
        "head_input_dropout": config.head_input_dropout,
        "head_dropout": config.head_dropout,
        "gradient_checkpointing": config.gradient_checkpointing,
    }


def start_network(spec: ModelSpec, config: FitConfig, start: Artifact | None, context: StageContext) -> ConvNeXt:
    """Return the network to train, on the device: fresh weights drawn from the seed, or those of `start`.

    A head of another size, or for other classes, stays fresh; the user is told.
    """
    with forked_random(seed=context.execution.seed, say=context.execution.progress.say):
        network = build_model(spec, layer_scale_init=config.layer_scale_init, **training_options(config))
    if start is not None:
        state = load_checkpoint(start.main_file).state
        other_classes = start.class_names is not None and not is_in_order(start, context.need_data())
        if other_classes:
            state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
        fresh = load_into(network, state, str(start.main_file), reinitialize_head=True)
        if fresh:
            classes = f"{start.model.num_classes or 'no'} classes and the data {spec.num_classes}"
            same = start.model.num_classes == spec.num_classes
            why = "other classes" if other_classes and same else "another hidden layer" if same else classes
            context.execution.progress.say(
                f"{context.name}: {', '.join(fresh)} start fresh, because the weights have {why}"
            )
    return network.to(context.execution.device)


def fit_network(
    network: nn.Module,
    preprocess: Preprocess,
    config: FitConfig,
    context: StageContext,
    objective: Objective,
    teacher: nn.Module | None = None,
) -> History:
    """Run the training loop on the training images with a stage's settings, and return its history without times.

    After an epoch the network is scored by the labels, or a feature extractor by how like its features are to its teacher's.
    """
    data, own, execution = context.need_data(), world(), context.execution
    evaluate = evaluate_labels if data.multi_label else evaluate_classifier
    freeze(network, config.frozen_stages)
    if config.compile:
        compile_network(network, execution.device)
    size = min(config.batch_size, _SCORED_AT_ONCE)
    validation, selection = (
        EvaluationBatches(
            images, preprocess, size, execution.workers, own_images(len(images), size), keeps_workers=True
        )
        for images in (data.validation, context.selection or data.validation)
    )
    # a GPU scores float networks as it trains them; what an artifact is judged by is measured in float32, when it is done
    is_float = not any(True for _ in quantized_layers(network))
    autocast = autocast_dtype(config.autocast, execution.device) if is_float and execution.device == "cuda" else None
    batches = TrainingBatches(
        data.train,
        preprocess,
        BatchPlan(
            config.batch_size, len(data.class_names), config, plan_seed(config, context), config.augmentation_epochs
        ),
        workers=execution.workers,
        device=execution.device,
        cache=_decode_small(data, len(preprocess.mean), context),
        world=own,
    )

    def score(images: EvaluationBatches) -> Evaluation:
        if teacher is None:
            return lambda model: evaluate(model, images, execution.device, autocast)
        return lambda model: evaluate_features(model, teacher, images, execution.device, autocast)

    networks = 2 if config.ema_decay else 1
    scoring = Scoring(
        score(validation),
        epochs_between(len(batches) * batches.batch_size, len(data.validation), networks),
        None if context.selection is None else score(selection),
    )
    with closing(batches), closing(validation), closing(selection):
        history = fit(
            network,
            batches,
            objective,
            _schedule(config, execution.device),
            execution,
            description=context.name,
            scoring=scoring,
            store=context.store,
        )
    # how fast it went is in the history file; what describes an artifact must not differ from run to run
    return tuple(
        {name: figure if math.isfinite(figure) else None for name, figure in row.items() if name != "images_per_s"}
        for row in history
    )


def _schedule(config: FitConfig, device: str) -> Schedule:
    names = {field.name for field in dataclasses.fields(Schedule)} - {"autocast", "base_learning_rate"}
    return Schedule(
        **{name: getattr(config, name) for name in names},
        base_learning_rate=config.linear_learning_rate,
        autocast=autocast_dtype(config.autocast, device),
    )


def label_weights(config: FitConfig, context: StageContext) -> Tensor | None:
    """Return by how much the images that have a label count more than those that have it not, `(K,)` on the device; None: equally.

    Raises: RecipeError: if that is asked for, and the data has one class an image.
    """
    data = context.need_data()
    if not config.balance_labels:
        return None
    if not data.multi_label:
        raise RecipeError(
            f"balance_labels is for multi-label data, and {data.name} has one class an image; leave it out."
        )
    labels = data.train.labels
    ratio = (labels == 0).sum(axis=0) / np.maximum((labels == 1).sum(axis=0), 1)
    return torch.from_numpy(np.clip(ratio, 1 / _MOST_WEIGHT, _MOST_WEIGHT)).float().to(context.execution.device)


def plan_seed(config: FitConfig, context: StageContext) -> int:
    """Return the seed of the order and augmentation of the training images."""
    return context.execution.seed if config.augmentation_seed is None else config.augmentation_seed


def _decode_small(data: Data, channels: int, context: StageContext) -> PixelCache | None:
    """Decode small training images into memory, or into a file that all processes map, which the first of them writes.

    What is in memory stays there for the next stages of the run, unless it takes much of it.
    """
    # another release of Pillow may decode to other pixels
    content = f"{data.fingerprint} {channels} {RESULT_VERSION} {PIL.__version__}"
    key = hashlib.sha256(content.encode()).hexdigest()
    known: PixelCache | None = data.contents.pixels.get(key)
    if known is not None:
        return known
    file = context.cache_dir / "pixels" / f"{key[:32]}.npy"
    decode = functools.partial(
        decode_small,
        data.train,
        channels,
        file,
        most_in_memory=0 if context.execution.cache_dir is not None or world().size > 1 else LARGEST_IN_MEMORY,
    )
    found: list[PixelCache | None] = []
    from_first(lambda: found.append(decode()))
    cache = found[0] if found else decode()
    if cache is not None and (cache.is_mapped or cache.pixels.nbytes <= _MOST_KEPT):
        data.contents.pixels.clear()
        data.contents.pixels[key] = cache
    return cache


def freeze(network: nn.Module, stages: int) -> None:
    """Keep the stem and the first `stages` model stages, with the downsampling before them, from being trained; 0: nothing."""
    prefixes = tuple(f"{part}.{i}." for i in range(stages) for part in ("downsample_layers", "stages"))
    for name, parameter in network.named_parameters():
        if stages and name.startswith(prefixes):
            parameter.requires_grad_(False)
