"""The times of hidden widths for a target: measured where its runtime is here, and by a proxy for engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.compression.probe_files import ProbeWriter
from convnext_deploy.compression.probes import measure_probes
from convnext_deploy.compression.roofline import PROXY, estimate_times, scale_times
from convnext_deploy.compression.time_model import TimeModel
from convnext_deploy.config.choices import Target
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.models.block_shapes import block_shapes
from convnext_deploy.system.load import unreliable
from convnext_deploy.system.progress import Progress

MEASURED_TARGETS: tuple[Target, ...] = ("onnxruntime", "openvino")
"""Those whose runtime is on this machine's processor; of the others engines are built elsewhere."""


@dataclass(frozen=True)
class Times:
    """The model of pruned networks, the time of the dense network as it is, and in words where both are from.

    `is_measured`: whether they are in milliseconds of the machine that is meant.
    """

    model: TimeModel
    dense_ms: float
    origin: str
    is_measured: bool


def check_runtime(target: Target) -> None:
    """Check that what is for a target can be timed here. Raises: BackendUnavailableError: if its runtime is not installed."""
    if target == "openvino":
        from convnext_deploy.runners.openvino import is_installed

        if not is_installed():
            raise BackendUnavailableError(
                "the target openvino is timed on this machine, and openvino is not installed; pip install "
                "'convnext_deploy[openvino]', or choose another --target."
            )


def times_for(
    writer: ProbeWriter,
    progress: Progress,
    cache: Path | None,
    run: Path | None = None,
    measured: Sequence[tuple[Sequence[int], float]] = (),
    *,
    keep: bool = True,
) -> Times:
    """Return how long the widths of a network take.

    Args:
        writer: of the files.
        progress: where to report.
        cache: where measured times are kept, as `run`: see `measure_probes`.
        run: likewise.
        measured: for engines, hidden widths and milliseconds of networks that were timed on a device.
        keep: whether measured times are kept for the run.

    Raises: BackendUnavailableError, ProcessFailedError: if a file cannot be run here.
    """
    form = writer.form
    shapes = block_shapes(form.spec, form.preprocess.image_size)
    if form.target in MEASURED_TARGETS:
        check_runtime(form.target)
        found = measure_probes(writer, progress, cache, run, keep=keep)
        threads = "as many threads as it likes" if found.threads is None else f"{found.threads} threads"
        origin = f"measured on {len(found.widths)} networks with {found.runner}, {threads}, on {found.machine}"
        if found.loaded is not None:
            origin += f"; {unreliable(found.loaded)}, and not kept for other runs"
        return Times(found.fit(shapes), found.times_ms[0], origin, is_measured=True)
    estimated = estimate_times(form.spec, form.preprocess.image_size)
    dense = [shape.hidden for shape in shapes]
    origin = PROXY
    if measured:
        count = len(measured)
        networks = "a network that was" if count == 1 else f"{count} networks that were"
        estimated, origin = (
            scale_times(estimated, shapes, measured),
            f"{PROXY}, scaled to {networks} timed on the device",
        )
    return Times(estimated, estimated.predict_ms(shapes, dense), origin, is_measured=bool(measured))
