"""report.html, report.md, results.csv and the plots of a comparison."""

from __future__ import annotations

import html
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from nanozoo_core.comparing.compare import tables
from nanozoo_core.comparing.compare.curves import as_rows, baselines, curve
from nanozoo_core.comparing.compare.plots import colours, write_plots
from nanozoo_core.comparing.compare.ranking import Group, by_optimizer, rank, warnings
from nanozoo_core.comparing.compare.rates import best
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.files import to_json, write_text

FILES = ("report.md", "results.csv", "report.html", "ranking.png", "curves.png")


@dataclass(frozen=True)
class Report:
    """A comparison that has ended: its entries, and a sentence for each run that failed."""

    title: str
    command: str
    entries: list[Entry]
    failures: dict[str, str]

    @cached_property
    def groups(self) -> list[Group]:
        return rank(self.entries)

    @cached_property
    def tables(self) -> list[Group]:
        """Each group, and below it the groups of one optimiser among its entries."""
        return [table for group in self.groups for table in (group, *by_optimizer(group))]

    @cached_property
    def warnings(self) -> list[str]:
        return [*warnings(self.entries), *unequal_training(self.entries)] if self.entries else []


def write_report(folder: Path, report: Report) -> None:
    """Writes all files of the report into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", markdown(report))
    write_text(folder / "results.csv", tables.results_csv(report.entries))
    write_text(folder / "report.html", page(report))
    if report.entries:
        write_plots(folder, report.groups, report.entries)


def conditions(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Where and with what the numbers were made."""

    def values(key: str) -> str:
        found = dict.fromkeys(str(run.result.get(key)) for e in entries for run in e.runs)
        return ", ".join(found)

    rows = [
        ("machine", values("device")),
        ("processes per run", values("num_processes")),
        ("precision", values("dtype")),
        ("torch", values("torch")),
        ("Python", platform.python_version()),
        ("commit", values("git_commit")),
        ("data", values("data_fingerprint")),
        ("validation bytes", values("val_bytes")),
        ("written", date.today().isoformat()),
    ]
    return [row for row in rows if row[1]]


def unequal_training(entries: Sequence[Entry]) -> list[str]:
    """What a reader must know of the optimisers and the learning rates."""
    found = []
    used = sorted({tables.optimizer_name(entry.optimizer) for entry in entries})
    if len(used) > 1:
        found.append(
            f"The models were trained by different optimisers, {' and '.join(used)}, each by that "
            f"of its recipe, so the first ranking is one of recipes. Those below it compare models "
            f"under one optimiser."
        )
    for entry in entries:
        if len(entry.tried) > 1 and best(entry.tried) in (min(entry.tried), max(entry.tried)):
            end = "lowest" if best(entry.tried) == min(entry.tried) else "highest"
            found.append(
                f"The best learning rate of {entry.label} is the {end} tried, so that one beyond "
                f"it may be better."
            )
    return found


TUNING = (
    "The first seed of each model tried several multiples of the learning rates of its recipe, as "
    "many for each, and the best trained the other seeds. That run of the first seed counts in the "
    "score."
)
METHOD = (
    "Every model trains by its own recipe within the budget; all are scored on the same validation "
    "bytes, each byte once, in bits per byte. The interval is the 95 percent interval of the mean "
    "over seeds, from a spread pooled over the table. Ranks span what Tukey's test at 5 percent "
    "leaves open. Seconds and memory are those of this machine under whatever else it did."
)


