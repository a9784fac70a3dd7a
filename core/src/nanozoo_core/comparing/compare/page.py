"""report.html: a report as one page that needs no network and no other file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

from nanozoo_core.comparing.compare import tables
from nanozoo_core.comparing.compare.curves import Point, as_rows, baselines, curve, smoothed
from nanozoo_core.comparing.compare.palette import looks
from nanozoo_core.comparing.compare.ranking import Group
from nanozoo_core.comparing.compare.report import Report, conditions
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.files import to_json


def page(report: Report) -> str:
    """The page as text."""
    groups = report.groups
    # "<" could end the script element; JSON reads the escape as the same character.
    data = to_json(_data(report), "report.html", is_compact=True).replace("<", "\\u003c")
    template = (
        files("nanozoo_core.comparing.compare").joinpath("report.html").read_text(encoding="utf-8")
    )
    fields = {
        "title": html.escape(report.title),
        "command": html.escape(report.command),
        "warnings": _list(report.warnings),
        "tables": "".join(_table(group, groups) for group in report.tables)
        + "".join(_small(title, lines) for title, lines in report.small_tables.items()),
        "failures": _failures(report.failures),
        "method": html.escape(report.method),
        "conditions": "".join(
            f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>"
            for key, value in (conditions(report.entries) if groups else [])
        ),
        "runs": "".join(_runs(entry) for entry in report.ranked),
        "data": data,
    }
    for key, value in fields.items():
        template = template.replace("{{" + key + "}}", value)
    return template


def _data(report: Report) -> dict[str, object]:
    """What the charts draw and the samples show."""
    appearance = looks(report.ranked)
    return {
        "entries": [
            {
                "label": entry.label,
                "family": entry.family,
                "colour": appearance[entry.label].colour,
                "dash": appearance[entry.label].dash,
                "inColour": appearance[entry.label].in_colour,
                "bound": entry.is_bound,
                "train": _with_means(curve(entry, "train_bpb")),
                "val": as_rows(curve(entry, "val_bpb")),
            }
            for entry in report.ranked
        ],
        "places": [
            {
                "label": place.entry.label,
                "mean": place.entry.mean,
                "half": place.half_width,
                "seeds": place.entry.bpbs,
                "bound": place.entry.is_bound,
            }
            for group in report.groups
            for place in group.places
        ],
        "baselines": baselines(report.entries) if report.groups else {},
        "samples": _samples(report.entries),
    }


def _with_means(points: Sequence[Point]) -> list[dict[str, float]]:
    rows = as_rows(points)
    for row, mean in zip(rows, smoothed(points), strict=True):
        row["mean"] = float(f"{mean:.5g}")
    return rows


def _list(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="warnings">{items}</ul>'


def _table(group: Group, groups: Sequence[Group]) -> str:
    columns = tables.columns_of(group, tables.shown_columns(groups))
    level = "h3" if group.optimizer is None else "h4"
    head = "".join(
        f'<th scope="col" title="{html.escape(column.help)}">'
        f'<button type="button">{html.escape(column.title)}</button></th>'
        for column in columns
    )
    body = ""
    for place in group.places:
        label = html.escape(place.entry.label)
        cells = ""
        for column in columns:
            key = column.key(place)
            order = "" if key is None else f' data-key="{key!r}"'
            shown = html.escape(column.show(place).replace("+-", "\u00b1").replace("<=", "\u2264"))
            if column is tables.SCORE:
                shown = f'<a href="#run-{label}">{shown}</a>'
            cells += f"<td{order}>{shown}</td>"
        body += f'<tr data-label="{label}">{cells}</tr>'
    return (
        f"<{level}>{html.escape(tables.group_title(group, groups))}</{level}>"
        f'<div class="scroll"><table class="ranking"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _small(title: str, lines: Sequence[Sequence[str]]) -> str:
    """A table that is not ranked: a head and its lines."""
    head, *rows = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
        for tag, line in zip(("th", *["td"] * (len(lines) - 1)), lines, strict=True)
    ]
    return (
        f'<h3>{html.escape(title)}</h3><div class="scroll"><table><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _failures(failures: dict[str, str]) -> str:
    if not failures:
        return ""
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
        for name, text in failures.items()
    )
    return f"<section><h2>Failed</h2><dl>{items}</dl></section>"


def _runs(entry: Entry) -> str:
    """Where each number of an entry comes from: its runs, their commands and settings."""
    rows = "".join(
        f"<tr><td>{run.seed}</td><td>{run.bpb:.4f}</td>"
        f"<td>{html.escape(str(run.folder))}</td><td><code>{html.escape(run.command)}</code></td></tr>"
        for run in entry.runs
    )
    label = html.escape(entry.label)
    return (
        f'<details id="run-{label}"><summary>{label}</summary>'
        f'<div class="scroll"><table class="runs"><thead><tr><th>seed</th><th>bits per byte</th>'
        f"<th>run</th><th>command</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="faint">The settings of the first; the others differ in their seed.</p>'
        f"<pre>{html.escape(entry.config_text)}</pre></details>"
    )


def _samples(entries: Sequence[Entry]) -> list[dict[str, object]]:
    """What each model wrote after each prompt, in its first run."""
    prompts: dict[str, dict[str, str]] = {}
    for entry in entries:
        for sample in entry.runs[0].samples:
            prompts.setdefault(repr(sample.prompt), {})[entry.label] = sample.text
    return [{"prompt": prompt, "texts": texts} for prompt, texts in prompts.items()]
