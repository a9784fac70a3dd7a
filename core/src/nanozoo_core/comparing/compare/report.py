"""What a comparison found out, and report.md, which tells it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from nanozoo_core.comparing.compare import tables
from nanozoo_core.comparing.compare.curves import baselines
from nanozoo_core.comparing.compare.ranking import Group, by_optimizer, rank, warnings
from nanozoo_core.comparing.compare.rates import best
from nanozoo_core.comparing.compare.results import Entry


@dataclass(frozen=True)
class Report:
    """A comparison that has ended: its entries, and a sentence for each run that failed."""

    title: str
    command: str
    entries: list[Entry]
    failures: dict[str, str]
    notes: tuple[str, ...] = ()
    """What a reader must know beside what the entries say."""
    control: tuple[Entry, ...] = ()
    """The control at each of its budgets, from the least compute, where there is one; the compute
    multipliers are read between them."""

    @cached_property
    def groups(self) -> list[Group]:
        return rank(self.entries)

    @cached_property
    def tables(self) -> list[Group]:
        """Each group, and below it the groups of one optimiser among its entries."""
        return [table for group in self.groups for table in (group, *by_optimizer(group))]

    @property
    def trained(self) -> list[Entry]:
        """Those of the ranking, and the control at its other budgets."""
        ranked = {entry.label for entry in self.entries}
        return [*self.entries, *(entry for entry in self.control if entry.label not in ranked)]

    @property
    def ranked(self) -> list[Entry]:
        """All entries in the order of the first tables."""
        return [place.entry for group in self.groups for place in group.places]

    @cached_property
    def warnings(self) -> list[str]:
        if not self.entries:
            return []
        return [*warnings(self.entries), *unequal_training(self.entries), *self.notes]

    @property
    def method(self) -> str:
        """How the numbers were made, in words."""
        tuned = any(entry.tried for entry in self.entries)
        parts = (METHOD, TUNING if tuned else "", MULTIPLIER if self.control else "")
        return " ".join(part for part in parts if part)

    @property
    def small_tables(self) -> dict[str, list[list[str]]]:
        """Those beside the rankings that have lines, by their titles: each a head and its lines."""
        found = {
            "The control at its budgets": tables.control_table(self.control),
            "Learning rates tried": tables.rates_table(self.entries),
        }
        return {title: lines for title, lines in found.items() if lines}


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
        ("validation split", values("val_split") if _is_split(entries) else ""),
        ("written", date.today().isoformat()),
    ]
    return [row for row in rows if row[1]]


def _is_split(entries: Sequence[Entry]) -> bool:
    return any(entry.text[2] != "all" for entry in entries)


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
MULTIPLIER = (
    "The control also trained on the other budgets of its table, each with its whole schedule. A "
    "compute multiplier is the FLOPs at which the line through its scores, in logarithms, reaches "
    "the model's score, over the FLOPs of the model; > and < say that no budget of the control is "
    "as good, or as bad, and >= that the score is a bound. It holds at this size."
)
METHOD = (
    "Every model trains by its own recipe within the budget; all are scored on the same validation "
    "bytes, each byte once, in bits per byte. The interval is the 95 percent interval of the mean "
    "over seeds, from a spread pooled over the table. Ranks span what Tukey's test at 5 percent "
    "leaves open. Seconds and memory are those of this machine under whatever else it did."
)


def markdown(report: Report, *, links: bool = True) -> str:
    """The report as Markdown, with `links` from each score to the settings behind it."""
    text, code = tables.markdown_text, tables.markdown_code
    parts = [f"# {text(report.title)}", code(report.command)]
    groups = report.groups
    parts += [f"> {text(sentence)}" for sentence in report.warnings]
    columns = tables.shown_columns(groups)
    for group in report.tables:
        marks = "##" if group.optimizer is None else "###"
        parts.append(f"{marks} {text(tables.group_title(group, groups))}")
        shown = tables.columns_of(group, columns)
        parts.append(tables.markdown_table(group, shown, links=links))
    for heading, lines in report.small_tables.items():
        cells = [[text(cell) for cell in line] for line in lines]
        parts += [f"## {heading}", tables.markdown_rows(*cells)]
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
    parts += ["## How it was made", report.method]
    if groups:
        parts.append(
            "\n".join(f"- {key}: {text(value)}" for key, value in conditions(report.entries))
        )
        commands = [run.command for entry in report.entries for run in entry.runs[:1]]
        parts.append("The first seed of each:")
        parts.append(code("\n".join(commands), language="sh"))
    return "\n\n".join(parts) + "\n"
