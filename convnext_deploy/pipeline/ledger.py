"""What a run has so far: artifacts, scores and rows of the report, which is on disk after each of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import BASELINE, SOURCE, Gate, StageEntry
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.feature_score import Vectors
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.evaluation.score import Score
from convnext_deploy.evaluation.timing.front import Front
from convnext_deploy.evaluation.timing.speedup import Speed
from convnext_deploy.metrics.neighbours import compare_features
from convnext_deploy.pipeline.assumptions import Assumptions
from convnext_deploy.pipeline.comparable import check_comparable
from convnext_deploy.pipeline.run_folder import read_earlier
from convnext_deploy.pipeline.tracking import Tracking
from convnext_deploy.reports.front_table import add_latency
from convnext_deploy.reports.record import REPORT_JSON, Report
from convnext_deploy.reports.rows import Role, add_speed, create_row, keep_flips
from convnext_deploy.reports.thumbnails import make_thumbnails
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_texts


@dataclass
class Ledger:
    """The state of a run. Every change is in the report at once, and on disk where there is a folder.

    Attributes:
        report: as it stands.
        out: folder of the run; None: nothing is written.
        data: whose validation images are scored, if there is any.
        artifacts: by the names under which stages refer to them.
        baselines: name → name of the artifact that its drop is measured against: the nearest FP32 PyTorch ancestor that was not
            made to answer as another does; one that was brought without it is its own.
        scores: name → score, of what could be run.
        vectors: name → features of some images, of feature extractors that could be run.
        tracking: is told what the report has.
    """

    report: Report
    out: Path | None
    data: Data | None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    baselines: dict[str, str] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)

    def record(
        self,
        name: str,
        artifact: Artifact,
        measured: Measurement,
        gate: Gate | None = None,
        *,
        stage: StageEntry | None = None,
        baseline: str | None = None,
        for_comparison: bool = False,
        is_kept: bool = True,
    ) -> None:
        """Enter an artifact and what was measured on it.

        Args:
            name: of the stage, or `source` or `baseline`.
            artifact: what was made or brought.
            measured: by its own runner.
            gate: what it must reach; None: that of the stage, or none.
            stage: which made it; None: the user brought it.
            baseline: name of what its drop is measured against; None: found from the stage, see `baselines`.
            for_comparison: no stage of the recipe made it.
            is_kept: whether what was measured is, for the next time.

        Raises: ArtifactError: if it is not evaluated as its baseline is.
        """
        self.artifacts[name] = artifact
        parent = BASELINE if stage is None else stage.source
        follows = not artifact.is_baseline or (stage is not None and stage.config.follows_source)
        if baseline is None and follows and parent is not None:
            baseline = self.baselines.get(parent)
        self.baselines[name] = baseline or name
        if baseline in self.scores and measured.score is not None:
            check_comparable(name, artifact, baseline, self.artifacts[baseline])
        if measured.score is not None:
            self.scores[name] = measured.score
        if measured.vectors is not None:
            self.vectors[name] = measured.vectors
            if baseline is not None and baseline != name and baseline in self.vectors:
                check_comparable(name, artifact, baseline, self.artifacts[baseline])
                similarity = compare_features(measured.vectors, self.vectors[baseline])
                measured = dataclasses.replace(measured, similarity=similarity)
        kind = BASELINE if name == BASELINE else SOURCE
        role = Role(name, kind, self.baselines[name], gate or Gate(), is_kept=is_kept)
        if stage is not None:
            against = stage.gate.against or self.baselines[name]
            role = Role(name, stage.config.kind, against, stage.gate, stage.inputs, for_comparison)
        row = create_row(role, artifact, measured, self.scores, self.report.rows, self.data)
        if self.out is not None:
            keep_flips(self.out, row, self.scores, self.data)
        thumbnails = {**self.report.thumbnails, **make_thumbnails(self.data, row, self.report.thumbnails)}
        self.change(rows=(*self.report.rows, row), thumbnails=thumbnails)

    def remark(self, name: str, text: str) -> None:
        """Let the report say something of an artifact that it has."""
        rows = (
            dataclasses.replace(row, notes=(text, *row.notes)) if row.name == name else row for row in self.report.rows
        )
        self.change(rows=tuple(rows))

    def record_speed(self, stage: StageEntry, found: Speed | str) -> None:
        """Enter the verdict on the speed of a stage's artifact, or why it was not measured."""
        rows = (add_speed(row, found) if row.name == stage.name else row for row in self.report.rows)
        self.change(rows=tuple(rows))

    def record_front(self, found: Front | str) -> None:
        """Enter what has a latency goal, with the verdicts on that, or why it was not timed."""
        if isinstance(found, str):
            self.change(front_not_timed=found)
            return
        rows = (add_latency(row, point, found) if (point := found.of(row.name)) else row for row in self.report.rows)
        self.change(rows=tuple(rows), front=found)

    def change(self, **fields: object) -> None:
        """Give fields of the report other values, and write it."""
        self.report = dataclasses.replace(self.report, **fields)  # type: ignore[arg-type]  # the fields are the report's own
        if self.out is not None:
            write_report(self.report, self.out)
        self.tracking.show(self.report)


def open_ledger(
    recipe: str,
    data: Data | None,
    out: Path | None,
    *,
    seed: int = 0,
    command: str | None = None,
    source: str | None = None,
    artifacts: Mapping[str, Artifact] | None = None,
    assumptions: Assumptions | None = None,
) -> Ledger:
    """Begin a report.

    Args:
        recipe: its name.
        data: whose validation images are scored, if there is any.
        out: folder of the run; None: nothing is written.
        seed: of the recipe.
        command: what was typed or called.
        source: where the artifact that the user brought lay.
        artifacts: what stages may refer to before any has run: initial weights.
        assumptions: what the scores rest on that was neither measured nor read from a file.
    """
    known, earlier = assumptions or Assumptions(), None if out is None else read_earlier(out)
    report = Report(
        recipe=recipe,
        data="none" if data is None else data.name,
        validation_images=0 if data is None else len(data.validation),
        seed=seed,
        environment=describe_environment(),
        rows=(),
        command=command,
        source=source,
        started_in=str(Path.cwd()),
        data_options=() if data is None else data.division.told,
        class_names=() if data is None else data.class_names,
        assumptions=known.texts,
        leaks=known.leaks,
        images=known.images,
        judged_on=None if data is None else data.judged_on,
        devices=() if earlier is None else earlier.devices,  # of artifacts that were made again nothing is shown
    )
    return Ledger(report, out, data, dict(artifacts or {}))


def write_report(report: Report, out: Path) -> None:
    """Write `report.json` and its views: `report.md`, `report.html` and `model_card.md`; none if one cannot be written."""
    from convnext_deploy.reports.html.report_page import render_html
    from convnext_deploy.reports.markdown import render_markdown
    from convnext_deploy.reports.model_card import render_model_card

    texts = {  # the report comes to its place last, so that it never tells what its views do not
        REPORT_JSON: report.to_json(),
        "report.md": render_markdown(report),
        "report.html": render_html(report),
        "model_card.md": render_model_card(report),
    }
    write_texts(out, texts)
