"""Other users, environments, folders and processors: what a person does with a run must work there, with the same bytes.

Each place runs the recipe, shows its report, predicts, inspects, makes a bundle and verifies it. Where something cannot work, as
in a folder that the user may not write, it must say so in one line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faults_lab import Lab, Trial, compare, results_of
from faults_processes import ROOT, NotRunError, Words, plain_environment
from faults_space import USER

_SOMEONE, _SOMEONE_ELSE = 65533, 65532  # users that nobody is


@dataclass(frozen=True)
class Place:
    """How processes are started, where, and what is to be true of the files that they leave."""

    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=plain_environment)
    cwd: Path | None = None
    check: Callable[[Path], str] = lambda _out: ""
    out: Path | None = None
    workers: int | None = 2
    relative: bool = False
    refusals: bool = False


def visit(name: str) -> Callable[[Lab, int, int], Iterator[Trial]]:
    """Return the drill of a place."""

    def drill(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
        del count, seed  # there is one such place
        expected = results_of(lab.reference)
        with _PLACES[name](lab) as place:
            out = place.out or lab.folder / "out"
            yield from _commands(lab, place, out)
            yield Trial("the run's files", "the same bytes", compare(out, expected) or place.check(out), 0.0)
            if place.refusals:
                yield from _refusals(lab, place)

    return drill


def _commands(lab: Lab, place: Place, out: Path) -> Iterator[Trial]:
    """Do what a person does with a recipe."""

    def named(path: Path) -> Path:
        return Path(os.path.relpath(path, place.cwd)) if place.relative and place.cwd else path

    graph, bundle = named(out / "stages" / "onnx"), named(out.parent / f"{out.name}-bundle")
    commands: list[Words] = [
        lab.run_words(named(lab.recipe), named(lab.images), named(out), place.workers),
        ["report", named(out)],
    ]
    graph_commands: list[Words] = [
        ["predict", graph, named(lab.images / "val")],
        ["inspect", graph],
        ["bundle", graph, "--golden-images", "4", "--out", bundle],
        ["verify-bundle", bundle],
    ]
    for words in commands + ([] if lab.short else graph_commands):
        ended = lab.run(words, fresh=True, environment=place.environment, cwd=place.cwd, prefix=place.prefix)
        yield Trial(str(words[0]), "works", ended.fault({0}), ended.seconds)


def _refusals(lab: Lab, place: Place) -> Iterator[Trial]:
    """Let a user write where that is not allowed, and read what is not."""
    closed, secret, theirs = (lab.folder / name for name in ("closed", "secret images", "theirs"))
    closed.mkdir()
    shutil.copytree(lab.images, secret)
    shutil.copytree(lab.reference, theirs)
    recipe = lab.write_recipe("secret.toml", lab.recipe.read_text(encoding="utf-8"))
    for path in (closed, secret, theirs, recipe):
        _give(path, _SOMEONE_ELSE)
    recipe.chmod(0o600)
    next(secret.glob("train/*/*")).chmod(0o600)
    mine = lab.folder / "out"
    cached: Words = [*lab.run_words(lab.recipe, lab.images, mine / "cached"), "--cache-dir", closed]
    trials: list[tuple[str, Words]] = [
        ("a closed output folder", lab.run_words(lab.recipe, lab.images, closed / "run")),
        ("a closed output folder, planned", [*lab.run_words(lab.recipe, lab.images, closed / "run"), "--dry-run"]),
        ("another user's run", lab.run_words(lab.recipe, lab.images, theirs)),
        ("a closed cache folder", cached),
        ("an image that it may not read", lab.run_words(lab.recipe, secret, mine / "secret")),
        ("a recipe that it may not read", lab.run_words(recipe, lab.images, mine / "recipe")),
        ("a bundle in a closed folder", ["bundle", theirs / "stages/onnx", "--out", closed / "bundle"]),
        ("a report in another user's run", ["report", theirs]),
    ]
    for what, words in trials:
        ended = lab.run(words, fresh=True, environment=place.environment, prefix=place.prefix)
        # a cache or a view that cannot be written may be done without
        codes = {0, 1, 2} if "cache" in what or "report" in what else {1, 2}
        yield Trial(what, "one line" if ended.code else "done without", ended.fault(codes), ended.seconds)


@contextmanager
def _non_root(lab: Lab) -> Iterator[Place]:
    if os.geteuid() != 0:
        raise NotRunError("it is not root who runs this: every other drill is one of a user who is not")
    out = lab.folder / "out"
    out.mkdir()
    _give(out, _SOMEONE)
    # a user like any other; where the interpreter lies in a folder that is root's alone, root without its powers and its name
    candidates = (
        ("setpriv", f"--reuid={_SOMEONE}", f"--regid={_SOMEONE}", "--clear-groups"),
        ("unshare", "--user", f"--map-user={_SOMEONE}", f"--map-group={_SOMEONE}"),
    )
    for prefix in candidates:
        probe = [*prefix, "sh", "-c", 'cd "$1" && exec "$0" -c "import torch"', sys.executable, str(lab.folder)]
        if shutil.which(prefix[0]) and subprocess.run(probe, capture_output=True).returncode == 0:
            if prefix[0] == "unshare":
                _give(out, os.geteuid())
            yield Place(prefix, plain_environment(HOME="/nonexistent"), out=out / "run", refusals=True)
            return
    raise NotRunError("no other user can start this Python, by setpriv or unshare of util-linux")


def lose_folders(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """Start commands where the working directory was removed, and where no temporary folder at all can be written.

    Nothing is promised there but one line: PyTorch itself needs both.
    """
    del count, seed  # there is one of each
    gone = lab.folder / "gone"
    prefix = ("sh", "-c", f'mkdir -p "{gone}" && cd "{gone}" && rmdir "{gone}" && exec "$0" "$@"')
    places = {"a working directory that was removed": Place(prefix)}
    if closed := _closed_temporary_folders(lab):
        places["no temporary folder"] = Place(closed, plain_environment(TMPDIR="/proc/nowhere"), cwd=Path("/proc"))
    for name, place in places.items():
        commands: list[Words] = [lab.run_words(lab.recipe, lab.images, lab.folder / "out"), ["report", lab.reference]]
        for words in commands if place.cwd is None else commands[:1]:
            ended = lab.run(words, fresh=True, environment=place.environment, cwd=place.cwd, prefix=place.prefix)
            yield Trial(f"{words[0]}: {name}", "one line", ended.fault({1}), ended.seconds)


def _closed_temporary_folders(lab: Lab) -> tuple[str, ...]:
    """Return what starts a command where they are read-only but for the drills' own folder; nothing if that is not allowed."""
    folder, taken = os.path.commonpath([lab.folder.resolve(), lab.shared.resolve()]), (sys.prefix, str(ROOT))
    if any(Path(path).resolve().is_relative_to(root) for path in taken for root in ("/tmp", "/var/tmp")):
        return ()  # Python or the package lies there itself
    script = (
        'mount --bind "$0" /mnt && for each in /tmp /var/tmp; do mount -t tmpfs tmpfs $each; done && mkdir -p "$0" && '
        'mount --bind /mnt "$0" && for each in /tmp /var/tmp; do mount -o remount,ro $each; done && cd /proc && exec "$@"'
    )
    prefix = ("unshare", *USER, "--mount", "--propagation", "private", "sh", "-c", script, folder)
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return ()
    return prefix


