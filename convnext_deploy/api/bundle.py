"""`bundle`: a folder, or a `.zip` of one, written completely or not at all."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convnext_deploy.api.open_inputs import open_artifacts, open_data_for
from convnext_deploy.api.options import DataOptions, ExecutionOptions, verb
from convnext_deploy.api.run_stages import create_execution
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.archive import is_archived_bundle, write_archive
from convnext_deploy.bundles.contents import Contents, collect
from convnext_deploy.bundles.device import verify
from convnext_deploy.bundles.files import BatchSizes, assemble
from convnext_deploy.bundles.fp32_answers import FP32Answers, find_fp32_answers
from convnext_deploy.bundles.golden import GoldenImages, choose_images
from convnext_deploy.bundles.reported_accuracy import find_doubts, find_reported
from convnext_deploy.data.agreement import assumed_classes, assumed_labels, name_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import OutputError, RecipeError
from convnext_deploy.system.files import create_output_folder, replace_folder, resolve_target
from convnext_deploy.system.results import Result, plain


@dataclass(frozen=True, repr=False)
class Bundle(Result):
    """What was written. `sha256` is that of `SHA256SUMS`, and so stands for all files."""

    path: Path
    models: tuple[str, ...]
    engines: tuple[str, ...]
    golden: str
    size_bytes: int
    sha256: str
    notes: tuple[str, ...]

    def headline(self) -> str:
        """Say where it lies and what is in it."""
        counts = f"{len(self.models)} ONNX files, {len(self.engines)} engines"
        return f"{self.path}, {self.size_bytes / 1e6:.1f} MB: {counts}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one record."""
        return [plain(self)]

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps({**dataclasses.asdict(self), "path": str(self.path)}, indent=1)


@verb
def bundle(
    artifacts: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    as_zip: bool = False,
    golden_images: int = 16,
    optimal_batch_size: int = 1,
    max_batch_size: int = 8,
    data: DataOptions = DataOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Bundle:
    """Put everything that a device needs to run a model, and to prove that it runs right, into one folder.

    Args:
        artifacts: ONNX artifacts or files, and engines, all of one model.
        out: folder to write, or a file ending in `.zip`.
        as_zip: write `out.zip` in the place of the folder.
        golden_images: of how many images the answers are kept.
        optimal_batch_size: what engines built on the device are tuned for, unless asked otherwise there.
        max_batch_size: the largest batch that these and Triton take.
        data: whose validation images are the golden ones; none named: the digits, for what was trained on them, or noise.
        execution: `cache_dir` and `progress` count.

    Raises: DeployError: if the artifacts do not belong together, one of them was altered, or `out` holds something else.
    """
    artifacts = [artifacts] if isinstance(artifacts, str | Path) else artifacts
    if not artifacts:
        raise RecipeError("no artifact was given; name the folders of ONNX artifacts and engines.")
    if not 1 <= optimal_batch_size <= max_batch_size:
        raise RecipeError(
            f"a batch of {optimal_batch_size} to tune for is not between 1 and the largest, {max_batch_size}."
        )
    if golden_images < 1:
        raise RecipeError(f"{golden_images} golden images prove nothing; keep at least one.")
    out = Path(out)
    if as_zip and out.suffix != ".zip":
        out = out.with_name(f"{out.name}.zip")
    _check_output(out)
    how = create_execution(execution, data.data)
    opened = open_artifacts(artifacts, None, data, how.progress)
    images = open_data_for(opened[0], data, how)
    named = [name_classes(artifact, images) for artifact in opened]
    contents = collect(list(zip(map(Path, artifacts), named, strict=True)))
    golden = choose_images(contents.first, golden_images, images)
    reported = find_reported(contents)
    fp32 = find_fp32_answers(contents, images, reported)
    batch = BatchSizes(optimal_batch_size, max_batch_size)
    target = Path(os.path.realpath(out))
    parent = target.parent
    create_output_folder(parent)
    if out.suffix != ".zip":
        with replace_folder(target) as folder:
            digest = assemble(folder, contents, golden, batch, how.progress, reported, fp32)
            size = _size(folder)
    else:
        with TemporaryDirectory(prefix=f".{out.stem}.", dir=parent) as temporary:
            folder = Path(temporary) / out.stem
            folder.mkdir()
            digest = assemble(folder, contents, golden, batch, how.progress, reported, fp32)
            write_archive(folder, target)
        size = out.stat().st_size
    return Bundle(
        out,
        tuple(model.file for model in contents.models),
        tuple(engine.file for engine in contents.engines),
        golden.origin,
        size,
        digest,
        (*find_doubts(reported), *_assumptions(opened[0], images), *_notes(contents, golden, fp32)),
    )


def _check_output(out: Path) -> None:
    """Refuse to replace anything but a bundle from which no engine was built."""
    if out.suffix == ".zip":
        if resolve_target(out).exists() and not is_archived_bundle(out):
            raise OutputError(f"{out} is there already and is not a bundle; choose another place with --out.")
        return
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a new folder, or a name ending in .zip, with --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / verify.RECORD).is_file() or not (out / verify.SUMS).is_file():
        raise OutputError(f"{out} holds something that is not a bundle; choose an empty folder with --out.")
    others = sorted(set(_files(out)) - _listed(out))
    if others and not (out / verify.BUILT).exists():
        raise OutputError(
            f"{out} holds '{others[0]}', which is no part of the bundle; choose another folder with --out."
        )
    if (out / verify.BUILT).exists():
        raise OutputError(
            f"{out} holds engines that were built from it ({verify.BUILT}/); choose another folder with --out."
        )


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]


def _listed(bundle: Path) -> set[str]:
    """Return the files that a bundle says it has."""
    try:
        return {verify.SUMS, *verify.read_sums(bundle)}
    except (OSError, ValueError):
        return {verify.SUMS}


def _size(folder: Path) -> int:
    """Return the bytes on the disk: a file with two names counts once."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in found}.values())


def _assumptions(brought: Artifact, data: Data | None) -> Iterator[str]:
    """Yield what `classes.txt` and the reading of the outputs rest on where no file tells it, a line each."""
    for assumed in (assumed_classes, assumed_labels):
        if data is not None and (text := assumed(brought, data)) is not None:
            yield text


def _notes(contents: Contents, golden: GoldenImages, fp32: FP32Answers | None) -> tuple[str, ...]:
    """Return what the user should know, a line each."""
    notes = []
    if golden.kind == "synthetic":
        notes.append("no --data was given: the golden images are synthetic")
    elif golden.kind == "own":
        notes.append(f"the bundle holds {golden.origin} as pixels; leave --data out where they must not be passed on")
    if (
        golden.kind == "own"
        and fp32 is None
        and contents.first.model.num_classes
        and not contents.first.model.multi_label
    ):
        notes.append(
            "it has no FP32 answers to the validation images: they are those of a run with a baseline, on the same images; "
            "verify.py --data gives top-1 without the drop"
        )
    for model in contents.models:
        if model.obstacle is not None:
            notes.append(f"{model.name} is not for TensorRT: {model.obstacle}")
        notes += [f"{model.name} has {text}" for text in model.late]
    for engine in contents.engines:
        if not engine.is_exact:
            notes.append(f"{engine.file} was not built from {engine.model.file}, with whose answers it is compared")
    return tuple(notes)
