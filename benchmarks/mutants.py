"""Do the tests notice an error? Mutants of the package, each of which some test must kill.

    python benchmarks/mutants.py [--tree DIR] [--only NAME …] [--label NAME] [--all] [--out benchmarks/results/mutants.json]

A tree, this checkout or another one, is copied into a scratch folder, and the copy is changed: one error of `mutants_list.py` at a
time. Then the tests that should notice it run there, one after the other in one process, up to the first that fails; that one runs
again without the error. A mutant is `killed` where a test fails with it and passes without it, and `survived` where none fails;
with `--all`, the whole default suite is tried before that is said. `unclear`: the test fails in both, `timed out`: see `--minutes`.

Results are kept after every mutant, under the label (the tree's commit otherwise); what is there for the same state of the tree
is not run again, unless with `--again`. Ends with code 1 if a mutant of those asked for was not killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from mutants_list import MUTANTS, Mutant

PACKAGE = "convnext_deploy"
ROOT = Path(__file__).resolve().parents[1]
_NOT_COPIED = (".*", "__pycache__", "runs", "build", "*.egg-info")
_ALONE = ("-p", "no:xdist", "-o", "addopts=", "-m", "not slow", "-x", "-q")


def find_place(package: Path, mutant: Mutant) -> tuple[Path, str]:
    """Return the file of a package that a mutant changes, and its text with the error.

    Raises: LookupError: if what it changes is not there, or more than once.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    for before, after in ((mutant.before, mutant.after), *filter(None, (mutant.earlier,))):
        pattern = re.compile(r"\s*".join(map(re.escape, before.split())))
        places = [path for path, text in texts.items() for _ in pattern.finditer(text)]
        if len(places) == 1:
            text = texts[places[0]]
            start, end = next(pattern.finditer(text)).span()
            return places[0], text[:start] + after + text[end:]
    raise LookupError(f"{mutant.name}: expected one place, found none or several of: {mutant.before}")


def find_tests(tree: Path, mutant: Mutant) -> list[str]:
    """Return the test files of a tree that should notice a mutant. Raises: LookupError: if it has none of them."""
    found = [str(path.relative_to(tree)) for name in mutant.tests for path in sorted((tree / "tests").rglob(name))]
    if not found:
        raise LookupError(f"{mutant.name}: none of {', '.join(mutant.tests)} is below tests/")
    return found


@contextmanager
def mutated(path: Path, text: str) -> Iterator[None]:
    """Within the block a source file has another text; no compiled form of either outlives it."""
    original, compiled = path.read_text(encoding="utf-8"), Path(cache_from_source(str(path)))
    path.write_text(text, encoding="utf-8")
    compiled.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.write_text(original, encoding="utf-8")
        compiled.unlink(missing_ok=True)


def run_tests(tree: Path, words: list[str], minutes: float) -> tuple[int | None, list[str]]:
    """Run pytest in a tree, and return its exit code (None: it took too long) and the tests that failed."""
    cache = tree / ".mutants-cache"
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *words]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=60 * minutes, check=False
        )
    except subprocess.TimeoutExpired:
        return None, []
    failed = cache / "v" / "cache" / "lastfailed"
    return done.returncode, list(json.loads(failed.read_text(encoding="utf-8"))) if failed.is_file() else []


def try_mutant(tree: Path, mutant: Mutant, minutes: float, *, whole_suite: bool = False) -> dict[str, Any]:
    """Change the tree, which is a copy, run the tests, change it back, and return what came out."""
    path, text = find_place(tree / PACKAGE, mutant)
    started = time.perf_counter()
    attempts = [[*_ALONE, *find_tests(tree, mutant)], *([["-x", "-q"]] if whole_suite else [])]
    status, test = "survived", None
    for words in attempts:
        shutil.rmtree(tree / ".mutants-cache", ignore_errors=True)
        with mutated(path, text):
            code, failed = run_tests(tree, words, minutes)
        if code == 0:
            continue
        if code is None:
            status = "timed out"
        elif code == 1 and failed:
            # only those that failed, as pytest remembers them
            code, _ = run_tests(tree, [*_ALONE, "--lf", "--lfnf=none", failed[0]], minutes)
            status, test = ("killed" if code == 0 else "unclear"), failed[0]
        else:
            status = "unclear"
        break
    return {
        "status": status,
        "file": str(path.relative_to(tree)),
        "test": test,
        "seconds": round(time.perf_counter() - started, 1),
    }


def state_of(tree: Path) -> str:
    """Return a hash of all source and test files of a tree."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in (PACKAGE, "tests") for path in (tree / folder).rglob("*.py")):
        digest.update(str(path.relative_to(tree)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def describe(tree: Path) -> str:
    """Return the commit of a tree, or its state where it is none."""
    done = subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or state_of(tree)


def main() -> None:
    """Print a line per mutant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout with the package and its tests")
    parser.add_argument("--only", nargs="+", choices=[mutant.name for mutant in MUTANTS], metavar="NAME")
    parser.add_argument("--label", help="under which the results are kept, such as 'before'")
    parser.add_argument("--all", action="store_true", help="try the whole suite where the tests named do not notice")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--minutes", type=float, default=20.0, help="at most, for a run of tests")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only is None or mutant.name in arguments.only]
    label, state = arguments.label or describe(arguments.tree), state_of(arguments.tree)
    out = arguments.out
    record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    labelled = record.setdefault(label, {"commit": "", "mutants": {}})
    labelled["commit"], results = describe(arguments.tree), labelled["mutants"]  # of the last run
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copy = Path(scratch) / "tree"
        shutil.copytree(arguments.tree, copy, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        for number, mutant in enumerate(chosen, 1):
            known = results.get(mutant.name)
            if arguments.again or known is None or known["state"] != state:
                found = try_mutant(copy, mutant, arguments.minutes, whole_suite=arguments.all)
                known = results[mutant.name] = {**found, "state": state}
                if out is not None:
                    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            by = f" by {known['test']}" if known["test"] else ""
            print(f"{number:2} {mutant.name}: {known['status']}{by}, {known['seconds']:.0f} s", flush=True)
    alive = [mutant.name for mutant in chosen if results[mutant.name]["status"] != "killed"]
    print(f"{len(chosen) - len(alive)} of {len(chosen)} killed")
    if alive:
        raise SystemExit(f"not killed: {', '.join(alive)}")


if __name__ == "__main__":
    main()
