"""`model_card.md`: what the run made, for people who want to use it, in the format of Hugging Face's hub."""

import shlex
from collections.abc import Iterator
from pathlib import PurePath

from convnext_deploy.errors import printable
from convnext_deploy.evaluation.metric import METRICS
from convnext_deploy.evaluation.timing.speedup import describe_speed
from convnext_deploy.reports.commands import NO_DATA, data_words
from convnext_deploy.reports.device_table import DEVICE_COLUMNS, DEVICES_TITLE, collected, describe_device, device_cells
from convnext_deploy.reports.escaping import clean, code, fenced, markdown
from convnext_deploy.reports.front_matter import base_model, known_license, write_front_matter
from convnext_deploy.reports.label_table import LABEL_COLUMNS, describe_labels, label_cells, labelled_rows
from convnext_deploy.reports.phrases import describe_step, preprocessing_steps
from convnext_deploy.reports.quality_table import QUALITY_COLUMNS, quality_rows
from convnext_deploy.reports.record import Report, StageRow
from convnext_deploy.reports.stage_table import SCORE, describe_test, drop_text, metric_name, verdict, warnings
from convnext_deploy.reports.to_ship import choose_to_ship, offered
from convnext_deploy.reports.usage_code import write_usage
from convnext_deploy.system.load import unreliable

_MOST_CLASSES = 20  # named on the card
_COLUMNS = ("artifact", "format", "precision", SCORE, "top-5 %", "drop pp [95 %]", "MB", "p50 ms", "p90 ms", "verdict")


def render_model_card(report: Report) -> str:
    """Return the text of `model_card.md`."""
    name = printable(report.recipe)
    shipped = shipped_row(report)
    sections = [
        write_front_matter(report, name),
        f"# {markdown(name)}",
        _description(report, shipped),
        "## Intended use and limits",
        "\n".join(f"- {text}" for text in _limits(report)),
        "## How to use",
        *_usage(report, shipped),
    ]
    if shipped is not None and (preprocess := shipped.provenance.preprocess) is not None:
        steps = "\n".join(f"{place}. {step}" for place, step in enumerate(preprocessing_steps(preprocess), 1))
        sections += ["## Preprocessing", steps]
        if (graph := shipped.provenance.graph) is not None and graph.white is not None:
            taken = (
                "as they are, 0 to 255, and does the last step" if graph.white == 255 else "over 255, and does the rest"
            )
            sections.append(f"The graph of {code(shipped.name)} takes pixels {taken} itself.")
    sections += ["## How it was made", *_lineage(report)]
    if report.rows:
        sections += ["## Evaluation", *_evaluation(report)]
    versions = report.environment.get("versions", {})
    sections += [
        "## Environment",
        f"Measured on {markdown(str(report.environment.get('cpu', 'an unknown machine')))}, {report.environment.get('cores', '?')} "
        f"cores. {', '.join(f'{package} {version}' for package, version in versions.items())}.",
    ]
    return clean("\n\n".join(sections) + "\n")


def shipped_row(report: Report) -> StageRow | None:
    """Return the artifact that the card is about: the fastest ONNX file that failed no gate, otherwise the last artifact.

    What was timed while the machine did other work is not the fastest. Where something was to replace another artifact, it is what
    the report says to ship.
    """
    if (choice := choose_to_ship(report)) is not None:
        return next((row for row in report.rows if row.name == choice.name), None)
    fine = offered(report)
    graphs = [row for row in fine if row.identity.format == "onnx"]
    timed = [
        (latency.p50_ms, place)
        for place, row in enumerate(graphs)
        if (latency := row.speed.latency) is not None and latency.loaded is None
    ]
    if timed:
        return graphs[min(timed)[1]]
    chosen = graphs or fine or report.rows
    return chosen[-1] if chosen else None