def _give(folder: Path, user: int) -> None:
    """Let all files of a folder be a user's."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


@contextmanager
def _umask(lab: Lab) -> Iterator[Place]:
    def check(out: Path) -> str:
        usual = os.umask(0o022)
        os.umask(usual)
        problems = [_other_mode(lab.reference, usual), _other_mode(out, 0o077)]
        return "; ".join(problem for problem in problems if problem)

    yield Place(("sh", "-c", 'umask 077 && exec "$0" "$@"'), check=check)


def _other_mode(out: Path, umask: int) -> str:
    """Return which file or folder has other permissions than a plain `open` or `mkdir` would have given it."""
    for path in sorted(out.rglob("*")):
        found, wanted = path.stat().st_mode & 0o777, (0o777 if path.is_dir() else 0o666) & ~umask
        if found != wanted:
            return f"{path.relative_to(out)} has mode {found:03o} under umask {umask:03o}"
    return ""


@contextmanager
def _home_unset(lab: Lab) -> Iterator[Place]:
    yield Place(environment=plain_environment(HOME=None))


@contextmanager
def _no_temporary_folder(lab: Lab) -> Iterator[Place]:
    yield Place(environment=plain_environment(TMPDIR="/proc/nowhere"))


@contextmanager
def _lang_c(lab: Lab) -> Iterator[Place]:
    yield Place(environment=plain_environment(LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii"))


@contextmanager
def _optimized(lab: Lab) -> Iterator[Place]:
    yield Place(environment=plain_environment(PYTHONOPTIMIZE="2"))


@contextmanager
def _other_folder(lab: Lab) -> Iterator[Place]:
    folder = lab.folder / "another folder" / "deep"
    folder.mkdir(parents=True)
    yield Place(cwd=folder, relative=True)


@contextmanager
def _one_cpu(lab: Lab) -> Iterator[Place]:
    if shutil.which("taskset") is None:
        raise NotRunError("there is no taskset, of util-linux, here")
    first = str(min(os.sched_getaffinity(0)))
    yield Place(("taskset", "--cpu-list", first), plain_environment(OMP_NUM_THREADS=None), workers=None)


_PLACES: dict[str, Callable[[Lab], AbstractContextManager[Place]]] = {
    "non-root": _non_root,
    "umask-077": _umask,
    "home-unset": _home_unset,
    "tmpdir-not-writable": _no_temporary_folder,
    "lang-c": _lang_c,
    "optimize-2": _optimized,
    "other-folder": _other_folder,
    "one-cpu": _one_cpu,
}
PLACES = tuple(_PLACES)
