"""report.html of a search: the tables and the pictures in one file that needs no network."""

from __future__ import annotations

import html
from pathlib import Path

from nanozoo_core.comparing.compare import tables
from nanozoo_core.comparing.simple_page import heading, paragraph, picture, table, whole_page
from nanozoo_core.comparing.tune.report import (
    METHOD,
    SearchReport,
    effort_rows,
    outcome_rows,
    point_rows,
)


def page(report: SearchReport, folder: Path) -> str:
    """The page. Args: folder: where the pictures lie."""
    escape = html.escape
    body = [heading(report.title, 1), f"<p><code>{escape(report.command)}</code></p>"]
    body += [paragraph(sentence, is_warning=True) for sentence in report.warnings]
    groups = report.groups
    for group in groups:
        columns = tables.shown_columns(groups)
        rows = [[c.title for c in columns], *([c.show(p) for c in columns] for p in group.places)]
        title = f"{tables.group_title(group, groups)}, test split"
        body += [heading(title), table(rows)]
    if report.choices:
        body += [heading("From the search to the test"), table(outcome_rows(report))]
    body += [heading("What was spent"), table(effort_rows(report))]
    for choice in report.choices:
        label = choice.candidate.label
        body.append(heading(label))
        body.append(table(point_rows(choice, report.importances.get(label, {}))))
        if label in report.recipes:
            command = f"train --config {report.recipes[label]}"
            body.append(f"<p>The recipe: <code>{escape(command)}</code></p>")
        body += [picture(folder / f"{kind}-{label}.png") for kind in ("search", "effort")]
    body += [heading("How it was made"), paragraph(METHOD)]
    return whole_page(report.title, body)