def markdown(report: Report) -> str:
    """The report as Markdown."""
    text, code = tables.markdown_text, tables.markdown_code
    parts = [f"# {text(report.title)}", code(report.command)]
    groups = report.groups
    parts += [f"> {text(sentence)}" for sentence in report.warnings]
    columns = tables.shown_columns(groups)
    for group in report.tables:
        marks = "##" if group.optimizer is None else "###"
        parts.append(f"{marks} {text(tables.group_title(group, groups))}")
        parts.append(tables.markdown_table(group, tables.columns_of(group, columns)))
    tuned = tables.rates_table(report.entries)
    if tuned:
        parts += ["## Learning rates tried", tables.markdown_rows(*tuned)]
    if groups:
        found = baselines(report.entries)
        if found:
            names = ", ".join(f"{text(name)} {bpb:.3f}" for name, bpb in found.items())
            parts.append(f"The same bytes compressed: {names}.")
        parts += ["![Scores](ranking.png)", "![Scores along training](curves.png)"]
    if report.failures:
        parts.append("## Failed")
        parts.append(
            "\n".join(f"- {text(name)}: {text(why)}" for name, why in report.failures.items())
        )
    parts += ["## How it was made", METHOD, *([TUNING] if tuned else [])]
    if groups:
        parts.append(
            "\n".join(f"- {key}: {text(value)}" for key, value in conditions(report.entries))
        )
        commands = [run.command for entry in report.entries for run in entry.runs[:1]]
        parts.append("The first seed of each:")
        parts.append(code("\n".join(commands), language="sh"))
    return "\n\n".join(parts) + "\n"


def page(report: Report) -> str:
    """The report as one HTML file that needs nothing else."""
    groups = report.groups
    tuned = tables.rates_table(report.entries)
    paint = colours(len(report.entries))
    data = {
        "entries": [
            {
                "label": entry.label,
                "colour": colour,
                "bound": entry.is_bound,
                "train": as_rows(curve(entry, "train_bpb")),
                "val": as_rows(curve(entry, "val_bpb")),
            }
            for entry, colour in zip(report.entries, paint, strict=True)
        ],
        "places": [
            {
                "label": place.entry.label,
                "mean": place.entry.mean,
                "half": place.half_width,
                "seeds": place.entry.bpbs,
                "bound": place.entry.is_bound,
            }
            for group in groups
            for place in group.places
        ],
        "baselines": baselines(report.entries) if groups else {},
        "samples": _samples(report.entries),
    }
    # "<" could end the script element; JSON reads the escape as the same character.
    text = to_json(data, "report.html", is_compact=True).replace("<", "\\u003c")
    template = (
        files("nanozoo_core.comparing.compare").joinpath("report.html").read_text(encoding="utf-8")
    )
    fields = {
        "title": html.escape(report.title),
        "command": html.escape(report.command),
        "warnings": _list(report.warnings),
        "tables": "".join(_table(group, groups) for group in report.tables) + _rates(tuned),
        "failures": _failures(report.failures),
        "method": html.escape(f"{METHOD} {TUNING}" if tuned else METHOD),
        "conditions": "".join(
            f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>"
            for key, value in (conditions(report.entries) if groups else [])
        ),
        "commands": "\n".join(
            html.escape(run.command) for entry in report.entries for run in entry.runs
        ),
        "data": text,
    }
    for key, value in fields.items():
        template = template.replace("{{" + key + "}}", value)
    return template


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
        cells = ""
        for column in columns:
            key = column.key(place)
            order = "" if key is None else f' data-key="{key!r}"'
            cells += f"<td{order}>{html.escape(column.show(place))}</td>"
        body += f'<tr data-label="{html.escape(place.entry.label)}">{cells}</tr>'
    return (
        f"<{level}>{html.escape(tables.group_title(group, groups))}</{level}>"
        f'<div class="scroll"><table class="ranking"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _rates(lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    head, *rows = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
        for tag, line in zip(("th", *["td"] * (len(lines) - 1)), lines, strict=True)
    ]
    return (
        f'<h3>Learning rates tried</h3><div class="scroll"><table><thead>{head}</thead>'
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


def _samples(entries: Sequence[Entry]) -> list[dict[str, object]]:
    """What each model wrote after each prompt, in its first run."""
    prompts: dict[str, dict[str, str]] = {}
    for entry in entries:
        for sample in entry.runs[0].samples:
            prompts.setdefault(repr(sample.prompt), {})[entry.label] = sample.text
    return [{"prompt": prompt, "texts": texts} for prompt, texts in prompts.items()]
