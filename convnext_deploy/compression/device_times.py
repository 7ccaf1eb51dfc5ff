"""What `collect` has brought of the networks of a run: times on a device, in the place of the proxy for engines."""

from pathlib import Path

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.variants import complete_spec
from convnext_deploy.reports.device_table import collected, row_of
from convnext_deploy.reports.record import read_report


def times_on_devices(run: Path, spec: ModelSpec) -> list[tuple[tuple[int, ...], float]]:
    """Return hidden widths and milliseconds for one image of quantized networks that a device has timed, the latest device alone.

    Args:
        run: folder; one without a report has no times.
        spec: of the dense network; others do not count.
    """
    try:
        report = read_report(run)
    except ArtifactError:
        return []
    devices, found = collected(report), []
    for engine, latency in devices[-1].timed if devices else ():
        row = row_of(engine, report.rows)
        if row is None or latency.batch_size != 1 or row.identity.quantized_type is None:
            continue
        try:
            model = read_artifact(Path(row.identity.artifact)).model
        except ArtifactError:
            continue
        if model.variant == spec.variant and model.patch_size == spec.patch_size:
            widths = tuple(width for stage in complete_spec(model).block_widths for width in stage)
            found.append((widths, latency.p50_ms))
    return found
