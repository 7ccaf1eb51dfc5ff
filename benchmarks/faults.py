"""Drills: processes killed, disks full, files damaged, recipes absurd, places odd. Everything must end in one line or go on.

    python benchmarks/faults.py [--drills NAME …] [--scale 1.0] [--jobs 2] [--seed 0] [--again] [--out FILE.json]
    python benchmarks/faults.py --list

A drill is passed when nothing hangs, no process prints a traceback, every exit code is the one that is promised, and what is
recovered has the bytes of a run to which nothing happened. `--scale 0.1` does a tenth of each. What is done is kept in the file
with the versions and a hash of the code, and not done again for these. A drill that this machine or user cannot do is reported as
not run, with the reason. Ends with 1 if a drill found something.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faults_table

ROOT = Path(__file__).resolve().parents[1]
_SHARED = "shared"


@dataclass(frozen=True)
class Drill:
    """`function` of a file of this folder takes a `Lab`, how often, and a seed, and yields `Trial`s.

    `argument`: `function` makes that function of it; `shares`: it compares with the run that nothing happens to.
    """

    name: str
    words: str
    times: int
    module: str
    function: str
    argument: str | None = None
    shares: bool = False

    def run(self, folder: Path, shared: Path, count: int, seed: int) -> Iterator[Any]:
        """Do it in a folder, with what several drills share in another."""
        from faults_lab import Lab

        found = getattr(importlib.import_module(self.module), self.function)
        drill = found if self.argument is None else found(self.argument)
        lab = Lab(folder, shared=shared)
        try:
            yield from drill(lab, count, seed)
        finally:
            lab.close()


def _place(name: str, words: str) -> Drill:
    return Drill(name, words, 1, "faults_places", "visit", name, shares=True)


DRILLS = (
    Drill("sigkill", "SIGKILL at a random moment, and again", 50, "faults_kills", "kill"),
    Drill("sigterm", "SIGTERM, likewise", 20, "faults_kills", "terminate"),
    Drill("sigint", "Ctrl-C, likewise", 20, "faults_kills", "interrupt"),
    Drill("disk", "a full disk, then space", 8, "faults_space", "fill_disk", shares=True),
    Drill("shm", "a small `/dev/shm`", 4, "faults_space", "shrink_shm"),
    Drill("documents", "a mutated document, over all readers", 300, "faults_documents", "mutate"),
    Drill("bytes", "a flipped bit of a run, its caches or a bundle", 200, "faults_bytes", "alter"),
    Drill("recipes", "an absurd recipe", 30, "faults_recipes", "refuse", shares=True),
    _place("non-root", "a user who may write one folder"),
    _place("umask-077", "`umask 077`"),
    _place("home-unset", "`HOME` unset"),
    _place("tmpdir-not-writable", "`TMPDIR` not writable"),
    _place("lang-c", "`LANG=C` and an ASCII terminal"),
    _place("optimize-2", "`PYTHONOPTIMIZE=2`"),
    _place("other-folder", "another working directory"),
    Drill("lost-folders", "no working directory, or no temporary one", 1, "faults_places", "lose_folders", shares=True),
    _place("one-cpu", "one CPU"),
)


def run_drill(drill: Drill, count: int, seed: int, work: Path) -> dict[str, Any]:
    """Do a drill, print a line for each trial, and return its record."""
    from faults_processes import NotRunError

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # the drill of documents takes the readers of the tests
    start, not_run, crash = time.monotonic(), None, []
    trials: list[Any] = []
    try:
        for trial in drill.run(work / drill.name, work / _SHARED, count, seed):
            trials.append(trial)
            state = trial.problem or trial.outcome
            print(f"{drill.name:12} {len(trials):4} {trial.what}: {state} ({trial.seconds:.1f} s)", flush=True)
    except NotRunError as error:
        not_run = str(error)
    except Exception as error:  # the drill could not go on: what it found so far stands
        crash = [{"what": "the drill itself", "problem": f"{type(error).__name__}: {error}"}]
        print(f"{drill.name:12} {crash[0]['problem']}", flush=True)
    return {
        "words": drill.words,
        "times": count,
        "trials": len(trials),
        "outcomes": Counter(trial.outcome for trial in trials if not trial.problem),
        "problems": [asdict(trial) for trial in trials if trial.problem] + crash,
        "longest_s": max((trial.seconds for trial in trials), default=0.0),
        "seconds": time.monotonic() - start,
        "not_run": not_run,
    }


def _end_with_parent() -> None:
    """Have this process interrupted when its parent ends, so that it ends its own."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def code_state() -> str:
    """Return a hash of the package's files and the drills'."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "convnext_deploy").rglob("*.py"), *ROOT.glob("benchmarks/faults*.py")]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [drill.name for drill in DRILLS]
    parser.add_argument("--drills", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--scale", type=float, default=1.0, help="of the times that each is done; at least once")
    parser.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))), help="drills at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--list", action="store_true", help="say what there is, and do nothing")
    parser.add_argument("--out", type=Path, help="where the results are kept")
    return parser.parse_args(words)


def do(counts: Mapping[Drill, int], seed: int, jobs: int) -> Iterator[tuple[Drill, dict[str, Any]]]:
    """Do drills, `jobs` at a time, and yield each with its record as soon as it is done."""
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    work.chmod(0o755)  # another user works there, too
    try:
        if any(drill.shares for drill in counts):
            from faults_lab import Lab

            print(f"a run that nothing happens to: {Lab(work / _SHARED).reference}", flush=True)
        if jobs == 1:
            yield from ((drill, run_drill(drill, count, seed, work)) for drill, count in counts.items())
            return
        with ProcessPoolExecutor(jobs, get_context("spawn"), _end_with_parent) as pool:
            running = {pool.submit(run_drill, drill, count, seed, work): drill for drill, count in counts.items()}
            for future in as_completed(running):
                yield running[future], future.result()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    """Do what was asked for and print the table."""
    arguments = parse_arguments()
    asked = [drill for drill in DRILLS if drill.name in arguments.drills]
    counts = {drill: max(1, math.ceil(drill.times * arguments.scale)) for drill in asked}
    if arguments.list:
        print("\n".join(f"{drill.name:20} {count:4} times  {drill.words}" for drill, count in counts.items()))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: sums come in the same order everywhere
    from convnext_deploy.system.environment import describe_environment
    from convnext_deploy.system.files import write_text

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_IGN:  # as under nohup: what is started would ignore it too
            signal.signal(signum, signal.SIG_DFL)
    out: Path | None = arguments.out
    known: dict[str, Any] = json.loads(out.read_text("utf-8"))["drills"] if out is not None and out.exists() else {}
    made = json.loads(json.dumps({"code": code_state(), "seed": arguments.seed, **describe_environment()}))

    def is_done(drill: Drill) -> bool:
        found = known.get(drill.name)
        same = found is not None and (found["times"], found["made"]) == (counts[drill], made)
        return same and known[drill.name]["not_run"] is None and not arguments.again

    left = {drill: count for drill, count in counts.items() if not is_done(drill)}
    for drill, record in do(left, arguments.seed, arguments.jobs):
        known[drill.name] = {**record, "made": made}
        known = {each.name: known[each.name] for each in DRILLS if each.name in known}
        if out is not None:
            write_text(out, json.dumps({"drills": known}, indent=1) + "\n")
    print(faults_table.render({drill.name: known[drill.name] for drill in counts}))
    return int(any(known[drill.name]["problems"] for drill in counts))


if __name__ == "__main__":
    sys.exit(main())
