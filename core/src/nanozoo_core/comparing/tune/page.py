"""report.html of a search: the tables and the pictures in one file that needs no network."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from nanozoo_core.comparing.compare import tables
from nanozoo_core.comparing.tune.report import (
    METHOD,
    SearchReport,
    effort_rows,
    outcome_rows,
    point_rows,
)

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#33302c;background:#fff}table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left}"
    "img{max-width:100%}code{background:#f4f2ee;padding:.1rem .3rem}"
    ".warning{border-left:4px solid #c60;padding-left:.8rem}.scroll{overflow-x:auto}"
)


def page(report: SearchReport, folder: Path) -> str:
    """The page. Args: folder: where the pictures lie."""
    escape = html.escape
    body = [f"<h1>{escape(report.title)}</h1>", f"<p><code>{escape(report.command)}</code></p>"]
    body += [f'<p class="warning">{escape(sentence)}</p>' for sentence in report.warnings]
    groups = report.groups
    for group in groups:
        columns = tables.shown_columns(groups)
        rows = [[c.title for c in columns], *([c.show(p) for c in columns] for p in group.places)]
        title = f"{tables.group_title(group, groups)}, test split"
        body += [f"<h2>{escape(title)}</h2>", _table(rows)]
    if report.choices:
        body += ["<h2>From the search to the test</h2>", _table(outcome_rows(report))]
    body += ["<h2>What was spent</h2>", _table(effort_rows(report))]
    for choice in report.choices:
        label = choice.candidate.label
        body.append(f"<h2>{escape(label)}</h2>")
        body.append(_table(point_rows(choice, report.importances.get(label, {}))))
        if label in report.recipes:
            command = f"train --config {report.recipes[label]}"
            body.append(f"<p>The recipe: <code>{escape(command)}</code></p>")
        body += [_picture(folder / f"{kind}-{label}.png") for kind in ("search", "effort")]
    body += ["<h2>How it was made</h2>", f"<p>{escape(METHOD)}</p>"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>'
        f"{escape(report.title)}</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}</body></html>\n"
    )


def _table(rows: list[list[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(("th", *["td"] * (len(rows) - 1)), rows, strict=True)
    ]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
