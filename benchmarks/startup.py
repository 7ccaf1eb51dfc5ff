"""How long the command line takes to answer: interleaved, isolated processes, the median of each command.

    python benchmarks/startup.py [--rounds 15] [--out benchmarks/results/startup.json]

`convnext-deploy` is started as a user starts it, by the script that pip installs, with its output to a pipe. The rows of an
interpreter that does nothing, and of importing torch and timm, say what of it is Python itself and what a command that imports
either would take. Bounds are for an idle machine: `--help` 0.2 s, `models` 0.5 s. The exit code is 1 where a median is above its
bound.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PROGRAM = "convnext-deploy"
# command → bound in seconds, None: for comparison, or with work of its own
COMMANDS: dict[tuple[str, ...], float | None] = {
    (PROGRAM, "--help"): 0.2,
    (PROGRAM, "--version"): 0.2,
    (PROGRAM, "train", "--help"): 0.2,
    (PROGRAM, "doctor", "--help"): 0.2,
    (PROGRAM, "predict", "--help"): 0.2,
    (PROGRAM, "models"): 0.5,
    (PROGRAM, "models", "--json"): 0.5,
    (PROGRAM, "recommend", "--images", "5000", "--classes", "10"): 0.5,
    (PROGRAM, "completion", "bash"): 0.2,
    (PROGRAM, "doctor"): 6.0,
    (sys.executable, "-c", "pass"): None,
    (sys.executable, "-c", "import torch"): None,
    (sys.executable, "-c", "import timm"): None,
}
COMPLETION = "completing `train --model v2-`"


def main() -> None:
    """Print a line per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    program = Path(sys.executable).with_name(PROGRAM)
    if not program.exists():
        raise SystemExit(f"there is no {program}; pip install -e . for this Python first.")
    words = {
        "_CONVNEXT_DEPLOY_COMPLETE": "bash_complete",
        "COMP_WORDS": f"{PROGRAM} train --model v2-",
        "COMP_CWORD": "3",
    }
    calls: dict[str, tuple[list[str], dict[str, str], float | None]] = {
        _name(command): ([str(program) if word == PROGRAM else word for word in command], {}, bound)
        for command, bound in COMMANDS.items()
        if command[-1] != "import timm" or importlib.util.find_spec("timm") is not None
    }
    calls[COMPLETION] = ([str(program)], words, 0.2)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(0)
    for round_number in range(arguments.rounds + 1):
        for name in order.permutation(list(calls)):
            command, environment, bound = calls[name]
            is_slow = bound is None or bound > 1
            if is_slow and round_number > arguments.rounds // 3:
                continue  # seconds each, and they vary less
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
            if round_number:  # the first round fills the disk's cache
                times[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "median_s": float(np.median(found)),
            "low_s": min(found),
            "high_s": max(found),
            "runs": len(found),
            "bound_s": calls[name][2],
        }
        for name, found in times.items()
    }
    width = shutil.get_terminal_size((100, 24)).columns
    for name, row in rows.items():
        limit = row["bound_s"]
        suffix = "" if limit is None else f", bound {limit:g} s"
        print(
            f"{name[: width - 44]:56} {row['median_s']:6.3f} s [{row['low_s']:.3f}, {row['high_s']:.3f}]{suffix}",
            flush=True,
        )
    if arguments.out is not None:
        from convnext_deploy.system.environment import describe_environment

        record = {"environment": describe_environment(), "settings": {"rounds": arguments.rounds}, "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    above = [name for name, (_, _, bound) in calls.items() if bound is not None and np.median(times[name]) > bound]
    if above:
        raise SystemExit(f"above their bounds: {', '.join(above)}")


def _name(command: tuple[str, ...]) -> str:
    return " ".join("python" if word == sys.executable else word for word in command)


if __name__ == "__main__":
    main()
