"""Every benchmark of this folder, one after the other, and the tables that come from them.

    python benchmarks/run_all.py [--data CIFAR10] [--teacher ATTO] [--students V1 V2] [--python-nncf P --python-modelopt Q]
    python benchmarks/run_all.py --list                 # what there is, how long it takes, what it needs, whether it is finished
    python benchmarks/run_all.py --only startup "eager*"    # or --skip, or --hours 0.5: what takes no longer, each
    python benchmarks/run_all.py --tables               # write the tables of the results that are there, and run nothing

Each runs in a process of its own with the arguments of the stored results and writes `results/NAME.json`; then the tables
between markers in the Markdown files are written anew, see `results_tables.py`. What was finished is not run
again, unless its arguments are others or with `--again`. What needs images, checkpoints or interpreters that are not given is
left out and said so. The user's own paths are written as the names of their options. Ends with code 1 if a benchmark fails or
finds a promise that does not hold.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from results_tables import RESULTS, fill

from convnext_deploy.system.files import write_text
from convnext_deploy.system.sealed_json import SEAL, seal, unseal

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("*.md", "benchmarks/*.md", "docs/*.md", "recipes/*.md", "recipes/*/*.md")  # patterns from the root
_WORK = Path("runs/benchmarks")
_OPTION = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Benchmark:
    """A result: `{NAME}` in the arguments is an option of this script; `minutes` are about those of two cores.

    `script` None: `arguments` are those of `convnext-deploy run`, and the result is the report of that run.
    """

    name: str
    script: str | None
    arguments: tuple[str, ...]
    minutes: float

    @property
    def needs(self) -> tuple[str, ...]:
        """Options without which it cannot run."""
        return tuple(dict.fromkeys(_OPTION.findall(" ".join(self.arguments))))


_PEERS = ("--python-ort", "{python_nncf}", "--python-nncf", "{python_nncf}", "--python-modelopt", "{python_modelopt}")
_TINY = ("--model", "tiny", "--image-size", "224", "--batch-size", "8", "--steps", "1", "--rounds", "9")
_FLOOR = ("matrix*", "ReLU*", "NNCF*")
_BF16 = ("--autocast", "bf16")
BENCHMARKS = (
    Benchmark("startup", "startup.py", (), 3),
    Benchmark("quickstart", None, ("recipes/quickstart.toml",), 3),
    Benchmark("loading", "loading.py", (), 6),
    Benchmark("photos", "photos.py", (), 1),
    Benchmark("start", "start.py", (), 3),
    Benchmark("eager", "eager.py", ("--rounds", "25"), 3),
    Benchmark("eager-tiny-1", "eager.py", ("--batch-size", "1"), 2),
    Benchmark("eager-v2-tiny-8", "eager.py", ("--model", "v2-tiny", "--rounds", "25"), 4),
    Benchmark("eager-atto-8", "eager.py", ("--model", "atto"), 2),
    Benchmark("training-atto-32", "training.py", (), 5),
    Benchmark("training-atto-32-bf16", "training.py", _BF16, 5),
    Benchmark("training-tiny-224", "training.py", _TINY, 5),
    Benchmark("training-tiny-224-bf16", "training.py", (*_TINY, *_BF16), 5),
    Benchmark("teacher_cache", "teacher_cache.py", ("--rounds", "8", "--images", "512"), 5),
    Benchmark("export", "export.py", (), 30),
    Benchmark(
        "latency", "latency.py", ("--python-nncf", "{python_nncf}", "--python-modelopt", "{python_modelopt}"), 90
    ),
    Benchmark("latency-ablation", "latency.py", ("--ablation",), 60),
    Benchmark("latency-floor", "latency.py", ("--ablation", "--models", "tiny", "--candidates", *_FLOOR), 10),
    Benchmark("latency-profile", "latency.py", ("--profile",), 5),
    Benchmark("width_times", "width_times.py", (), 25),
    Benchmark("evidence", "evidence.py", (), 10),
    Benchmark("faults", "faults.py", (), 40),
    Benchmark("mutants", "mutants.py", (), 30),
    Benchmark(
        "quantization_peers-tiny-224",
        "quantization_peers.py",
        (
            *("--fresh", "tiny", "--calibration-images", "256", "--control-images", "0", "--batch-size", "1"),
            *("--methods", "ort-u8s8-minmax", "ours-onnxruntime-*", "--target", "onnxruntime"),
        ),
        5,
    ),
    Benchmark(
        "quantization_peers", "quantization_peers.py", ("--checkpoint", "{teacher}", "--data", "{data}", *_PEERS), 30
    ),
    Benchmark("quantization", "quantization.py", ("--checkpoint", "{students}", "--data", "{data}"), 60),
    Benchmark("compression", "compression.py", ("--checkpoint", "{teacher}", "--data", "{data}"), 90),
    Benchmark("distillation", "distillation.py", ("--data", "{data}"), 720),
    Benchmark("cifar10", None, ("recipes/cifar10.toml", "--data", "{data}"), 120),
)


def command(benchmark: Benchmark, arguments: argparse.Namespace, out: Path) -> list[str]:
    """Return what runs a benchmark whose needs are given, with its result at `out`."""
    filled: list[str] = []
    for word in benchmark.arguments:
        found = _OPTION.fullmatch(word)
        value = getattr(arguments, found[1]) if found else word
        filled += [str(each) for each in value] if isinstance(value, list) else [str(value)]
    if benchmark.script is None:
        return [sys.executable, "-m", "convnext_deploy", "run", *filled, "--out", str(out.with_suffix(""))]
    return [sys.executable, f"benchmarks/{benchmark.script}", *filled, "--out", str(out)]


def missing(benchmark: Benchmark, arguments: argparse.Namespace) -> list[str]:
    """Return the options that it needs and that are not given."""
    return [f"--{name.replace('_', '-')}" for name in benchmark.needs if getattr(arguments, name) is None]


def is_finished(benchmark: Benchmark, arguments: argparse.Namespace) -> bool:
    """Return whether it was run to its end with these arguments."""
    state: Path = arguments.work / f"{benchmark.name}.finished"
    return state.exists() and state.read_text() == json.dumps(_words(benchmark, arguments))


def run(benchmark: Benchmark, arguments: argparse.Namespace) -> str | None:
    """Run a benchmark and store its result; return what is wrong, None if nothing is."""
    out = (arguments.work / f"{benchmark.name}.json").resolve()
    out.unlink(missing_ok=True)
    if arguments.again and out.with_suffix("").is_dir():
        shutil.rmtree(out.with_suffix(""))  # a run of stages, which would go on from what it has
    words = command(benchmark, arguments, out)
    print("+", *words, file=sys.stderr, flush=True)
    code = subprocess.run(words, cwd=ROOT).returncode
    if benchmark.script is None:
        out = out.with_suffix("") / "report.json"
        if code == 0:
            text = out.with_suffix(".md").read_text(encoding="utf-8")
            write_text(arguments.out / f"{benchmark.name}.md", anonymous(text, benchmark, arguments))
    # a benchmark that finds a promise broken has a result all the same; a run of stages that fails its gates is none to show
    if code and (benchmark.script is None or code != 1 or not out.exists()):
        return f"failed with code {code}"
    text = anonymous(out.read_text(encoding="utf-8"), benchmark, arguments)
    if SEAL in (record := json.loads(text)):  # of what the run wrote, before its paths were replaced
        unseal(json.loads(out.read_text(encoding="utf-8")))
        text = json.dumps(seal(record), indent=1) + "\n"
    write_text(arguments.out / f"{benchmark.name}.json", text)
    write_text(arguments.work / f"{benchmark.name}.finished", json.dumps(_words(benchmark, arguments)))
    return "finds a promise that does not hold" if code else None


def anonymous(text: str, benchmark: Benchmark, arguments: argparse.Namespace) -> str:
    """Return a result with the user's own paths as the names of options, its own place as `FILE.json`, and the sources as `.`."""
    out = (arguments.work / f"{benchmark.name}.json").resolve()
    names = {str(out): "FILE.json", str(out.with_suffix("")): f"runs/{benchmark.name}", sys.executable: "python"}
    names[str(ROOT)] = "."
    for option in benchmark.needs:
        value = getattr(arguments, option)
        several = value if isinstance(value, list) else [value]
        names |= {
            str(each): option.upper() + (f"_{index + 1}" if several[1:] else "") for index, each in enumerate(several)
        }
    for path in sorted(names, key=len, reverse=True):
        text = text.replace(path, names[path])
    return text


