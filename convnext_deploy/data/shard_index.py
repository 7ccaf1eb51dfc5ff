"""An index of where each sample of some shards lies, made of what was found in them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.contents import Contents, digest_parts
from convnext_deploy.data.contents_table import DIGEST
from convnext_deploy.data.decoding import printable
from convnext_deploy.data.mds_scan import scan_mds
from convnext_deploy.data.pixels import quiet
from convnext_deploy.data.shard_parts import IndexFiles, Part, Version, join, load_parts, save_parts
from convnext_deploy.data.shard_scan import MDS, Shard, load_grouping, scan_shard, tail_of
from convnext_deploy.errors import DataError
from convnext_deploy.system.progress import Progress, SilentProgress, Task

Defect = tuple[int, str, str]  # the number of the shard, the key of the sample, what is wrong with it
_THREADS = 8  # they wait for the disk or the network together
_MANY_BYTES = 1 << 30  # which take seconds to read
_MB = 1_000_000


@dataclass(frozen=True)
class ShardIndex:
    """Every usable sample of some shards, in their order.

    `samples`: `(N,)` of `SAMPLE`. `names`: of the image files, joined. `defects`: samples that cannot be used.
    """

    shards: tuple[Shard, ...]
    samples: NDArray[np.void]
    names: bytes
    defects: tuple[Defect, ...]

    def name(self, sample: int) -> bytes:
        """Return the name of the image file in its shard."""
        start, size = int(self.samples["name"][sample]), int(self.samples["name_size"][sample])
        return self.names[start : start + size]

    def take(self, rows: NDArray[np.int64]) -> ShardIndex:
        """Return an index of some samples alone, `(n,)`, in that order."""
        names, samples = [self.name(row) for row in rows.tolist()], self.samples[rows]
        samples["name"] = np.cumsum([0, *map(len, names)])[:-1]
        return replace(self, samples=samples, names=b"".join(names), defects=())

    def digests(self, contents: Contents, progress: Progress | None = None) -> NDArray[np.void]:
        """Return what the shards hold, as `Contents.read` does. Raises: DataError: if one cannot be read."""
        if all(shard.digest for shard in self.shards):
            return np.frombuffer(b"".join(shard.digest for shard in self.shards), DIGEST)
        return contents.read([shard.path for shard in self.shards], progress)


def read_index(
    shards: Sequence[Shard], root: Path, files: IndexFiles, *, labelled: bool = True, progress: Progress | None = None
) -> ShardIndex:
    """Read the headers of all shards and check every sample; of shards that did not change take what was found before.

    A sample needs one image that can be opened and a class index, in a `.cls` file or as `label` of a `.json` file, or a column of
    each in a shard of Mosaic's streaming library. Costs about 0.2 ms per sample on one core when the disk answers at once. Nothing
    is unpacked or executed. What is interrupted goes on with the next shard.

    Args:
        shards: the files.
        root: their folder, or the address of one.
        files: keep what is found, by the names of the shards from `root` on, their sizes and times of change.
        labelled: samples need a class index, see `scan_shard`.
        progress: where to report what takes long; None: nowhere.

    Raises:
        DataError: if webdataset is missing, a shard cannot be read to its end, has no samples or has one key twice.
        OutputError: if the index cannot be written where the user wants it.
    """
    versions = [shard.version(root) for shard in shards]
    known = load_parts(files)
    missing = [number for number, version in enumerate(versions) if version not in known]
    if missing:
        found: dict[int, Part] = {}
        try:
            _scan([(number, shards[number]) for number in missing], found, root, labelled, progress)
        finally:
            if found:
                known |= {versions[number]: found[number] for number in sorted(found)}
                save_parts(files, _still_there(known, versions, shards, root))
    parts = [known[version] for version in versions]
    samples, names = join(parts)
    defects = tuple((number, *defect) for number, part in enumerate(parts) for defect in part.defects)
    digested = tuple(replace(shard, digest=part.digest) for shard, part in zip(shards, parts, strict=True))
    return ShardIndex(digested, samples, names, defects)


def read_sample(index: ShardIndex, row: int) -> bytes:
    """Read the encoded image of a sample.

    Opens the shard anew: that takes some 10 µs, a hundredth of the decoding of a photograph, and leaves nothing that forked
    or threaded readers could disturb.

    Raises: DataError: if the shard has changed since it was indexed, or cannot be read.
    """
    sample = index.samples[row]
    shard: Shard = index.shards[sample["shard"]]
    if shard.blocks is not None:
        offset, size = int(sample["offset"]), int(sample["size"])
        content = shard.blocks.read(offset, size)
        if tail_of(size, content) != int(
            sample["tail"]
        ):  # of a block that this disk did not keep well, or of another file
            shard.blocks.forget(offset, size)
            content = shard.blocks.read(offset, size)
        if tail_of(size, content) != int(sample["tail"]):
            raise DataError(f"{printable(shard.path)} has changed since the data was opened; start again.")
        return content
    try:
        with shard.path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if (status.st_size, status.st_mtime_ns) != (shard.size, shard.modified_ns):
                raise DataError(f"{printable(shard.path)} has changed since the data was opened; start again.")
            stream.seek(int(sample["offset"]))
            content = stream.read(int(sample["size"]))
            return content
    except OSError as error:
        raise DataError(f"{printable(shard.path)} cannot be read ({error.strerror}).") from None


def _still_there(
    known: dict[Version, Part], versions: Sequence[Version], shards: Sequence[Shard], root: Path
) -> dict[Version, Part]:
    """Return what is to be kept: of these shards, and of others in their folder as long as they are there."""
    own, asked = set(versions), {version[0] for version in versions}
    is_remote = shards[0].blocks is not None

    def stays(version: Version) -> bool:
        if version in own:
            return True
        return version[0] not in asked and (is_remote or (root / str(version[0])).exists())

    return {version: part for version, part in known.items() if stays(version)}


class _Reading:
    """Adds up what several threads have read, in millions of bytes, and ends them when it is told so."""

    def __init__(self, task: Task) -> None:
        self._task, self._lock, self._bytes, self._told = task, threading.Lock(), 0, 0
        self.ended = False

    def advance(self, size: int) -> None:
        """Take down that so many bytes more were read."""
        if self.ended:
            raise _EndedError
        with self._lock:
            self._bytes += size
            if more := self._bytes // _MB - self._told:
                self._told += more
                self._task.advance(more)


class _EndedError(Exception):
    """Another shard cannot be read, or a signal ends the work."""


def _scan(
    shards: Sequence[tuple[int, Shard]], found: dict[int, Part], root: Path, labelled: bool, progress: Progress | None
) -> None:
    """Read numbered shards, and put down what each holds as soon as it is known."""
    tars = [shard for _, shard in shards if shard.path.suffix.lower() != MDS]
    group = load_grouping(tars[0]) if tars else None
    total = sum(shard.size for _, shard in shards)
    takes_long = total > _MANY_BYTES or shards[0][1].blocks is not None
    shown = progress if progress is not None and takes_long else SilentProgress()
    what = f"read {len(shards):,} shards of {printable(root.name)} for their index, once"
    with quiet(), shown.task(what, max(1, total // _MB), "MB") as task, ThreadPoolExecutor(_THREADS) as pool:
        reading = _Reading(task)

        def read(numbered: tuple[int, Shard]) -> None:
            number, shard = numbered
            if group is None or shard.path.suffix.lower() == MDS:
                part = scan_mds(shard, reading.advance, labelled=labelled)
            else:
                part = scan_shard(shard, group, reading.advance, labelled=labelled)
            # while its blocks are on this machine
            found[number] = part if shard.blocks is None else replace(part, digest=_digest(shard))

        try:
            for _ in pool.map(read, shards):
                pass
        except BaseException:
            reading.ended = True
            raise


def _digest(shard: Shard) -> bytes:
    blocks = shard.blocks
    assert blocks is not None
    return digest_parts(shard.size, lambda size, start: blocks.read(start, size))
