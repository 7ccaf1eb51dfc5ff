"""The last lines of a verb, on standard error: where its results are, and the command that follows, which runs as printed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_deploy.api.uses import USES
from convnext_deploy.cli.options import flag_of, is_quiet
from convnext_deploy.config.choices import CHANGE_LIMITS
from convnext_deploy.config.preprocess import option_text
from convnext_deploy.system.distributed import launched
from convnext_deploy.system.standard_error import tell

if TYPE_CHECKING:
    from convnext_deploy.reports.record import Report, StageRow

_PROGRAM = "convnext-deploy"
_STAGES = "stages"
# of the images alone: how they are made ready travels with what this tool wrote
_IMAGES = ("data", "validation_fraction", "split", "groups", "classes", "skip_unreadable")
_SLOW_OR_WORSE = "recipes/how-to/slow-or-worse.md"


def tell_where(what: str, path: Path | str) -> None:
    """Say where a result lies."""
    _tell(f"{what}: {path}")


def tell_next(*words: Path | str | int) -> None:
    """Print the command that follows, as a shell reads it."""
    _tell(f"next: {shlex.join([_PROGRAM, *map(str, words)])}")


def tell_to_do(text: str) -> None:
    """Say what follows where that is no command."""
    _tell(f"next: {text}")


def _tell(line: str) -> None:
    if launched().is_first and not is_quiet():
        tell(line)


def conclude_run(report: Report, values: Mapping[str, Any]) -> None:
    """End a verb that made a run.

    Args:
        report: of the run.
        values: of the command, whose images count for the next one too.
    """
    from convnext_deploy.reports.to_ship import choose_to_ship  # whoever has a report has loaded it

    folder = run_folder(report)
    if folder is not None:
        tell_where("report", folder / "report.html")
    row = next((row for row in reversed(report.rows) if not row.provenance.for_comparison), None)
    if row is None:
        return
    if row.warnings:
        tell_to_do("look at the warning first; what is made of these results means as little as they do")
    elif values.get("target") == "auto":
        _follow_candidates(report, values)
    elif (choice := choose_to_ship(report)) is not None and choice.reached:
        _follow(report, [choice.path], "onnx", "int8", values)
    elif row.speed.ship is not None and choice is None:
        _follow(report, [row.speed.ship], "onnx", "fp32", values)
    elif row.verdict.passed is False:
        tell_to_do(f"the report says what failed and why; {_SLOW_OR_WORSE} says what helps")
    else:
        _follow(report, _deployed(report, row), row.identity.format, row.identity.precision, values)


def _follow_candidates(report: Report, values: Mapping[str, Any]) -> None:
    """Print how the device gets what it chooses among, and how its choice comes back; what failed its gate is left out."""
    graphs = [row for row in report.rows if row.identity.format == "onnx" and not row.provenance.for_comparison]
    for row in graphs:
        if row.verdict.passed is False:
            _tell(f"{row.name} failed its gate and is left out")
    good = [row for row in graphs if row.verdict.passed is not False]
    if not good:
        tell_to_do(f"the report says what failed and why; {_SLOW_OR_WORSE} says what helps")
        return
    _follow(report, [row.identity.artifact for row in good], "onnx", good[-1].identity.precision, values)
    tell_to_do("on the device, in the bundle: bash build_on_device.sh --choose")
    tell_next("collect", run_folder(report) or "RUN", "measured.json")


def conclude_validation(report: Report, values: Mapping[str, Any]) -> None:
    """End `validate`: what was validated is the next verb's input, with the options that it was opened with."""
    if values.get("out") is not None:
        tell_where("report", Path(values["out"]) / "report.html")
    row = report.rows[-1]
    if row.warnings:
        tell_to_do("mend what the warning names, and validate again: no step that follows can be better than this one")
    elif row.verdict.passed is False:
        tell_to_do(f"{_SLOW_OR_WORSE} says what helps against a drop")
    else:
        fields = [name for names in USES["validate"].values() for name in names]
        tell_following([values["artifact"]], row.identity.format, row.identity.precision, values, fields=fields)


def run_folder(report: Report) -> Path | None:
    """Return the folder of the run whose report it is; None where it has none, as of `validate`."""
    places = [Path(row.identity.artifact).parent for row in report.rows if row.provenance.config]
    return next((place.parent for place in reversed(places) if place.name == _STAGES), None)


def _deployed(report: Report, row: StageRow) -> list[str]:
    """Return an artifact, and for an engine before it the graph that it was built from."""
    others = {other.name: other.identity for other in report.rows}
    graph = others.get(row.provenance.inputs.get("source", "")) if row.identity.format == "tensorrt" else None
    return [*([graph.artifact] if graph is not None and graph.format == "onnx" else []), row.identity.artifact]


def _follow(report: Report, artifacts: Sequence[str], form: str, precision: str, values: Mapping[str, Any]) -> None:
    if values.get("data") is None and report.validation_images:
        values = {**values, "data": report.data}
    base = Path(artifacts[0])
    base = base.parent.parent if base.parent.name == _STAGES else base.with_suffix("")
    tell_following(artifacts, form, precision, values, base)


def tell_following(
    artifacts: Sequence[Path | str],
    form: str,
    precision: str,
    values: Mapping[str, Any],
    base: Path | None = None,
    fields: Sequence[str] = _IMAGES,
) -> None:
    """Print what comes after an artifact on the way to a device: quantize, export, bundle.

    Args:
        artifacts: of one model.
        form: format of the last one.
        precision: that of it.
        values: of the command that was given; where it names no images, FP32 is exported.
        base: what the folder of the result is named after; None: the verb's own default.
        fields: options of these values that count for the next command as well.
    """

    def out(suffix: str) -> list[str]:
        return [] if base is None else ["--out", f"{base}-{suffix}"]

    if form == "torch" and precision == "fp32" and values.get("data") is not None:
        tell_next("quantize", *artifacts, *carried("quantize", values, fields), *out("int8"))
    elif form == "torch":
        # what was judged against its FP32 ancestor is judged so again, and what passed must not fail for another limit
        gate = () if precision == "fp32" else carried("export", values, tuple(CHANGE_LIMITS), "evaluation")
        tell_next("export", *artifacts, *carried("export", values, fields), *gate, *out("onnx"))
    elif form in ("onnx", "tensorrt"):
        folder = out("bundle") or ["--out", f"{Path(artifacts[0]).stem}-bundle"]
        tell_next("bundle", *artifacts, *carried("bundle", values, fields), *folder)
    else:
        tell_next("bench", *artifacts)


def carried(
    verb: str, values: Mapping[str, Any], fields: Sequence[str] = _IMAGES, record: str = "data"
) -> Iterator[str]:
    """Yield those options of a record, as they are typed, that were given, are among `fields`, and that the next verb takes too."""
    for name in USES[verb].get(record, ()):
        value = values.get(name)
        if name not in fields or value is None:
            continue
        yield flag_of(name)
        if value is not True:
            yield option_text(name, value)