def documents() -> list[Path]:
    """Return the Markdown files that may have tables."""
    return [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]


def write_tables(results: Path, documents: Sequence[Path]) -> list[Path]:
    """Write the tables of Markdown files anew; return the files that changed."""
    changed = []
    for path in documents:
        text = path.read_text(encoding="utf-8")
        if (new := fill(text, results)) != text:
            write_text(path, new)
            changed.append(path)
    return changed


def describe(arguments: argparse.Namespace, chosen: Sequence[Benchmark]) -> str:
    """Return a line for each benchmark."""
    lines = []
    for benchmark in chosen:
        lacking = missing(benchmark, arguments)
        state = (
            f"needs {' '.join(lacking)}" if lacking else "finished" if is_finished(benchmark, arguments) else "to run"
        )
        shown = " ".join([benchmark.script or "convnext-deploy run", *benchmark.arguments])
        lines.append(f"{benchmark.name:28} {benchmark.minutes:4.0f} min  {state:12}  {shown}")
    return "\n".join(lines)


def choose(arguments: argparse.Namespace) -> list[Benchmark]:
    """Return what the options ask for."""

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return [
        benchmark
        for benchmark in BENCHMARKS
        if matches(benchmark.name, arguments.only)
        and not matches(benchmark.name, arguments.skip)
        and benchmark.minutes <= 60 * arguments.hours
    ]


