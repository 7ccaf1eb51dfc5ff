"""Eager FP32 inference of our ConvNeXt against timm's and torchvision's with the same weights, A B A B … in one process.

    python benchmarks/eager.py [--model tiny] [--batch-size 8] [--threads 2] [--rounds 40] [--out FILE.json]

timm is timed twice: as it comes, and with model and images in channels-last memory, which is the best it can do. Each round times
every network once, in an order that changes; the figure is the median over rounds of the peer's time divided by ours in the same
round, with the 95 % interval of that median (`ratios.median_ratio`). Above 1.00 ours is faster.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.models.checkpoints.key_maps import from_native, to_native
from convnext_deploy.models.checkpoints.state_dict import load_into
from convnext_deploy.models.variants import build_model, resolve_variant


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    variant = resolve_variant(arguments.model)
    spec = ModelSpec(variant, 1000)
    peer = timm.create_model(variant).eval()
    # every weight random, so that LayerScale and GRN, which start at almost nothing, are really computed
    generator = torch.Generator().manual_seed(0)
    for name, parameter in peer.named_parameters():
        offset = 1.0 if name.endswith("norm.weight") else 0.0
        parameter.data = offset + 0.05 * torch.randn(parameter.shape, generator=generator)
    ours = build_model(spec).eval()
    load_into(ours, to_native(peer.state_dict(), "timm"), "timm")
    images = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size, generator=generator)
    last = timm.create_model(variant).eval().to(memory_format=torch.channels_last)
    last.load_state_dict(peer.state_dict())
    images_last = images.contiguous(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], Tensor]] = {
        "convnext_deploy": lambda: ours(images),
        "timm": lambda: peer(images),
        "timm channels-last": lambda: last(images_last),
    }
    if hasattr(torchvision.models, variant):
        other = getattr(torchvision.models, variant)().eval()
        other.load_state_dict(from_native(ours.state_dict(), spec, "torchvision"))
        calls["torchvision"] = lambda: other(images)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(0)
    with torch.inference_mode():
        logits = {name: call() for name, call in calls.items()}
        for name, found in logits.items():
            expected = logits["timm"]
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), (
                f"{name} computes other logits than timm"
            )
        for round_number in range(arguments.rounds + 3):
            for name in order.permutation(list(calls)):
                start = time.perf_counter()
                calls[name]()
                if round_number >= 3:  # the first rounds warm up
                    times[name].append(time.perf_counter() - start)
    rows = {}
    for name in calls:
        ratio, low, high = median_ratio(np.array(times[name]), np.array(times["convnext_deploy"]))
        rows[name] = {
            "p50_ms": 1000 * float(np.median(times[name])),
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
        }
        print(
            f"{name:20} {rows[name]['p50_ms']:8.1f} ms, {rows[name]['ratio']:.2f} times ours [{low:.2f}, {high:.2f}]",
            flush=True,
        )
    if arguments.out is not None:
        from convnext_deploy.system.environment import describe_environment

        settings = {key: value for key, value in vars(arguments).items() if key != "out"}
        environment: dict[str, Any] = describe_environment()
        environment["versions"]["timm"] = timm.__version__
        record = {"environment": environment, "settings": settings, "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
