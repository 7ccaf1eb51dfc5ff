"""The same ConvNeXt by everything that runs it on a CPU: PyTorch, ONNX Runtime, OpenVINO, the quantizers of others, and ours.

    python benchmarks/latency.py --threads 2 --python-nncf P/bin/python --python-modelopt Q/bin/python [--out FILE.json]
    python benchmarks/latency.py --models tiny --batch-sizes 1 --candidates "ours-*" "ort-*" --rounds 3
    python benchmarks/latency.py --ablation            # our two INT8 forms, each with one thing left out
    python benchmarks/latency.py --ablation --models tiny --candidates "matrix*" "ReLU*" "NNCF*"     # the floor, and peers
    python benchmarks/latency.py --profile             # where the time goes in them
    python benchmarks/latency.py --own-call            # what we time, beside the runtime's own call in the same process

Every candidate gets a fresh process in every round, one after the other. A time is the median of a process's calls of
`Runner.run` with a float32 array, the figure the median over processes, a ratio the median over rounds of that to our fastest
in the same round, with its 95 % interval (`ratios.median_ratio`). The calls are those of `convnext-deploy bench`: ONNX
Runtime with spinning threads, OpenVINO with the hint LATENCY and a graph of one batch size, which is 1.3 to 1.5 times as fast, for
peers and ours alike.

All candidates are one network with random weights, in LayerScale, GRN and norms too, so that everything is computed. Peers
quantize timm's own network as `torch.onnx.export(dynamo=True)` writes it; `quantize_static` after `quant_pre_process`, per
channel: U8S8 as its documentation advises for x86, for all its operators and for the products alone, S8S8 as it does for
TensorRT. Calibration is on 16 images of noise for all; the speed does not depend on the ranges. `error` in the file is how far
the logits are from those of the network in FP32, their root mean square as a share of that of the logits: with noise no measure
of accuracy, but a file that computes something else would show. What stays in float in INT8 files is computed by OpenVINO as it
does by default, in bf16 where the CPU has it.

The files are made in `--work` first, and kept. Peers that are not in this interpreter have one of their own, see
`quantization_peers.py`; one that is missing is left out and said so. Ends with code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from latency_ablation import ablate, ablation_words
from latency_candidates import KINDS, OURS
from latency_files import Files, save
from latency_own_call import own_call
from latency_profile import profile
from latency_table import Row, add_ratios, claims, describe, render_claims, render_rows
from latency_timing import Timer, run_artifact, run_child, time_in_turns

from convnext_deploy.errors import BackendUnavailableError, DeployError
from convnext_deploy.models.variants import resolve_variant


def timer(files: Files, candidate: str, batch_size: int, arguments: argparse.Namespace) -> tuple[Timer, float | None]:
    """Return what times a candidate once in a fresh process, in milliseconds, and the error of its logits.

    Raises: DeployError: if its file cannot be made or opened.
    """
    kind = KINDS[candidate]
    artifact = files.artifact(kind, batch_size)
    if artifact is None:
        return lambda: run_child(
            ["timm", files.variant, str(files.weights)], batch_size, files.image_size, arguments
        ), None
    error = None if kind.runner.startswith("torch") else files.error(artifact, kind.runner)
    return lambda: run_artifact(artifact, kind.runner, batch_size, arguments), error


def measure(files: Files, batch_size: int, candidates: Sequence[str], arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of one network and batch size."""
    timers, errors, not_run = {}, {}, {}
    for name in candidates:
        try:
            timers[name], errors[name] = timer(files, name, batch_size, arguments)
        except DeployError as error:
            if KINDS[name].group == OURS and not isinstance(error, BackendUnavailableError):
                raise
            not_run[name] = str(error)
    times, failed = time_in_turns(timers, arguments.rounds, f"{files.variant}, batch {batch_size}")
    not_run |= failed
    for name, reason in not_run.items():
        print(f"{files.variant}, batch {batch_size}: {name} not run: {reason}", file=sys.stderr)
    return [
        {
            "model": files.variant,
            "batch_size": batch_size,
            **describe(name),
            "processes_ms": times.get(name, []),
            "not_run": not_run.get(name),
            "error": errors.get(name),
        }
        for name in candidates
    ]


def compare(arguments: argparse.Namespace) -> int:
    """Measure all, print the tables; return the exit code."""
    names = [name for name in KINDS if any(fnmatchcase(name, pattern) for pattern in arguments.candidates)]
    rows: list[Row] = []
    all_files = [Files(name, arguments.image_size, arguments) for name in arguments.models]
    for files in all_files:
        for batch_size in arguments.batch_sizes:
            rows += measure(files, batch_size, names, arguments)
            add_ratios(rows)
            peers = {method: versions for each in all_files for method, versions in each.versions.items()}
            save(rows, arguments, peers=peers, claims=claims(rows))
    if arguments.rounds == 0:
        return 0
    found = claims(rows)
    print(render_rows(rows), render_claims(found), sep="\n\n")
    return 0 if all(claim["holds"] for claim in found) else 1


def main() -> int:
    """Compare, or take our forms apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["tiny", "convnextv2_tiny", "atto"], metavar="NAME")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="processes for each; 0: make the files only")
    parser.add_argument("--seconds", type=float, default=1.5, help="that each process times calls")
    parser.add_argument("--candidates", nargs="+", default=["*"], metavar="PATTERN", help="such as 'ours-*'")
    for peer in ("ort", "nncf", "modelopt"):
        parser.add_argument(f"--python-{peer}", default=sys.executable, metavar="PATH")
    parser.add_argument("--work", type=Path, default=Path("runs/latency"), help="where the files are made and kept")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--ablation", action="store_true", help="our forms with one thing left out each")
    mode.add_argument("--profile", action="store_true", help="where the time goes in our forms")
    mode.add_argument("--own-call", action="store_true", help="our forms by our calls and by the runtime's own")
    arguments = parser.parse_args()
    known = ablation_words() if arguments.ablation else tuple(KINDS)
    if not any(fnmatchcase(name, pattern) for pattern in arguments.candidates for name in known):
        parser.error(f"no candidate matches {' '.join(arguments.candidates)}; there are {', '.join(known)}")
    try:
        arguments.models = [resolve_variant(name) for name in arguments.models]
    except DeployError as error:
        parser.error(str(error))
    if arguments.ablation:
        return ablate(arguments)
    if arguments.profile:
        return profile(arguments)
    if arguments.own_call:
        return own_call(arguments)
    return compare(arguments)


if __name__ == "__main__":
    sys.exit(main())
