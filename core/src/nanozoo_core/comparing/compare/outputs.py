"""The files of a report: report.md, report.html, results.csv, two plots, and the settings of each
entry in configs/."""

from __future__ import annotations

from pathlib import Path

from nanozoo_core.comparing.compare.page import page
from nanozoo_core.comparing.compare.plots import write_plots
from nanozoo_core.comparing.compare.report import Report, markdown
from nanozoo_core.comparing.compare.tables import CONFIGS, results_csv
from nanozoo_core.files import write_text

FILES = ("report.md", "results.csv", "report.html", "ranking.png", "curves.png", CONFIGS)


def write_report(folder: Path, report: Report) -> None:
    """Writes all files of the report into `folder`. Raises: WriteError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", markdown(report))
    write_text(folder / "results.csv", results_csv(report.trained))
    write_text(folder / "report.html", page(report))
    (folder / CONFIGS).mkdir(exist_ok=True)
    for entry in report.entries:
        write_text(folder / CONFIGS / f"{entry.label}.yaml", entry.config_text)
    if report.entries:
        write_plots(folder, report.groups)