def _description(report: Report, shipped: StageRow | None) -> str:
    if shipped is None:
        return "The run has no artifact yet."
    own, accuracy, latency = shipped.identity, shipped.accuracy, shipped.speed.latency
    classes = own.num_classes or len(report.class_names)
    kind = METRICS["mAP"].made_of if own.multi_label else "an image classifier"
    if shipped.features is not None:
        text = f"A feature extractor, {markdown(own.variant)}, which {markdown(shipped.features.gives)}"
        if (similarity := shipped.features.similarity) is not None:
            text += f"; {markdown(similarity.describe())} in FP32"
    else:
        text = f"{kind[0].upper()}{kind[1:]}, {own.variant}" + (f", for {classes:,} classes" if classes else "")
    names = [] if shipped.features is not None else [markdown(name) for name in report.class_names]
    if names and len(names) <= _MOST_CLASSES:
        text += f": {', '.join(names)}"
    text += "."
    if accuracy is not None:
        text += (
            f" The artifact to take is {code(shipped.name)} ({own.format}, {own.precision}): "
            f"{accuracy.metric} {100 * accuracy.value:.2f} % on {accuracy.total:,} validation images, {report.images}; "
            f"{own.size_bytes / 1e6:.1f} MB"
        )
        is_known = latency is not None and latency.loaded is None
        text += f", {latency.p50_ms:.2f} ms per image on the machine below." if latency and is_known else "."
    if not report.complete:
        text += " **The run is not complete.**"
    if not report.passed:
        failed = ", ".join(f"{code(row.name)}" for row in report.rows if row.verdict.passed is False)
        text += f" **Failed gates: {failed}; do not ship these.**"
    unproven = ", ".join(
        f"{code(row.name)}" for row in report.rows if row.verdict.passed and row.verdict.proven is False
    )
    if unproven:
        text += f" **Passed unproven: {unproven}.**"
    for warning in warnings(report):
        text += f"\n\n**Warning.** {markdown(warning)}."
    return text


def _limits(report: Report) -> Iterator[str]:
    answers = "It names one of them for any image."
    if any(row.identity.multi_label for row in report.rows):
        answers = (
            "It answers each by itself, as a sigmoid of its logit: an image may have any number of them, and none."
        )
    if any(row.features is not None for row in report.rows):
        yield "For images like those it was trained on; it tells no classes, and features of other artifacts are other features."
    else:
        yield f"For images of the classes above, taken like those it was trained on. {answers}"
    if report.validation_images:
        yield (
            f"Accuracy is that on {report.validation_images:,} images of '{markdown(PurePath(report.data).name)}', "
            f"{report.images}; other images may give another."
        )
    if report.test is not None:
        yield f"Accuracy {markdown(describe_test(report.test))}."
    for text in report.assumptions:
        yield f"Assumed: {markdown(text)}."
    yield "Latency is that of the machine below, one image at a time. On other machines the order may be another: measure there."
    simulated = dict.fromkeys(row.identity.quantized_type for row in report.rows if row.is_simulated)
    for kind in simulated:
        yield (
            f"{kind} artifacts in PyTorch's format simulate {kind} in FP32: they are for training on and for export, not for "
            "serving."
        )
    if any(row.identity.format == "tensorrt" for row in report.rows):
        yield "Engines run with the TensorRT version and on the GPUs that they were built for."
    license_ = known_license(report)
    unknown = "not recorded; that of the weights and images it was trained from holds"
    yield f"License: {markdown(license_) if license_ else unknown}."


def _place(row: StageRow) -> str:
    """Return the folder of an artifact, from the run's folder where it lies in there."""
    path = PurePath(row.identity.artifact)
    return f"stages/{path.name}" if path.parent.name == "stages" else path.as_posix()


def _run_of(row: StageRow) -> str | None:
    """Return the folder of the run that made an artifact, which its card lies in; None of an artifact that was brought."""
    path = PurePath(row.identity.artifact)
    return path.parent.parent.as_posix() if path.parent.name == "stages" else None


def _usage(report: Report, shipped: StageRow | None) -> Iterator[str]:
    if shipped is None:
        return
    own, preprocess = shipped.identity, shipped.provenance.preprocess
    place, run = _place(shipped), _run_of(shipped)
    commands = [shlex.join(["convnext-deploy", "predict", place, "image.jpg"])]
    if report.data != NO_DATA:
        commands.append(shlex.join(["convnext-deploy", "validate", place, *data_words(report, run)]))
    where = "that the run was started in" if run is None else "that this card lies in"
    yield f"From the folder {where}:\n\n" + fenced("\n".join(commands), "sh")
    if own.format == "onnx" and own.file is not None and preprocess is not None:
        folder = _place(shipped).removesuffix(f"/{own.file}")  # of a bare file
        usage = write_usage(
            folder, own.file, preprocess, shipped.provenance.graph, precision=own.precision, multi_label=own.multi_label
        )
        yield f"With ONNX Runtime alone:\n\n{fenced(usage, 'python')}"


