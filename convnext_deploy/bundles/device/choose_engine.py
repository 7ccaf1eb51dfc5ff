#!/usr/bin/env python3
"""Choose among the engines that were built and timed on this device, and write `measured.json`.

    python3 choose_engine.py [--data DIR [--limit N]] [--built DIR] [BUNDLE]

`build_on_device.sh --choose` calls it. An engine can be chosen if it gives the golden answers, and if its model passed its gates
where the bundle was made. The fastest of them is chosen; one of INT8 or FP8 only where it is 5 % faster than the fastest in float:
less is not worth what it may lose. `convnext-deploy collect RUN measured.json` brings the file back to the computer.
Needs what `verify.py` needs.
Exit codes: 0 chosen, 1 none can be, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

MEASURED, SCHEMA = "measured.json", 1
WORTH_IT = 1.05  # times the fastest in float
_FLOATS = ("fp32", "fp16", "bf16")
_LEAST_TIMES = 20
_TOTALS = ("VDD_IN", "POM_5V_IN")  # how tegrastats calls what a whole board takes

if not __package__:  # a program of a bundle, which loads what lies beside it, and leaves the folder as it was
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path(__file__).resolve().parent))
load_sibling: Any = importlib.import_module(
    f"{__package__}.bundle_index" if __package__ else "bundle_index"
).load_sibling


class ChoiceError(Exception):
    """Why nothing can be chosen."""


def read_batch(built: Path, name: str) -> int:
    """Return with how many images a model was timed; where the file fixes them, trtexec was told none. Raises: ChoiceError."""
    for path in sorted(built.glob(f"{name}.bench*.log")):
        found = re.search(r"--shapes=[^ ]+?:(\d+)x", path.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            return int(found[1])
    raise ChoiceError(f"{built} does not tell with how many images {name} was timed; time it again.")


def read_times(built: Path, name: str, batch: int | None) -> dict[str, Any] | None:
    """Return what `trtexec --exportTimes` wrote of a model, all rounds together: milliseconds that the GPU computes; None: nothing.

    `batch`: that of a file of one batch size.

    `rounds_ms` has the median of each round: where they lie apart the device was not steady.
    """
    rounds = []
    for path in sorted(built.glob(f"{name}.times*.json")):
        try:
            rounds.append([float(entry["computeMs"]) for entry in json.loads(path.read_text(encoding="utf-8"))])
        except (OSError, ValueError, KeyError, TypeError):
            raise ChoiceError(f"{path} does not hold the times that trtexec writes; build and time again.") from None
    every = [time for times in rounds for time in times]
    if len(every) < _LEAST_TIMES:
        return None
    return {
        "batch_size": batch or read_batch(built, name),
        "p50_ms": statistics.median(every),
        "p90_ms": statistics.quantiles(every, n=10, method="inclusive")[-1],
        "count": len(every),
        "rounds_ms": [statistics.median(times) for times in rounds if times],
    }


def read_power(built: Path, name: str) -> dict[str, float] | None:
    """Return the mean power in watts while a model was timed: of the `GPU`, or of the rails of a Jetson; None: nothing."""
    found: dict[str, list[float]] = {}
    for path in sorted(built.glob(f"{name}.power*.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            rails = re.findall(r"(\w+) (\d+)mW/\d+mW", line) or re.findall(r"(\w+) (\d+)/\d+(?= |$)", line)
            for rail, milliwatts in rails:
                if rail.startswith(("VDD", "POM", "VIN")):
                    found.setdefault(rail, []).append(int(milliwatts) / 1000)
            if re.fullmatch(r"\s*\d+(\.\d+)?\s*", line):
                found.setdefault("GPU", []).append(float(line))
    return {rail: sum(values) / len(values) for rail, values in found.items()} or None


def total_power(power: dict[str, float] | None) -> float | None:
    """Return the watts of the whole board, or of the GPU where that is all that is known."""
    return None if power is None else next((power[rail] for rail in (*_TOTALS, "GPU") if rail in power), None)


def describe_device() -> dict[str, Any]:
    """Return what this device is; None for what cannot be found out."""
    tree = Path("/proc/device-tree/model")
    board = tree.read_bytes().decode("utf-8", "replace").strip("\0\n ") if tree.is_file() else None
    names = _ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    modes = _ask("nvpmodel", "-q")
    power_mode = None if modes is None else next((m[1].strip() for m in [re.search(r"Mode:\s*(.+)", modes)] if m), None)
    name, _, driver = (names or "").splitlines()[0].partition(", ") if names else ("", "", "")
    if "[N/A]" in (name, driver):  # as Jetson's says
        name = driver = ""
    device = load_sibling("tensorrt_device")
    capability = version = None
    try:
        capability = device.GPU(device.open_driver()).capability
        version = device.import_bindings("tensorrt").__version__
    except device.DeviceError:
        pass  # said by the checks
    return {
        "board": board or None,
        "gpu": name or None,
        "capability": capability,
        "tensorrt": version,
        "driver": driver or None,
        "power_mode": power_mode,
        "machine": platform.machine(),
        "system": platform.platform(),
    }


def _ask(program: str, *arguments: str) -> str | None:
    """Return what a program prints, or None."""
    place = shutil.which(program)
    if place is None:
        return None
    try:
        done = subprocess.run(
            [place, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() or None


def choose(engines: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Return the engine to use, and why. Raises: ChoiceError: if none can be."""
    able = [engine for engine in engines if engine["obstacle"] is None]
    if not able:
        reasons = "; ".join(f"{engine['model']}: {engine['obstacle']}" for engine in engines) or "nothing was built"
        raise ChoiceError(f"no engine can be chosen ({reasons}).")
    able.sort(key=lambda engine: float(engine["latency"]["p50_ms"]))
    fastest, floats = able[0], [engine for engine in able if engine["precision"] in _FLOATS]
    if len(able) == 1:
        return fastest, "the only one that can be chosen"
    if floats and fastest["precision"] not in _FLOATS:
        ratio = floats[0]["latency"]["p50_ms"] / fastest["latency"]["p50_ms"]
        if ratio < WORTH_IT:
            return floats[0], (
                f"{fastest['model']} is {ratio:.2f} x as fast, and less than {WORTH_IT} x is not worth what it may lose"
            )
        return fastest, f"{ratio:.2f} x as fast as {floats[0]['model']}"
    ratio = able[1]["latency"]["p50_ms"] / fastest["latency"]["p50_ms"]
    return fastest, f"the fastest, {ratio:.2f} x as fast as {able[1]['model']}"


