"""Full disks and a small `/dev/shm`: each is a tmpfs of its own, in a mount namespace that only the drill's processes see.

A disk is too small for the run; the command must say so in one line and leave no half-written file. Then the disk grows, and the
same command must end with the bytes of a run that had space from the start. Of a small `/dev/shm` the training must make do with
less, or refuse in one line.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults_lab import Lab, Trial, compare, draw_images, leftovers, recipe_text, results_of
from faults_processes import Ended, NotRunError, Words

_SHM = (("64m", "of 64 MB, Docker's"), ("16m", "of 16 MB"), ("1m", "of 1 MB"), ("4k", "of 4 kB"))
_SAYS = ("space", "full", "room")
USER = () if os.geteuid() == 0 else ("--user", "--map-root-user")


class SmallDisk:
    """A tmpfs over a folder, for processes that are started with its `prefix` only."""

    def __init__(self, holder: subprocess.Popen[str], folder: Path) -> None:
        self.folder = folder
        joined = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        self.prefix = ("nsenter", *joined, f"--target={holder.pid}", "--mount", f"--wd={folder}", "--")
        self.seen = Path(f"/proc/{holder.pid}/root{folder}")  # the folder, from outside

    def resize(self, size: str) -> None:
        """Give it another size."""
        subprocess.run([*self.prefix, "mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def used(self) -> int:
        """Return how many bytes are used on it."""
        found = os.statvfs(self.seen)
        return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """Yield a tmpfs that ends with the block. Raises: NotRunError: if this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = 'mount -t tmpfs -o "size=$0" tmpfs "$1" && echo mounted && exec cat'
    command = ["unshare", *USER, "--mount", "--propagation", "private", "sh", "-c", mount, size, str(folder)]
    try:
        holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        raise NotRunError("there is no unshare, of util-linux, here") from None
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stderr is not None
            if holder.stdout.readline() != "mounted\n":
                raise NotRunError(f"no tmpfs can be mounted by this user: {holder.stderr.read().strip()}")
            yield SmallDisk(holder, folder)
        finally:
            if holder.stdin is not None:
                holder.stdin.close()  # ends `cat`, and with it the namespace


def fill_disk(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """Give a run `count` sizes of a disk, from next to nothing to nearly enough, and after every second one a bundle as well."""
    del seed  # the sizes are spread evenly
    expected = results_of(lab.reference)
    needed = sum(path.stat().st_blocks * 512 for path in lab.reference.rglob("*"))
    for number in range(count):
        size = max(64 << 10, int(needed * (number + 0.5) / count))
        with small_disk(lab.folder / f"disk-{number}", f"{size}") as disk:
            words = lab.run_words(lab.recipe, lab.images, disk.folder / "run")
            ended = lab.run(words, fresh=True, prefix=disk.prefix)
            name = f"a run on {size / 1e6:.1f} of {needed / 1e6:.1f} MB"
            fits = ended.code == 0
            problem = ended.fault({0}) if fits else _full(ended, disk.seen)
            yield Trial(name, "fits" if fits else "one line", problem, ended.seconds)
            disk.resize(f"{4 * needed + (64 << 20)}")
            ended = lab.run(words, fresh=True, prefix=disk.prefix)
            problem = ended.fault({0}) or compare(disk.seen / "run", expected)
            yield Trial(f"{name}, again with space", "the same bytes", problem, ended.seconds)
            if number % 2 and not problem and not lab.short:
                yield _bundle(lab, disk)


def _bundle(lab: Lab, disk: SmallDisk) -> Trial:
    """Let the disk have space for half a bundle, and then for all of it."""
    disk.resize(f"{disk.used() + (256 << 10)}")
    words: Words = ["bundle", disk.folder / "run/stages/onnx", "--golden-images", "4", "--out", disk.folder / "bundle"]
    ended = lab.run(words, fresh=True, prefix=disk.prefix)
    problem = _full(ended, disk.seen)
    if not problem and (disk.seen / "bundle").exists():
        problem = "half a bundle is there"
    seconds = ended.seconds
    disk.resize("1g")
    ended = lab.run(words, fresh=True, prefix=disk.prefix)
    return Trial("a bundle on a full disk, and again", "one line", problem or ended.fault({0}), seconds + ended.seconds)


def _full(ended: Ended, folder: Path) -> str:
    """Return what is wrong with the end of a command that had too little space."""
    problem = ended.fault({1})
    if not problem and not any(word in ended.last_line.lower() for word in _SAYS):
        problem = f"does not say that the disk is full: {ended.last_line[:200]}"
    if not problem and (left := leftovers(folder)):
        problem = f"left behind: {', '.join(left)}"
    return problem


def shrink_shm(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """Train at 224 pixels with 64 images a batch and four loader processes, which want 77 MB of `/dev/shm`, with less."""
    del seed
    images = draw_images(lab.folder / "large images", side=256, train=43, validation=4)
    text = recipe_text(short=True)
    recipe = lab.write_recipe(
        "shm.toml", text.replace("image_size = 32", "image_size = 224").replace("batch_size = 12", "batch_size = 64")
    )
    lab.expect(lab.run_words(recipe, images, lab.folder / "whole"))
    expected = results_of(lab.folder / "whole")
    for number, (size, words) in enumerate(_SHM[:count]):
        out = lab.folder / f"out-{number}"
        with small_disk(Path("/dev/shm"), size) as disk:
            ended = lab.run(lab.run_words(recipe, images, out, workers=4), fresh=True, prefix=disk.prefix)
        fits = ended.code == 0
        problem = ended.fault({0, 1}) or (compare(out, expected) if fits else "")
        yield Trial(f"/dev/shm {words}", "made do with it" if fits else "one line", problem, ended.seconds)
