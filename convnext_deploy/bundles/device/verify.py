#!/usr/bin/env python3
"""Prove that a bundle is whole, and that every model in it that can be run here gives the answers it gave when it was made.

    python3 verify.py [--data DIR [--limit N]] [--require engine] [--built DIR] [--json] [BUNDLE]

Checksums need nothing but Python 3.8; ONNX files need numpy and onnxruntime, engines numpy, TensorRT's Python bindings and a GPU;
top-1 on images of your own Pillow.
Exit codes: 0 nothing disagreed (what was not run is said), 1 something disagreed, is damaged, or was required and not run, 2 usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

SUMS, RECORD, SCHEMA = "SHA256SUMS", "bundle.json", 1
BUILT = "built"  # what build_on_device.sh and build_engine.py make; no checksum was known for it
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"

if not __package__:  # a program of a bundle, which loads what lies beside it, and leaves the folder as it was
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path(__file__).resolve().parent))
load_sibling: Any = importlib.import_module(
    f"{__package__}.bundle_index" if __package__ else "bundle_index"
).load_sibling


class BundleError(Exception):
    """The folder is not a bundle, or one that this program cannot read."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `kind` is `files`, `onnx` or `engine`."""

    what: str
    kind: str
    status: str
    detail: str


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of `bundle.json`. Raises: BundleError: if there is none, or it is of another version."""
    try:
        record = json.loads(load_sibling("bundle_index").read_text(folder / RECORD))
        if record["schema"] != SCHEMA:
            raise BundleError(
                f"{folder / RECORD} has the schema {record['schema']!r:.80}; this program reads {SCHEMA}."
            )
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {RECORD}.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{folder / RECORD} cannot be read ({str(error)[:200]!r}); copy the bundle again.") from None
    try:
        load_sibling("bundle_index").check_record(record)
    except TypeError as error:
        raise BundleError(f"{folder / RECORD} does not say what this program expects ({error}).") from None
    return dict(record)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with load_sibling("bundle_index").open_file(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def is_made_on_device(name: str) -> bool:
    """Return whether a file, relative to the bundle, is one that building an engine leaves."""
    parts = name.split("/")
    return parts[0] in (BUILT, "__pycache__") or (parts[:2] == ["triton", "tensorrt"] and parts[-1] == "model.plan")


def read_sums(folder: Path) -> dict[str, str]:
    """Return what `SHA256SUMS` says of each file. Raises: OSError, ValueError: if it cannot be read."""
    lines = load_sibling("bundle_index").read_text(folder / SUMS).splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_files(folder: Path) -> Check:
    """Compare all files with `SHA256SUMS`: none missing, none altered, none that does not belong."""
    try:
        expected = read_sums(folder)
    except (OSError, ValueError) as error:
        return Check(SUMS, "files", FAILED, f"cannot be read ({error}); copy the bundle again")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {SUMS}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found)]
    problems += [f"{name} is a link" for name in sorted(found) if (folder / name).is_symlink()]
    problems += [
        f"{name} was altered" for name in sorted(expected.keys() & found) if hash_file(folder / name) != expected[name]
    ]
    problems += [
        f"{name} does not belong here" for name in sorted(found - expected.keys()) if not is_made_on_device(name)
    ]
    if RECORD not in expected:
        problems.append(f"{SUMS} does not list {RECORD}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        return Check(SUMS, "files", FAILED, "; ".join(problems[:5]) + more)
    return Check(SUMS, "files", PASSED, f"{len(expected)} files are as they were")


def check_contents(folder: Path, record: dict[str, Any]) -> Check:
    """Check that something would be proved: there are models, each with answers to images, and no model that is not listed."""
    listed = {entry["file"] for entry in (*record["models"], *record["engines"])}
    there = {name for name in read_sums(folder) if name.startswith(("onnx/", "engines/"))}
    problems = [] if record["models"] else ["lists no model"]
    problems += [f"does not list {name}" for name in sorted(there - listed)]
    problems += [f"lists {name}, which is not there" for name in sorted(listed - there)]
    problems += [f"has no answers of {model['name']}" for model in record["models"] if not model["outputs"]]
    if not record["golden"]["images"]:
        problems.append("has no golden images")
    if problems:
        return Check(RECORD, "files", FAILED, "; ".join(problems[:5]) + "; make the bundle again")
    return Check(RECORD, "files", PASSED, f"{len(listed)} models and engines")


class Verifier:
    """A bundle whose files are whole, with its golden images and answers loaded when they are needed."""

    def __init__(self, folder: Path, record: dict[str, Any], built: Path) -> None:
        self.folder, self.record, self.built = folder, record, built
        self._answers = load_sibling("answers")
        self._opening = load_sibling("open_models")

    def _load(self, name: str) -> np.ndarray:
        import numpy as np

        array: np.ndarray = np.load(self.folder / name, allow_pickle=False)
        return array

    def _check(self, what: str, kind: str, model: dict[str, Any], run: Any) -> Check:
        """Run a model on the golden images, and compare."""
        pixels = self._load(self.record["golden"]["pixels"])
        found = run(self._answers.model_inputs(pixels, self.record["preprocess"], model["input"]))
        expected = {output["name"]: self._load(output["golden"]) for output in model["outputs"]}
        labels = model.get("multi_label", False)
        agrees, text = self._answers.compare(expected, found, model["tolerance"][kind], labels)
        return Check(what, kind, PASSED if agrees else FAILED, text)

    def check_placed(self, plan: Path, model: dict[str, Any]) -> Iterator[Check]:
        """Yield a failure if the engine that Triton serves is not the one that was built, and checked, here."""
        name = f"triton/tensorrt/{model['triton']}/1/model.plan"
        placed = self.folder / name
        if placed.is_file() and name not in read_sums(self.folder) and hash_file(placed) != hash_file(plan):
            yield Check(name, "engine", FAILED, f"is not {plan.parent.name}/{plan.name}; copy that there again")

    def checks(self) -> Iterator[Check]:
        """Yield a check for each model, each engine, and each model whose engine can be built on this device."""
        for found in self._opening.Models(self.folder, self.record, self.built, load_sibling).find():
            try:
                yield self._check(found.what, found.kind, found.model, found.open())
            except self._opening.NotRunError as error:
                yield Check(found.what, found.kind, NOT_RUN, str(error))
            except self._opening.BrokenError as error:
                yield Check(found.what, found.kind, FAILED, str(error))
            if found.plan is not None:
                yield from self.check_placed(found.plan, found.model)


def verify(folder: Path, built: Path | None = None) -> list[Check]:
    """Check a bundle, and the engines that were built from it in the folder `built`. A damaged bundle is not run.

    Raises: BundleError: if it is none.
    """
    record = read_record(folder)
    files = check_files(folder)
    if files.status == FAILED:
        return [files]
    try:
        contents = check_contents(folder, record)
        if contents.status == FAILED:
            return [files, contents]
        if others := [
            name for name in load_sibling("bundle_index").named_files(record) if name not in read_sums(folder)
        ]:
            raise BundleError(
                f"{folder / RECORD} names {others[0][:200]!r}, which is no file of the bundle; copy it again."
            )
        try:
            import numpy as np  # noqa: F401  (is it there?)
        except ImportError as error:
            return [files, Check("models", "onnx", NOT_RUN, f"numpy cannot be loaded ({error})")]
        return [files, *Verifier(folder, record, built or folder / BUILT).checks()]
    except (LookupError, TypeError, OSError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
        raise BundleError(
            f"{folder / RECORD} does not say what this program expects ({str(error)[:200]!r}); copy the bundle again."
        ) from None


def score(
    folder: Path, built: Path | None, data: Path, limit: int | None = None
) -> tuple[list[Check], list[dict[str, Any]]]:
    """Score whatever can be run here on a folder of images; call `verify` first.

    Returns: what became of each model and engine, and the figures of those that were scored, see `score_images.summarize`.
    Raises: BundleError: if there are no images for it, or what it needs is not there.
    """
    record, scoring = read_record(folder), load_sibling("score_images")
    try:
        pixels = load_sibling("pixels")
    except ImportError as error:
        raise BundleError(
            f"images are prepared by numpy and Pillow, of which one cannot be loaded ({error})."
        ) from None
    try:
        images = scoring.find_items(folder, record, data, pixels.IMAGE_EXTENSIONS, hash_file)
        items = scoring.limited(images.items, limit)
        openers = list(load_sibling("open_models").Models(folder, record, built or folder / BUILT, load_sibling).find())
        tallies, unreadable = scoring.tally(openers, record, items, load_sibling)
    except (scoring.DataError, OSError) as error:
        raise BundleError(str(error)) from None
    judged = [
        (one, *scoring.judge(one, opener.model.get("measured"), len(items), load_sibling("intervals")))
        for opener, one in zip(openers, tallies)  # noqa: B905  (Python 3.8)
    ]
    checks = [Check(one.what, one.kind, status, text) for one, status, text, _ in judged]
    if images.left_out:
        text = (
            f"{len(images.left_out)} of {len(images.left_out) + len(images.items)} images are left out: {images.why}; "
        )
        text += f"they lie in {scoring.first(path.parent.name for path in images.left_out)}"
        checks.append(Check(str(data), "images", NOT_RUN, text))
    if unreadable:
        text = f"{len(unreadable)} of {len(items)} images cannot be read here: {'; '.join(unreadable[:3])}"
        checks.append(Check(str(data), "images", NOT_RUN, text))
    return checks, [found for _, _, _, found in judged if found is not None]


def missing(checks: list[Check], required: list[str]) -> list[str]:
    """Return those of `onnx` and `engine` that are required and of which none passed."""
    return [kind for kind in required if not any(c.kind == kind and c.status == PASSED for c in checks)]


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(
        description="Check the files of a bundle, run what can be run here, compare with the golden answers."
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument(
        "--require", action="append", choices=["onnx", "engine"], default=[], help="fail if none of these could be run"
    )
    parser.add_argument(
        "--built", type=Path, help="folder of the engines built on this device (default: built/ in the bundle)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="score top-1 on the images of this folder too")
    parser.add_argument(
        "--limit", type=load_sibling("bundle_index").positive, metavar="N", help="of at most N of them, spread over all"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    if arguments.limit is not None and arguments.data is None:
        parser.error("--limit needs --data.")
    sys.dont_write_bytecode = True  # the folder stays as it was
    printable = load_sibling("bundle_index").printable
    scores: list[dict[str, Any]] = []
    try:
        checks = verify(arguments.bundle, arguments.built)
        if arguments.data is not None and all(check.status != FAILED for check in checks if check.kind == "files"):
            scored, scores = score(arguments.bundle, arguments.built, arguments.data, arguments.limit)
            checks += scored
    except BundleError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    unmet = missing(checks, arguments.require)
    if arguments.json:
        found = {"checks": [asdict(check) for check in checks], "required_and_not_run": unmet, "scores": scores}
        print(json.dumps(found, indent=1))
    else:
        for check in checks:
            print(printable(f"{check.status:8} {check.what}: {check.detail}"))
        for kind in unmet:
            print(f"failed   no {kind} could be run here, and one was required")
    return int(bool(unmet) or any(check.status == FAILED for check in checks))


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # not of what is loaded here either
    sys.exit(load_sibling("bundle_index").exit_code(main))
