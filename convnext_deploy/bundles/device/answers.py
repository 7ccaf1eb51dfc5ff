"""Feed the models of a bundle, and compare their answers with the golden ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_MOST_AT_ONCE = 8
FEATURES = ("features", "feature_map")  # how the outputs of feature extractors are called


def model_inputs(pixels: np.ndarray, preprocess: dict[str, Any], takes: dict[str, Any]) -> np.ndarray:
    """Return what a model takes for `pixels (N, S, S, C)` uint8.

    Pixels with white at `takes["white"]`, or where that is None images that are normalized as `preprocess` says. Older bundles do
    not tell: what takes uint8 in them takes pixels, and nothing else does.
    """
    import numpy as np

    white = takes.get("white", 255.0 if takes["dtype"] == "uint8" else None)

    if white is None:
        mean, std = (np.array(preprocess[name], np.float32) for name in ("mean", "std"))
        images = ((pixels.astype(np.float32) / np.float32(255) - mean) / std).astype(takes["dtype"])
    else:
        images = pixels if white == 255 else pixels.astype(np.float32) / np.float32(255 / white)
        images = images.astype(takes["dtype"])
    return np.ascontiguousarray(images if takes["layout"] == "NHWC" else images.transpose(0, 3, 1, 2))


def run_in_parts(
    run: Callable[[np.ndarray], dict[str, np.ndarray]], images: np.ndarray, smallest: int, largest: int
) -> dict[str, np.ndarray]:
    """Run images through a model that takes `smallest` to `largest` at once: as few as it can, then as many as it can."""
    import numpy as np

    parts, start = [], 0
    while start < len(images):
        size = smallest if start == 0 else min(largest, _MOST_AT_ONCE if smallest <= _MOST_AT_ONCE else smallest)
        part = images[start : start + size]
        missing = max(0, smallest - len(part))
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append({name: values[: len(part)] for name, values in run(filled).items()})
        start += size
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest error of an image over the usual length of an output: both `(N, …)`, lengths Euclidean."""
    import numpy as np

    expected, found = (values.astype(np.float64).reshape(len(values), -1) for values in (expected, found))
    usual = np.sqrt((expected**2).sum(axis=1).mean()) or 1.0
    return float(np.sqrt(((found - expected) ** 2).sum(axis=1)).max() / usual)


def compare(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray], tolerance: float, multi_label: bool = False
) -> tuple[bool, str]:
    """Compare outputs by name; return whether they agree, and how well in words.

    Agreement: every float output within `tolerance` (see `relative_error`), and the same first class for every image whose first
    two scores lie so far apart that an error of `tolerance` cannot swap them; of a multi-label model the same answer, yes or no, to
    every label where such an error cannot turn it. Features have no classes.
    """
    import numpy as np

    worst, count = 0.0, len(next(iter(expected.values())))
    clear, first_classes = np.zeros(count, bool), None
    for name, golden in expected.items():
        values = found.get(name)
        if values is None or values.shape != golden.shape:
            return False, f"output '{name}' is {None if values is None else values.shape}, expected {golden.shape}"
        if golden.dtype.kind != "f":  # the classes of a top-k graph, best first
            first_classes = golden[:, 0], values[:, 0]
            continue
        if not np.isfinite(values).all():
            return False, f"output '{name}' holds numbers that are not finite"
        worst = max(worst, relative_error(golden, values))
        if name in FEATURES:
            continue
        if first_classes is None:
            first_classes = golden.argmax(axis=1), values.argmax(axis=1)
        if golden.shape[1] > 1:
            scores = np.sort(golden.astype(np.float64), axis=1)
            clear = scores[:, -1] - scores[:, -2] > 2 * tolerance * np.sqrt((scores**2).sum(axis=1).mean())
    if first_classes is None and set(expected) <= set(FEATURES):
        return worst <= tolerance, f"error {worst:.1e} of {tolerance:.1e} allowed, features of {count} images"
    if multi_label:
        return _compare_labels(expected, found, worst, tolerance)
    if first_classes is None:
        return False, "there is no output of scores"
    same = first_classes[0] == first_classes[1]
    text = f"error {worst:.1e} of {tolerance:.1e} allowed, {int(same.sum())} of {count} images in the same class"
    if (clear & ~same).any():
        return False, f"{text}; of the others {int((clear & ~same).sum())} were clear cases"
    return worst <= tolerance, text


def first_classes(found: dict[str, np.ndarray]) -> np.ndarray:
    """Return the first class of each image, `(N,)`: the first of a top-k graph's classes, or that of the largest score."""
    for values in found.values():
        if values.dtype.kind != "f":
            classes: np.ndarray = values[:, 0]
            return classes
    largest: np.ndarray = next(iter(found.values())).argmax(axis=1)
    return largest


def _compare_labels(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray], worst: float, tolerance: float
) -> tuple[bool, str]:
    import numpy as np

    name, golden = next(iter(expected.items()))
    yes = 0.5 if name == "probabilities" else 0.0
    same = (golden > yes) == (found[name] > yes)
    room = tolerance * np.sqrt((golden.astype(np.float64) ** 2).sum(axis=1).mean())
    turned = int((~same & (np.abs(golden - yes) > room)).sum())
    text = f"error {worst:.1e} of {tolerance:.1e} allowed, {int(same.sum())} of {same.size} answers to labels the same"
    if turned:
        return False, f"{text}; of the others {turned} were clear cases"
    return worst <= tolerance, text


def open_onnx(path: Path, batch: int | None, precision: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Open an ONNX file of a precision on the CPU; `batch` is its frozen batch size, if it has one.

    Returns: what maps any number of images to the outputs by name. Raises: whatever ONNX Runtime raises.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if precision.startswith("fp8"):  # before 1.32 it moves FP8 values through a Transpose, which takes none
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]

    def run(part: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {taken: part})))  # noqa: B905  (Python 3.8)

    return lambda images: run_in_parts(run, images, batch or 1, batch or _MOST_AT_ONCE)
