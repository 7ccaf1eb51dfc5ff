"""The report of a run on disk: `report.json` and its views."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.reports.record import REPORT_JSON, Report
from convnext_deploy.system.files import write_text


def write_report(report: Report, out: Path) -> None:
    """Write `report.json` and its views: `report.md`, `report.html` and `model_card.md`."""
    from convnext_deploy.reports.html.report_page import render_html
    from convnext_deploy.reports.markdown import render_markdown
    from convnext_deploy.reports.model_card import render_model_card

    write_text(out / REPORT_JSON, report.to_json())
    write_text(out / "report.md", render_markdown(report))
    write_text(out / "report.html", render_html(report))
    write_text(out / "model_card.md", render_model_card(report))