def gather(bundle: Path, built: Path, data: Path | None, limit: int | None) -> dict[str, Any]:
    """Return the contents of `measured.json` but for the choice: each model that TensorRT can build, and what was found of it here.

    Raises: ChoiceError: if the bundle is damaged, or the images cannot be scored.
    """
    verify = load_sibling("verify")
    try:
        record, checks = verify.read_record(bundle), verify.verify(bundle, built)
        if any(check.kind == "files" and check.status == verify.FAILED for check in checks):
            raise ChoiceError("; ".join(f"{check.what} {check.detail}" for check in checks if check.kind == "files"))
        scored, scores = ([], []) if data is None else verify.score(bundle, built, data, limit)
    except verify.BundleError as error:
        raise ChoiceError(str(error)) from None
    for check in scored:
        if check.kind == "images":
            print(load_sibling("bundle_index").printable(f"{check.what}: {check.detail}"))
    found = {check.what: check for check in checks if check.kind == "engine"}
    failed = {check.what: check.detail for check in scored if check.status == verify.FAILED}
    engines, device = [], describe_device()
    for model in record["models"]:
        if not model["buildable"]:
            continue
        plan = built / f"{model['name']}.plan"
        place = f"{built.name}/{plan.name}"
        # times that are there without the engine are those of an earlier one
        check, is_there = found.get(place), plan.is_file()
        times = read_times(built, model["name"], model["batch"]["frozen"]) if is_there else None
        power = read_power(built, model["name"]) if is_there else None
        engines.append(
            {
                "model": model["name"],
                "artifact": model.get("artifact"),
                "precision": model["precision"],
                "size_bytes": plan.stat().st_size if plan.is_file() else None,
                "answers": "not built" if check is None else check.status,
                "obstacle": _without_fp8(model["precision"], device["capability"])
                or _obstacle(plan, check, times, model, failed.get(place)),
                "latency": times,
                "power_w": total_power(power),
                "rails_w": power,
                "score": next((score for score in scores if score["file"] == place), None),
            }
        )
    return {
        "schema": SCHEMA,
        "bundle": record["name"],
        "sha256": verify.hash_file(bundle / verify.SUMS),
        "measured": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017  (Python 3.8)
        "device": device,
        "engines": engines,
    }