def _loaded(report: Report) -> str:
    """Say which times were measured while the machine did other work; empty where none were."""
    found = [(row.name, row.speed.latency.loaded) for row in report.rows if row.speed.latency is not None]
    words = [f"{name}: {loaded}" for name, loaded in found if loaded is not None]
    return f" The machine did other work then, and times are not to be relied on: {'; '.join(words)}." if words else ""


def _lineage(report: Report) -> Iterator[str]:
    lines = []
    if (base := base_model(report)) is not None:
        lines.append(f"- It began with the published weights {code(base)}.")
    for row in report.rows:
        steps = "; ".join(markdown(describe_step(step)) for step in row.provenance.lineage)
        lines.append(f"- {code(row.name)}: {steps or 'not recorded'}.")
    if lines:
        yield "\n".join(lines)
    if report.command:
        yield fenced(report.command, "sh")
    yield "`report.html` has the settings of every stage, training curves, and what became of each layer, class and image."


def _evaluation(report: Report) -> Iterator[str]:
    titles = tuple(f"{metric_name(report.rows)} %" if title == SCORE else title for title in _COLUMNS)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(_COLUMNS)]
    for row in report.rows:
        numbers = (
            "–" if row.accuracy is None else f"{100 * row.accuracy.value:.2f}",
            "–" if row.accuracy is None or row.accuracy.top5 is None else f"{100 * row.accuracy.top5:.2f}",
            drop_text(row),
            f"{row.identity.size_bytes / 1e6:.1f}",
            "–" if row.speed.latency is None else f"{row.speed.latency.p50_ms:.2f}",
            "–" if row.speed.latency is None else f"{row.speed.latency.p90_ms:.2f}",
        )
        lines.append(
            f"| {code(row.name)} | {row.identity.format} | {row.identity.precision} | {' | '.join(numbers)} | "
            f"{markdown(verdict(row))} |"
        )
    yield "\n".join(lines)
    yield (
        "Drops are against the nearest FP32 PyTorch ancestor on the same images, with the 95 % interval of the paired predictions; "
        "a positive one is a loss. Latency is of single images." + _loaded(report)
    )
    for row, found in labelled_rows(report)[:1]:
        lines = [f"{code(row.name)}: {describe_labels(found)}. Label by label:", ""]
        lines += ["| " + " | ".join(LABEL_COLUMNS[:4]) + " |", "|" + "---|" * 4]
        lines += [f"| {' | '.join(map(markdown, texts[:4]))} |" for texts in label_cells(found, report.class_names)]
        yield "\n".join(lines)
    if quality := quality_rows(report.rows):
        titles, lines = ("artifact", *QUALITY_COLUMNS[1:]), []
        for texts in quality:
            lines.append(f"| {code(texts[0])} | {' | '.join(map(markdown, texts[1:]))} |")
        yield "\n".join(["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *lines])
        yield (
            "ECE: expected calibration error (arXiv 1706.04599), the gap between how sure an artifact is and how often it is "
            "right; rises are against the same ancestor. The interval of the worst class holds for all classes at once."
        )
    speeds = [
        f"- {code(row.name)} is {line}."
        for row in report.rows
        if row.speed.against_float is not None
        for line in map(markdown, describe_speed(row.speed.against_float))
    ]
    loaded = [row.speed.against_float.loaded for row in report.rows if row.speed.against_float is not None]
    speeds += [f"- {unreliable(words)}." for words in dict.fromkeys(loaded) if words is not None]
    if speeds:
        yield "\n".join(["Beside its float baseline, on the runtime that it is for:", "", *speeds])
    for run in collected(report):
        yield f"{DEVICES_TITLE}, {markdown(describe_device(run))}:"
        lines = ["| " + " | ".join(DEVICE_COLUMNS) + " |", "|" + "---|" * len(DEVICE_COLUMNS)]
        lines += [f"| {' | '.join(map(markdown, texts))} |" for texts in device_cells(run, report.rows)]
        yield "\n".join(lines)
