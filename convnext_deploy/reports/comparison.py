"""Compare runs: their artifacts side by side, what differs between them, and which figures cannot be compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from convnext_deploy.artifacts.preprocessing import assumed_fields
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.image_size import show_size
from convnext_deploy.reports.record import Report, StageRow
from convnext_deploy.reports.stage_table import metric_name, verdict, warnings
from convnext_deploy.system.results import Result

SCHEMA = 1
_ABSENT = "–"
_OF_A_RUN = ("recipe", "data", "validation_images", "seed", "complete", "passed", "command", "environment")


@dataclass(frozen=True)
class Run:
    """A run: a short name that no other has, its folder, and its report."""

    name: str
    path: Path
    report: Report


@dataclass(frozen=True)
class Difference:
    """A setting or circumstance that is not the same everywhere: its value in each run, in their order."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Runs in the order given. `warnings` say why figures cannot be compared, `notes` what else to know."""

    runs: tuple[Run, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[tuple[Run, StageRow]]:
        """All artifacts of all runs, in order."""
        return [(run, row) for run in self.runs for row in run.report.rows]

    def headline(self) -> str:
        """Say which runs they are, and how much differs between them."""
        return f"{', '.join(run.name for run in self.runs)}; {len(self.differences)} differences in how they were made"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each artifact of each run."""
        return [{"run": run.name, **_figures(row)} for run, row in self.rows]

    def to_json(self) -> str:
        """Return the record as JSON; accuracies are fractions, drops percentage points."""
        content = {
            "schema": SCHEMA,
            "runs": [
                {"run": run.name, "path": str(run.path), **{key: getattr(run.report, key) for key in _OF_A_RUN}}
                for run in self.runs
            ],
            "artifacts": self.to_rows(),
            "differences": [
                {"what": each.what, "values": dict(zip((run.name for run in self.runs), each.values, strict=True))}
                for each in self.differences
            ],
            "warnings": self.warnings,
            "notes": self.notes,
        }
        return json.dumps(content, indent=1)


def compare_runs(runs: tuple[Run, ...]) -> Comparison:
    """Put runs side by side, and find what differs between them."""
    return Comparison(runs, tuple(_differences(runs)), tuple(_warnings(runs)), tuple(_notes(runs)))


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of different paths, as many as it takes to tell them apart."""
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _figures(row: StageRow) -> dict[str, Any]:
    return {**row.figures(), "verdict": verdict(row)}


def _warnings(runs: Sequence[Run]) -> Iterator[str]:
    what = _scored(runs)
    data = {run.name: (PurePath(run.report.data).name, run.report.validation_images) for run in runs if run.report.rows}
    classes = {run.report.class_names for run in runs if run.report.class_names}
    named = "; ".join(f"{run}: '{name}', {count:,} images" for run, (name, count) in data.items())
    scored = {run.name: _scored([run]) for run in runs if run.report.rows}
    if len(set(scored.values())) > 1:
        named_by = "; ".join(f"{run}: {names}" for run, names in scored.items())
        yield f"the runs are scored by different things and cannot be compared ({named_by})"
    judged_on = {run.report.judged_on for run in runs if run.report.rows and run.report.judged_on is not None}
    if len({count for _, count in data.values()}) > 1 or len(classes) > 1:
        other = "" if len(classes) <= 1 else ", and the classes differ"
        yield f"{what} was measured on different images and cannot be compared ({named}{other})"
    elif len(set(data.values())) > 1:
        yield f"{what} was measured on data of different names, and can be compared only if it is the same ({named})"
    elif len(judged_on) > 1:
        yield (
            f"{what} was measured on images of different names or sizes, and can be compared only if they are the same ({named})"
        )
    text, is_assumed = _other_images(runs)
    if text is not None and is_assumed:
        yield f"{text}; some of it is only assumed of a file, so that differences in {what} may come from that alone"
    for run in runs:
        for text in warnings(run.report):
            yield f"{run.name}: {text}"
    machines = {run.name: _machine(run.report) for run in runs if any(row.speed.latency for row in run.report.rows)}
    if len(set(machines.values())) > 1:
        named = "; ".join(f"{run}: {machine}" for run, machine in machines.items())
        yield f"latency was measured on different machines and cannot be compared ({named})"
    loaded = {
        run.name: latency.loaded
        for run in runs
        for row in run.report.rows
        if (latency := row.speed.latency) is not None and latency.loaded is not None
    }
    if loaded:
        named = "; ".join(f"{run}: {load}" for run, load in loaded.items())
        yield f"latency was measured on a machine that did other work, and is not to be relied on ({named})"


def _scored(runs: Sequence[Run]) -> str:
    return metric_name([row for run in runs for row in run.report.rows])


def _other_images(runs: Sequence[Run]) -> tuple[str | None, bool]:
    """Say how networks of several runs are shown other images, None if they are not; and whether any of it is only assumed.

    Mean and std belong to a network, and count where they are assumed.
    """
    shown: dict[str, str] = {}
    assumed = False
    for run in runs:
        known = [row.provenance.preprocess for row in run.report.rows if row.accuracy is not None]
        own = [preprocess for preprocess in known if preprocess is not None]
        if own:
            shown[run.name] = "; ".join(dict.fromkeys(map(_describe, own)))
            assumed = assumed or any(map(assumed_fields, own))
    if len(set(shown.values())) < 2:
        return None, False
    return f"the networks are shown other images ({' | '.join(f'{run}: {how}' for run, how in shown.items())})", assumed


def _describe(own: Preprocess) -> str:
    text = f"{show_size(own.image_size)} pixels, {own.crop_mode} crop {own.crop_pct:.3g}, {own.interpolation}"
    if {"mean", "std"} & {*assumed_fields(own)}:
        text += f", mean {_numbers(own.mean)} and std {_numbers(own.std)} assumed"
    return text


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:.3g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    text, is_assumed = _other_images(runs)
    if text is not None and not is_assumed:
        yield f"{text}: {_scored(runs)} and latency are those of each with its own"
    for run in runs:
        if not run.report.complete:
            count = len(run.report.rows)
            yield f"{run.name} is not complete: {count} artifact{'' if count == 1 else 's'} so far"
    assumed: dict[str, list[str]] = {}
    for run in runs:
        for text in run.report.assumptions:
            assumed.setdefault(text, []).append(run.name)
    for text, names in assumed.items():
        yield f"{', '.join(names)}: assumed: {text}"
    unknown = [
        run.name for run in runs if run.report.rows and not any(row.provenance.config for row in run.report.rows)
    ]
    if unknown:
        yield f"the settings of {', '.join(unknown)} are not known: the report was written by an earlier version"


def _machine(report: Report) -> str:
    devices = sorted({row.accuracy.device for row in report.rows if row.accuracy})
    known = report.environment
    parts = [
        f"{known.get('cores', '?')} cores",
        *(known[name] for name in ("threads", "variables", "gpus") if name in known),
    ]
    return ", ".join([known.get("cpu", "unknown"), *parts, "/".join(devices)])


def _differences(runs: Sequence[Run]) -> Iterator[Difference]:
    """Yield what is not the same in all runs: first of the whole run, then stage by stage."""
    wholes = [_whole(run.report) for run in runs]
    stages = [{row.name: _flatten(_stage(row)) for row in run.report.rows if row.provenance.config} for run in runs]
    yield from _unequal(wholes, "")
    for name in dict.fromkeys(name for known in stages for name in known):
        having = [known.get(name) for known in stages]
        # a stage that one run alone has is named among the stages already
        if sum(settings is not None for settings in having) > 1:
            yield from _unequal(having, f"{name}: ")


def _unequal(tables: Sequence[Mapping[str, str] | None], prefix: str) -> Iterator[Difference]:
    for key in dict.fromkeys(key for table in tables for key in table or ()):
        values = tuple((table or {}).get(key, _ABSENT) for table in tables)
        if len({value for value, table in zip(values, tables, strict=True) if table is not None}) > 1:
            yield Difference(prefix + key, values)


def _whole(report: Report) -> dict[str, str]:
    known = dict(report.environment)
    versions = known.pop("versions", {})
    return _flatten(
        {
            "recipe": report.recipe,
            "data": report.data,
            "validation images": report.validation_images,
            "seed": report.seed,
            "source": report.source,
            "source preprocess": report.source_preprocess.asked(),
            "stages": ", ".join(row.name for row in report.rows),
            **known,
            **(versions if isinstance(versions, Mapping) else {}),
        }
    )


def _stage(row: StageRow) -> dict[str, Any]:
    made = row.provenance
    return {"kind": row.identity.kind, **made.inputs, "gate": asdict(made.gate), **made.config}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found
