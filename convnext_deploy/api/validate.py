"""`validate`: score an artifact, and compare it with a baseline image by image."""

from pathlib import Path

from convnext_deploy.api.open_inputs import open_artifacts, open_data_for
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, verb
from convnext_deploy.api.run_stages import create_execution
from convnext_deploy.config.choices import GateOn
from convnext_deploy.config.recipe import Gate
from convnext_deploy.data.agreement import check_classes, name_classes
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.pipeline.assumptions import find_assumptions
from convnext_deploy.pipeline.comparable import check_comparable
from convnext_deploy.pipeline.final_score import score_test
from convnext_deploy.pipeline.ledger import open_ledger
from convnext_deploy.reports.record import Report
from convnext_deploy.system.files import create_output_folder


@verb
def validate(
    artifact: Path | str,
    *,
    baseline: Path | str | None = None,
    model: str | None = None,
    gate_on: GateOn = "point",
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Report:
    """Score an artifact on the validation images, and compare it with a baseline image by image.

    Args:
        artifact: folder or file, or the name of published weights.
        baseline: artifact to compare with, of any kind; None: nothing is compared.
        model: variant that both must hold.
        gate_on: what must be within `evaluation.max_top1_drop_pp`: the drop measured, or the upper end of its 95 % interval.
        out: folder for the report; None: none is written.
        data: images; none named: the digits, for what was trained on them.
        evaluation: images per step, and how much may be lost.
        execution: how work is done.

    Raises: DeployError: if there are no images, an artifact cannot be run, or a gate is given for a drop that is not measured.
    """
    from convnext_deploy.evaluation.measure import BATCH_SIZE, measure_artifact

    if baseline is None and evaluation.max_top1_drop_pp is not None:
        raise RecipeError("--max-drop is about a drop, and there is nothing to compare with; give --baseline ARTIFACT.")
    if gate_on == "upper" and evaluation.max_top1_drop_pp is None:
        raise RecipeError("--gate-on upper needs to know how much may be lost; give --max-drop.")
    how = create_execution(execution, data.data)
    paths = {"baseline": baseline, "artifact": artifact}
    given = {name: path for name, path in paths.items() if path is not None}
    opened = dict(zip(given, open_artifacts(list(given.values()), model, data, how.progress), strict=True))
    images = open_data_for(opened["artifact"], data, how)
    if images is None:
        raise DataError("validation needs images: give the image folder with --data DIR.")
    folder = None if out is None else Path(out)
    if folder is not None:
        create_output_folder(folder)
    for name, entry in opened.items():
        check_classes(str(paths[name]), entry, images)
        opened[name] = name_classes(entry, images)
    if "baseline" in opened:
        check_comparable(str(artifact), opened["artifact"], str(baseline), opened["baseline"])
    gate = Gate(max_top1_drop_pp=evaluation.max_top1_drop_pp, on=gate_on)
    command = execution.command or "convnext_deploy.validate(…)  # called from Python"
    assumptions = find_assumptions(opened.values(), images)
    for text in assumptions.texts:
        how.progress.say(text)
    ledger = open_ledger("validate", images, folder, seed=how.seed, command=command, assumptions=assumptions)
    for name, entry in opened.items():
        measured = measure_artifact(entry, images, how, name, evaluation.batch_size or BATCH_SIZE)
        ledger.record(name, entry, measured, gate if name == "artifact" else None, baseline=next(iter(opened)))
    batch_size = evaluation.batch_size or BATCH_SIZE
    score_test(ledger, lambda name, entry, test: measure_artifact(entry, test, how, f"{name}, test", batch_size))
    ledger.change(complete=True)
    return ledger.report
