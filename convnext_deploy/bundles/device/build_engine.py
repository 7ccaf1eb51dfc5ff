#!/usr/bin/env python3
"""Build an engine on the device that will run it, with TensorRT's Python bindings (10.3 to 11); build_on_device.sh uses trtexec.

    python3 build_engine.py [--model NAME | --precision NAME | --all] [--max-batch N] [BUNDLE]

Networks are strongly typed: what the ONNX file says is what runs. Needs TensorRT, a GPU and Python 3.8, nothing else.
Exit codes: 0 built, 1 not built, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

OLDEST = (10, 3)
FIRST_WITH_FP8 = 89

if not __package__:  # a program of a bundle, which loads what lies beside it, and leaves the folder as it was
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path(__file__).resolve().parent))
load_sibling: Any = importlib.import_module(
    f"{__package__}.bundle_index" if __package__ else "bundle_index"
).load_sibling


class BuildError(Exception):
    """Why there is no engine."""


def import_tensorrt() -> Any:
    """Return the bindings. Raises: BuildError: if there is no GPU, no TensorRT, or one that is too old."""
    device = load_sibling("tensorrt_device")
    try:
        device.open_driver()  # without one the Builder ends the process
        trt = device.import_bindings("tensorrt")
    except device.DeviceError as error:
        raise BuildError(f"engines are built on the GPU that runs them, with TensorRT, and here: {error}.") from None
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if version < OLDEST:
        raise BuildError(f"TensorRT {trt.__version__} is too old; 10.3 (JetPack 6.1) or newer is needed.")
    return trt


def choose_models(record: dict[str, Any], name: str | None, precision: str | None, every: bool) -> list[dict[str, Any]]:
    """Return the models to build: the named one, all, or the first, which is the smallest. Raises: BuildError: if there is none."""
    buildable = [model for model in record["models"] if model["buildable"]]
    names = ", ".join(model["name"] for model in buildable) or "none"
    buildable = [model for model in buildable if model["name"] == (name or model["name"])]
    buildable = [model for model in buildable if model["precision"] == (precision or model["precision"])]
    if not buildable:
        raise BuildError(
            f"no model '{name or precision or ''}' of this bundle can be built with TensorRT; those that can: {names}."
        )
    return buildable if every else buildable[:1]


def leave_out_fp8(models: list[dict[str, Any]], every: bool) -> list[dict[str, Any]]:
    """Return the models without those of FP8 where the GPU computes none. Raises: BuildError: if one alone was asked for."""
    if not any(model["precision"].startswith("fp8") for model in models):
        return models
    device = load_sibling("tensorrt_device")
    capability = device.GPU(device.open_driver()).capability
    if int(capability[2:]) >= FIRST_WITH_FP8:
        return models
    kept = [model for model in models if not model["precision"].startswith("fp8")]
    why = f"this GPU is {capability}, and FP8 begins with SM{FIRST_WITH_FP8}"
    for model in models:
        if model not in kept:
            if not every:
                raise BuildError(f"{model['name']} is left out: {why}; take another model.")
            say(f"note: {model['name']} is left out: {why}")
    return kept


def batch_sizes(model: dict[str, Any], optimal: int | None, maximum: int | None) -> tuple[int, int] | None:
    """Return the batch to tune for and the largest one; None where the file has one size only. Raises: BuildError."""
    frozen = model["batch"]["frozen"]
    if frozen is not None:
        if {optimal, maximum} - {None, frozen}:
            raise BuildError(
                f"{model['file']} takes batches of {frozen} and no others; leave --batch and --max-batch out."
            )
        return None
    largest = maximum or max(model["batch"]["maximum"], optimal or 1)
    best = optimal or min(model["batch"]["optimal"], largest)
    if best > largest:
        raise BuildError(f"--batch {best} is larger than --max-batch {largest}.")
    return best, largest


def build(trt: Any, path: Path, batch: tuple[int, int] | None, workspace_mib: int, level: int, cache: Path) -> bytes:
    """Return a serialized engine.

    Args:
        trt: the bindings.
        path: the ONNX file.
        batch: sizes from `batch_sizes`.
        workspace_mib: limit of the scratch memory in MiB.
        level: optimization level, 0 to 5.
        cache: file with what kernels took on this device, which makes the next build faster; it need not exist.

    Raises: BuildError: with TensorRT's own words. The bindings only log what went wrong, so every logged error counts.
    """
    device = load_sibling("tensorrt_device")
    logger = device.create_logger(trt)
    builder = trt.Builder(logger)
    # the bit of the flag moved between 10 and 11
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        lines = [" ".join(parser.get_error(index).desc().split()) for index in range(parser.num_errors)]
        raise BuildError(
            f"TensorRT {trt.__version__} cannot read {path.name}: {device.reason([*lines, *logger.errors])}"
        )
    if network.num_inputs == 0:
        raise BuildError(f"TensorRT {trt.__version__} finds no network in {path.name}.")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    config.builder_optimization_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    use_timing_cache(config, cache)
    if batch is not None:
        images, profile = network.get_input(0), builder.create_optimization_profile()
        item = tuple(images.shape)[1:]
        profile.set_shape(images.name, (1, *item), (batch[0], *item), (batch[1], *item))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"TensorRT {trt.__version__} refuses batches of 1 to {batch[1]}: {device.reason(logger.errors)}"
            )
    plan = builder.build_serialized_network(network, config)
    if plan is None or logger.errors:
        raise BuildError(f"TensorRT {trt.__version__} could not build {path.name}: {device.reason(logger.errors)}")
    write(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def use_timing_cache(config: Any, path: Path) -> None:
    """Give a build the timings of earlier ones, or none where they are of another device or version of TensorRT."""
    content = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def write(path: Path, content: bytes) -> None:
    """Write a file completely or not at all. Raises: BuildError: if it cannot be written, or no file lies there but a device."""
    if path.exists() and not path.is_file():
        raise BuildError(f"{path} is no regular file and is not overwritten; choose another folder with --out.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        free = shutil.disk_usage(path.parent).free
        raise BuildError(
            f"{path} cannot be written ({error.strerror}): it needs {len(content)} bytes, and {free} are free; make room, or "
            "choose another folder with --out."
        ) from None


def check_unaltered(bundle: Path, names: list[str]) -> None:
    """Check files of a bundle against its checksums. Raises: BuildError: if one is not what it was when the bundle was made."""
    verify = load_sibling("verify")
    try:
        known = verify.read_sums(bundle)
        altered = [n for n in names if n not in known or verify.hash_file(bundle / n) != known[n]]
    except (OSError, ValueError) as error:
        raise BuildError(f"{bundle} is not whole ({error}); copy the bundle again.") from None
    if altered:
        raise BuildError(
            f"{bundle / altered[0]} was altered: it is not what {verify.SUMS} says; copy the bundle again."
        )


def run(arguments: argparse.Namespace) -> None:
    """Build what was asked for. Raises: BuildError, OSError."""
    bundle = arguments.bundle
    verify = load_sibling("verify")
    try:
        record = verify.read_record(bundle)
    except verify.BundleError as error:
        raise BuildError(str(error)) from None
    chosen = choose_models(record, arguments.model, arguments.precision, arguments.all)
    check_unaltered(bundle, ["bundle.json", *(model["file"] for model in chosen)])
    work = [(model, batch_sizes(model, arguments.batch, arguments.max_batch)) for model in chosen]
    trt = import_tensorrt()
    able = leave_out_fp8(chosen, arguments.all)
    work = [(model, batch) for model, batch in work if model in able]
    out = bundle / "built" if arguments.out is None else arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for model, batch in work:
        say(f"building {model['name']} with TensorRT {trt.__version__}; this takes minutes")
        settings = arguments.workspace, arguments.optimization_level, out / "timing.cache"
        plan, path = build(trt, bundle / model["file"], batch, *settings), out / f"{model['name']}.plan"
        write(path, plan)
        say(f"built {path}, {len(plan)} bytes")
        placed = load_sibling("tensorrt_device").place_for_triton(bundle, path, model["triton"])
        if placed is not None:
            say(f"copied to {placed}")
            if batch is not None and batch[1] < model["batch"]["maximum"]:
                say(f"note: write max_batch_size: {batch[1]} into {placed.parent.with_name('config.pbtxt')}")
    place = "" if arguments.out is None else f" --built '{out}'"
    say(f"next: python3 '{bundle / 'verify.py'}' --require engine{place}")


def say(text: str) -> None:
    """Print a line at once, whatever the names in it."""
    print(load_sibling("bundle_index").printable(text), flush=True)


def main() -> int:
    """Return the exit code."""
    positive = load_sibling("bundle_index").positive
    parser = argparse.ArgumentParser(
        description="Build engines of a bundle with TensorRT's Python bindings, on the GPU that will run them."
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="which one (default: the smallest)")
    which.add_argument("--precision", help="the first of that precision, such as int8 or fp16")
    which.add_argument("--all", action="store_true", help="all that TensorRT can build")
    parser.add_argument("--out", type=Path, help="folder for the plans (default: built/ in the bundle)")
    parser.add_argument("--batch", type=positive, help="batch size to tune for")
    parser.add_argument("--max-batch", type=positive, help="largest batch")
    parser.add_argument("--workspace", type=positive, default=1024, help="scratch memory in MiB (default: 1024)")
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), default=3, help="0 builds fast, 5 runs fast (default: 3)"
    )
    sys.dont_write_bytecode = True  # the folder gets engines and nothing else
    try:
        run(parser.parse_args())
    except (BuildError, OSError) as error:
        print(f"error: {load_sibling('bundle_index').printable(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # not of what is loaded here either
    sys.exit(load_sibling("bundle_index").exit_code(main))
