"""report.md of a search: what was found, what it cost, and how far it is to be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanozoo_core.comparing.compare import tables
from nanozoo_core.comparing.compare.ranking import Group, rank
from nanozoo_core.comparing.tune.candidates import Candidate
from nanozoo_core.comparing.tune.confirm import Choice
from nanozoo_core.comparing.tune.effort import agreement
from nanozoo_core.comparing.tune.study import Told
from nanozoo_core.comparing.units import scaled

UNSAFE_BELOW = 0.5  # of Kendall's tau
METHOD = (
    "Every model had the same number of trials, the same seeds and the same budget for each. The "
    "first trial is the committed recipe, so that a search cannot end below it. The best three by "
    "their score in the search trained again with two fresh seeds; the best mean of those chose. "
    "Only the scores on the test split, with further seeds, are to be compared: the lowest score "
    "of a search is too low, since it was chosen for being low. A model with more keys of its own "
    "searches a larger space with as many trials. Effort that went by hand into a committed "
    "recipe stands in no table."
)


@dataclass(frozen=True)
class Audit:
    """Trials that were ended early, trained to their end all the same: the score at the last check
    and at the end of all trials that have both, by number."""

    last_check: dict[int, float]
    final: dict[int, float]
    audited: tuple[int, ...]
    spent: dict[str, float] = field(default_factory=dict)
    """Tokens, FLOPs and seconds that this took beyond where they had ended."""

    @property
    def tau(self) -> float:
        numbers = sorted(self.final)
        return agreement([self.last_check[n] for n in numbers], [self.final[n] for n in numbers])

    @property
    def is_unsafe(self) -> bool:
        """Whether the checks told too little of the end."""
        top = sorted(self.final, key=lambda number: self.final[number])[:3]
        return self.tau < UNSAFE_BELOW or any(number in top for number in self.audited)


@dataclass(frozen=True)
class SearchReport:
    """All that a search of several models found out."""

    title: str
    command: str
    candidates: Sequence[Candidate]
    told: dict[str, list[Told]]
    choices: Sequence[Choice]
    failures: dict[str, str]
    recipes: dict[str, Path]
    importances: dict[str, dict[str, float]]
    audits: dict[str, Audit] = field(default_factory=dict)
    threads: int = 1
    """Of each training."""

    @property
    def groups(self) -> list[Group]:
        """The scores on the test split, ranked."""
        entries = []
        for choice in self.choices:
            entries.append(choice.tuned)
            if choice.number:
                entries.append(choice.committed)
        return rank(entries)

    @property
    def warnings(self) -> list[str]:
        found = [f"{label}: {why}." for label, why in self.failures.items()]
        for choice in self.choices:
            edges = choice.candidate.space.edges(choice.point)
            if edges:
                names = ", ".join(edges)
                found.append(
                    f"The choice of {choice.candidate.label} is at the edge of what was tried "
                    f"({names}): a better value may lie beyond. Widen the range for all models "
                    f"alike, as in tune.ranges.{edges[0]}.high=..., in another folder."
                )
        for candidate in self.candidates:
            if candidate.note:
                found.append(f"No run of {candidate.label} could end early: {candidate.note}.")
        for label, audit in self.audits.items():
            if audit.is_unsafe:
                found.append(
                    f"Pruning was unsafe for {label}: the order at the last check and at the end "
                    f"agree by Kendall's tau {audit.tau:.2f}, or a run that was ended early would "
                    f"have been among the best. Search again with prune=off in another folder."
                )
        return found


def effort_rows(report: SearchReport) -> list[list[str]]:
    """What each search spent: a head, and a line for each model."""
    rows = [
        [
            *("model", "trials", "ended early", "diverged", "refused", "trial-equivalents"),
            *("FLOPs", "core-hours", "dimensions", "own keys", "best trial"),
        ]
    ]
    for candidate in report.candidates:
        told = report.told[candidate.label]
        states = [one.outcome.state for one in told]
        best = min(told, key=lambda one: (one.score, one.number))
        used = spent(told, report.audits.get(candidate.label))
        rows.append(
            [
                candidate.label,
                str(len(told)),
                *(str(states.count(state)) for state in ("pruned", "diverged", "refused")),
                f"{used['tokens'] / candidate.tokens:.1f}",
                scaled(used["flops"]),
                f"{used['seconds'] * report.threads / 3600:.3g}",
                str(len(candidate.space.dimensions)),
                str(len(candidate.space.own)),
                str(best.number),
            ]
        )
    return rows


def spent(told: Sequence[Told], audit: Audit | None) -> dict[str, float]:
    """Tokens, FLOPs and seconds of all trials, whatever became of them, and of the audit."""
    further = audit.spent if audit is not None else {}
    return {
        key: sum(getattr(one.outcome, key) for one in told) + further.get(key, 0.0)
        for key in ("tokens", "flops", "seconds")
    }


def outcome_rows(report: SearchReport) -> list[list[str]]:
    """The scores along the way: a head, and a line for each model."""
    rows = [
        [
            *("model", "chosen trial", "lowest of the search", "fresh seeds"),
            *("test", "committed on test", "gain"),
        ]
    ]
    for choice in report.choices:
        lowest = min(one.score for one in choice.told)
        rows.append(
            [
                choice.candidate.label,
                str(choice.number),
                f"{lowest:.4f}",
                f"{statistics.mean(choice.fresh[choice.number]):.4f}",
                f"{choice.tuned.mean:.4f}",
                f"{choice.committed.mean:.4f}",
                f"{choice.gain:+.4f}",
            ]
        )
    return rows


def point_rows(choice: Choice, importances: dict[str, float]) -> list[list[str]]:
    """What was searched of a model, and what was chosen: a head, and a line for each dimension."""
    rows = [["key", "tried", "committed", "chosen", "importance"]]
    for d in choice.candidate.space.dimensions:
        share = importances.get(d.name)
        rows.append(
            [
                f"{d.name} (own)" if d.is_own else d.name,
                d.range,
                d.show(d.default),
                d.show(choice.point[d.name])
                + (" (edge)" if d.is_at_edge(choice.point[d.name]) else ""),
                "" if share is None else f"{share:.2f}",
            ]
        )
    return rows


def markdown(report: SearchReport) -> str:
    """The report as Markdown."""
    text, code = tables.markdown_text, tables.markdown_code

    def table(rows: list[list[str]]) -> str:
        return tables.markdown_rows(*[[text(cell) for cell in row] for row in rows])

    parts = [f"# {text(report.title)}", code(report.command)]
    parts += [f"> {text(sentence)}" for sentence in report.warnings]
    groups = report.groups
    for group in groups:
        parts.append(f"## {text(tables.group_title(group, groups))}, test split")
        columns = tables.shown_columns(groups)
        parts.append(tables.markdown_table(group, columns, links=False))
    if report.choices:
        parts += ["## From the search to the test", table(outcome_rows(report))]
    parts += ["## What was spent", table(effort_rows(report))]
    parts.append("The runs for the second look and for the test come on top, as many for each.")
    for choice in report.choices:
        label = choice.candidate.label
        parts.append(f"## {text(label)}")
        parts.append(table(point_rows(choice, report.importances.get(label, {}))))
        if label in report.recipes:
            path = report.recipes[label]
            parts.append(f"The recipe: {code(f'train --config {path}')}")
        parts.append(f"![Score by each key](search-{label}.png)")
        parts.append(f"![Score by effort](effort-{label}.png)")
    parts += ["## How it was made", METHOD]
    return "\n\n".join(parts) + "\n"
