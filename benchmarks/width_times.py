"""How well the time of a pruned network is predicted: by the model that `compress` uses, and by two simpler ones.

    python benchmarks/width_times.py [--target openvino] [--choices 30] [--rounds 7] [--out FILE.json]
    python benchmarks/width_times.py --probes 12 --choices 8 --rounds 2 --seconds 0.2       # small, to see that it works

Networks of `compression.probes` and `--choices` random ones, in which each block has any width that it may have or is not there,
are written as INT8 files and timed together, in interleaved, isolated processes. Each model is fitted to the first ones alone. Its
error is the share by which it misses the time of a random network.

`ours`: a fixed time and, for each model stage, a curve over the width, by least squares with costs >= 0. `one stage at a time`: the
same curves from as many networks in which a single stage is narrower. `multiply-accumulates`: proportional to them, from the dense
network alone. Ends with code 1 if the median error of ours is above a tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compression_table import WIDTHS_HEAD, width_lines
from markdown_cells import as_table
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.compression.probe_files import ProbeForm, ProbeWriter
from convnext_deploy.compression.probes import PROBES, choose_probes, time_widths
from convnext_deploy.compression.time_model import fit_times
from convnext_deploy.models.block_shapes import BlockShape, block_shapes, candidate_widths
from convnext_deploy.models.variants import resolve_variant, with_widths
from convnext_deploy.models.zoo.cost import count_macs
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_text
from convnext_deploy.system.progress_bars import create_display

ALLOWED = 0.1
_SHARES = (0.0, 0.125, 0.25, 0.5, 0.75)
Choice = tuple[int, ...]


def random_choices(shapes: Sequence[BlockShape], count: int, seed: int) -> list[Choice]:
    """Return random widths for every block, each of those that it may have."""
    rng = np.random.default_rng(seed)
    found: list[Choice] = []
    while len(found) < count:
        each = tuple(int(rng.choice(candidate_widths(shape.hidden))) for shape in shapes)
        if any(each):
            found.append(each)
    return found


def one_stage_at_a_time(shapes: Sequence[BlockShape]) -> list[Choice]:
    """Return the dense network, and networks in which the blocks of one stage are narrower or gone."""
    found = [tuple(shape.hidden for shape in shapes)]
    for stage in range(1 + shapes[-1].stage):
        for share in _SHARES:
            found.append(
                tuple(
                    32 * round(share * shape.hidden / 32) if shape.stage == stage else shape.hidden for shape in shapes
                )
            )
    return found


def errors_of(
    spec: ModelSpec, image_size: int, choices: dict[str, list[Choice]], times: dict[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Return the relative errors of each model for the random networks."""
    shapes, unseen = block_shapes(spec, image_size), choices["random"]
    found = {}
    for name in choices.keys() - {"random"}:
        model = fit_times(shapes, choices[name], times[name].tolist())
        found[name] = np.array([model.predict_ms(shapes, each) for each in unseen]) / times["random"] - 1
    macs = np.array([count_macs(with_widths(spec, each), image_size) for each in unseen])
    found["multiply-accumulates"] = times["ours"][0] * macs / count_macs(spec, image_size) / times["random"] - 1
    return found


def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table and write the file."""
    spec = ModelSpec(resolve_variant(arguments.model), arguments.classes, patch_size=arguments.stem)
    shapes = block_shapes(spec, arguments.image_size)
    choices = {
        "ours": list(choose_probes(shapes, arguments.probes)),
        **({} if arguments.ours_alone else {"one stage at a time": one_stage_at_a_time(shapes)}),
        "random": random_choices(shapes, arguments.choices, seed=1),
    }
    rows: list[dict[str, Any]] = []
    for target in arguments.targets:
        writer = ProbeWriter(ProbeForm(spec, default_preprocess(arguments.image_size), target))
        every = [each for group in choices.values() for each in group]
        rounds, seconds, threads = arguments.rounds, arguments.seconds, arguments.threads
        measured = time_widths(writer, every, create_display(), rounds=rounds, seconds=seconds, threads=threads)
        own, times, place = np.array(measured.times_ms), {}, 0
        for name, group in choices.items():
            times[name], place = own[place : place + len(group)], place + len(group)
        errors = errors_of(spec, arguments.image_size, choices, times)
        print(
            f"\n{arguments.model}, stem {arguments.stem}, {arguments.image_size} px, {target}, {measured.loaded or 'free machine'}"
        )
        print(
            f"dense {times['ours'][0]:.3f} ms; random networks {times['random'].min():.3f} to {times['random'].max():.3f} ms\n"
        )
        kept = {name: each.tolist() for name, each in errors.items()}
        timed = {name: len(choices[name]) for name in errors.keys() & choices.keys()}
        print(as_table(WIDTHS_HEAD, width_lines(target, kept, timed)), flush=True)
        rows.append({"target": target, "errors": kept, "timed": timed, "measured": dataclasses.asdict(measured)})
    if arguments.out is not None:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        content = {"environment": describe_environment(), "arguments": settings, "rows": rows}
        write_text(arguments.out, json.dumps(content, indent=1))
    return int(any(np.median(np.abs(row["errors"]["ours"])) > ALLOWED for row in rows))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="atto")
    parser.add_argument("--stem", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--target", dest="targets", action="append", choices=["onnxruntime", "openvino"])
    parser.add_argument("--probes", type=int, default=PROBES)
    parser.add_argument("--choices", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ours-alone", action="store_true", help="leave out what only the second model needs")
    parser.add_argument("--out", type=Path)
    found = parser.parse_args(words)
    found.targets = found.targets or ["onnxruntime", "openvino"]
    return found


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
