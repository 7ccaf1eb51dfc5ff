"""What only a GPU can tell, in one command of at most eight minutes, offline: tests, speeds, memory, engines, a resumed training.

    python benchmarks/gpu.py [--out benchmarks/results/gpu.json] [--only training memory]
    python benchmarks/gpu.py --device cpu --quick      # whether the script runs; its figures say nothing of a GPU

Each part runs in a process of its own with a time limit (`gpu_parts.py`); one that fails or takes too long is named and the others
go on, and what is not installed is said. The figures stand in the file after every part. Without a GPU the script ends with one
line. Ends with code 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.system.cuda_driver import cuda_driver_error
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_text

HERE = Path(__file__).parent
TOTAL_S = 480.0
_CHILD = (sys.executable, str(HERE / "gpu_parts.py"))


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: `words` start it, and `seconds` is the most that it may take."""

    name: str
    words: tuple[str, ...]
    seconds: float

    @property
    def measures(self) -> bool:
        """Whether it writes figures, and takes where to and on what."""
        return self.words[:2] == _CHILD


PARTS = (
    Part("tests", (sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "gpu", str(HERE.parent / "tests")), 120),
    *(
        Part(name, (*_CHILD, name), seconds)
        for name, seconds in (
            ("training", 60),
            ("training-compiled", 90),
            ("memory", 45),
            ("onnxruntime", 60),
            ("resume", 60),
            ("two-processes", 60),
            ("engine-fp16", 60),
            ("engine-int8", 60),
            ("engine-fp8", 60),
        )
    ),
)


def run_part(part: Part, options: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Run a part; return its state (`done`, `failed`, `too long`, `not run`), what it took, why, and its figures."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "figures.json"), Path(folder, "log")
        words = [*part.words, *(("--out", str(out), *options) if part.measures else ())]
        with log.open("wb") as file:
            # a group of its own, so that what it starts ends with it
            child = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True)
            try:
                code: int | None = child.wait(min(part.seconds, limit_s))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        figures = json.loads(out.read_text()) if out.is_file() else {}
    why = figures.pop("not run", "") or (lines[-1] if lines and (code or not part.measures) else "")
    state = "too long" if code is None else "failed" if code else "not run" if why and part.measures else "done"
    return {"state": state, "seconds": round(time.monotonic() - started, 1), "why": why[:300], "figures": figures}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with a line for each figure, and for each part that has none."""
    lines = ["| part | state | s | figure | |", "|---|---|---|---|---|"]
    for name, part in found.items():
        rows = list(part["figures"].items()) or [("", part["why"])]
        for place, (figure, value) in enumerate(rows):
            own = [name, part["state"], str(part["seconds"])] if not place else ["", "", ""]
            lines.append(
                "| " + " | ".join([*own, figure, f"{value:.4g}" if isinstance(value, float) else str(value)]) + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a small network and few steps")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all parts together")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and (missing := cuda_driver_error()):
        sys.exit(
            f"benchmarks/gpu.py needs an NVIDIA GPU, and here is {missing}; --device cpu --quick tries the script alone."
        )
    options = ["--device", arguments.device, *(["--quick"] if arguments.quick else [])]
    ends, found = time.monotonic() + arguments.seconds, dict[str, dict[str, Any]]()
    for part in PARTS:
        if arguments.only and part.name not in arguments.only:
            continue
        left = ends - time.monotonic()
        nothing = {"state": "not run", "seconds": 0.0, "why": "no time was left", "figures": {}}
        found[part.name] = run_part(part, options, left) if left > 0 else nothing
        print(f"{part.name}: {found[part.name]['state']} {found[part.name]['why']}", file=sys.stderr, flush=True)
        record = {
            "device": arguments.device,
            "quick": arguments.quick,
            "parts": found,
            "environment": describe_environment(),
        }
        write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    print(table(found))
    if arguments.device == "cpu":
        print("\nOn a CPU: the script runs, and no figure says anything of a GPU.")
    sys.exit(int(any(part["state"] in ("failed", "too long") for part in found.values())))


if __name__ == "__main__":
    main()