def _words(benchmark: Benchmark, arguments: argparse.Namespace) -> list[str]:
    return command(benchmark, arguments, Path("FILE.json"))[1:] if not missing(benchmark, arguments) else []


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as an image folder")
    parser.add_argument("--teacher", type=Path, help="an atto with a stem of 2, trained on it for 12 epochs")
    parser.add_argument(
        "--students", type=Path, nargs="+", help="a zepto_rms and a v2-atto with stems of 4, distilled from it"
    )
    for peer in ("nncf", "modelopt"):
        parser.add_argument(
            f"--python-{peer}", type=Path, metavar="PATH", help="interpreter that has it, see quantization_peers.py"
        )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="names or patterns")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="names or patterns")
    parser.add_argument("--hours", type=float, default=float("inf"), help="leave out what takes longer")
    parser.add_argument("--again", action="store_true", help="what was finished, too")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--tables", action="store_true", help="write the tables only")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results; tables are of the usual one")
    parser.add_argument("--work", type=Path, default=_WORK, help="what was finished")
    arguments = parser.parse_args(words)
    for pattern in (*arguments.only, *arguments.skip):
        if not any(fnmatchcase(benchmark.name, pattern) for benchmark in BENCHMARKS):
            parser.error(f"no benchmark is called {pattern}; there are {', '.join(b.name for b in BENCHMARKS)}")
    for option in ("data", "teacher", "students", "python_nncf", "python_modelopt"):
        value = getattr(arguments, option)
        for path in value if isinstance(value, list) else [value]:
            if path is not None and not path.exists():
                parser.error(f"--{option.replace('_', '-')}: {path} does not exist")
    return arguments


def main() -> int:
    """Run what was asked for and write the tables."""
    arguments = parse_arguments()
    chosen = choose(arguments)
    if arguments.list:
        print(describe(arguments, chosen))
        return 0
    for option in ("data", "teacher", "python_nncf", "python_modelopt"):
        if (path := getattr(arguments, option)) is not None:  # the processes are started in the root; and no link is
            setattr(
                arguments, option, path.absolute()
            )  # followed, because that would lead out of a virtual environment
    if arguments.students is not None:
        arguments.students = [path.absolute() for path in arguments.students]
    arguments.out, arguments.work = arguments.out.absolute(), (ROOT / arguments.work).absolute()
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    for benchmark in [] if arguments.tables else chosen:
        lacking = missing(benchmark, arguments)
        if lacking:
            print(f"{benchmark.name} left out: give {' '.join(lacking)}", flush=True)
        elif is_finished(benchmark, arguments) and not arguments.again:
            print(f"{benchmark.name} finished before", flush=True)
        else:
            start = time.perf_counter()
            problem = run(benchmark, arguments)
            wrong += [] if problem is None else [benchmark.name]
            print(
                f"{benchmark.name}: {problem or 'finished'} ({(time.perf_counter() - start) / 60:.1f} min)", flush=True
            )
    for path in write_tables(arguments.out, documents() if arguments.out == RESULTS else ()):
        print(f"{path.relative_to(ROOT)}: tables written anew")
    if wrong:
        print(f"not as they should be: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