def _without_fp8(precision: str, capability: str | None) -> str | None:
    """Return that a model is of FP8, where the GPU computes none."""
    first = load_sibling("build_engine").FIRST_WITH_FP8
    if not precision.startswith("fp8") or capability is None or int(capability[2:]) >= first:
        return None
    return f"this GPU is {capability}, and FP8 begins with SM{first}"


def _obstacle(
    plan: Path, check: Any, times: dict[str, Any] | None, model: dict[str, Any], failed: str | None
) -> str | None:
    """Return why an engine cannot be chosen."""
    if not plan.is_file():
        return "it was not built"
    if check is None or check.status != "passed":
        return "its answers were not checked" if check is None else f"{check.status}, {check.detail}"
    if failed is not None:
        return failed
    if (model.get("measured") or {}).get("passed") is False:
        return "it failed its gates where the bundle was made"
    return "it was not timed: bash build_on_device.sh --choose" if times is None else None


def run(arguments: argparse.Namespace) -> None:
    """Choose, write, and print a table. Raises: ChoiceError, OSError."""
    printable = load_sibling("bundle_index").printable
    built = arguments.bundle / "built" if arguments.built is None else arguments.built
    if not built.is_dir():
        raise ChoiceError(f"{built} is not there: nothing was built; bash build_on_device.sh --choose.")
    found = gather(arguments.bundle, built.resolve(), arguments.data, arguments.limit)
    for engine in found["engines"]:
        print(printable(describe(engine)))
    chosen, why = choose(found["engines"])
    found["chosen"], found["why"] = chosen["model"], why
    path = built / MEASURED
    load_sibling("build_engine").write(path, (json.dumps(found, indent=1) + "\n").encode())
    print(printable(f"chosen: {built / chosen['model']}.plan ({why})"))
    print(printable(f"next, where the run lies: convnext-deploy collect RUN {shlex.quote(str(path))}"))


def describe(engine: dict[str, Any]) -> str:
    """Return a line on an engine."""
    parts = [engine["answers"]]
    if engine["latency"] is not None:
        parts.append(f"{engine['latency']['p50_ms']:.3f} ms (90 %: {engine['latency']['p90_ms']:.3f})")
    if engine["power_w"] is not None:
        parts.append(f"{engine['power_w']:.1f} W")
    if engine["score"] is not None:
        parts.append(load_sibling("score_images").describe(engine["score"], None))
    if engine["obstacle"] is not None:
        parts.append(f"cannot be chosen: {engine['obstacle']}")
    return f"{engine['model']}: {', '.join(parts)}"


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description="Choose among the engines that were built and timed on this device.")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--built", type=Path, help="folder of the engines (default: built/ in the bundle)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="score them on the images of this folder, too")
    parser.add_argument("--limit", type=load_sibling("bundle_index").positive, metavar="N", help="of at most N of them")
    sys.dont_write_bytecode = True  # the folder stays as it was
    try:
        run(parser.parse_args())
    except (ChoiceError, load_sibling("build_engine").BuildError, OSError) as error:
        print(f"error: {load_sibling('bundle_index').printable(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # not of what is loaded here either
    sys.exit(load_sibling("bundle_index").exit_code(main))
