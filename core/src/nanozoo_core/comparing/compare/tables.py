"""The tables of a comparison: Markdown and HTML cells from one list of columns, and results.csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanozoo_core.comparing.compare.ranking import Group, Place
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.comparing.units import scaled
from nanozoo_core.machine.terminal import harmless

CONFIGS = "configs"  # the folder with the settings behind each score, beside the report


@dataclass(frozen=True)
class Column:
    """`show` makes the cell; `key` the number by which the page sorts it."""

    title: str
    help: str
    show: Callable[[Place], str]
    key: Callable[[Place], float | None]


def score(place: Place) -> str:
    sign = "<= " if place.entry.is_bound else ""
    margin = "" if place.half_width is None else f" +- {place.half_width:.3f}"
    return f"{sign}{place.entry.mean:.3f}{margin}"


def _number(title: str, text: str, get: Callable[[Entry], float | None], unit: str = "") -> Column:
    return Column(title, text, lambda p: scaled(get(p.entry), unit), lambda p: get(p.entry))


def active(entry: Entry) -> float | None:
    return entry.median("params_active") or entry.median("params")


SCORE = Column(
    "bits per byte",
    "mean over the seeds, with its 95 percent interval; <= marks an upper bound",
    score,
    lambda p: p.entry.mean,
)
COLUMNS = (
    Column("rank", "where the seeds leave it", lambda p: p.rank, lambda p: float(p.best)),
    Column("model", "", lambda p: p.entry.label, lambda p: None),
    SCORE,
    Column(
        "compute multiplier",
        "FLOPs that the control needs for the same score, over those of the model: above 1 the "
        "model saves compute; with the 95 percent interval that the seeds leave",
        lambda p: "" if p.entry.multiplier is None else str(p.entry.multiplier),
        lambda p: None if p.entry.multiplier is None else p.entry.multiplier.value,
    ),
    Column("seeds", "", lambda p: str(len(p.entry.runs)), lambda p: float(len(p.entry.runs))),
    Column("optimiser", "`optim.name`", lambda p: p.entry.optimizer, lambda p: None),
    _number("parameters", "of the model in training", lambda e: e.median("params")),
    _number("active", "parameters that one token uses", active),
    _number("text read", "in training", lambda e: e.median("train_bytes"), "B"),
    _number("FLOPs", "of training", lambda e: e.median("train_flops")),
    _number("seconds", "of training", lambda e: e.median("train_seconds")),
    _number("bytes/s", "read in training", lambda e: e.bytes_per_second, "B"),
    _number("memory", "most that the process held", lambda e: e.median("peak_memory_bytes"), "B"),
    _number(
        "state per token",
        "by which the state of decoding grows",
        lambda e: e.median("cache_bytes_per_token"),
        "B",
    ),
    _number(
        "fixed state",
        "of decoding, whatever the length of the text",
        lambda e: e.median("state_bytes"),
        "B",
    ),
    _number("context", "text that a window holds on average", lambda e: e.context_bytes, "B"),
)


WITHIN_OPTIMIZER = ("rank", "model", "bits per byte", "seeds")
"""Columns of a table of one optimiser; the others stand in the table above it."""

OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}


def optimizer_name(name: str) -> str:
    """As people write it."""
    return OPTIMIZERS.get(name, name)


def shown_columns(groups: Sequence[Group]) -> list[Column]:
    """The columns that say something: not those empty for all."""
    places = [place for group in groups for place in group.places]
    return [column for column in COLUMNS if any(column.show(place) for place in places)]


def markdown_text(text: str) -> str:
    """A text that may come from somebody else, for the middle of a line of Markdown: no sign in it
    begins an element of HTML, a link or another cell."""
    text = harmless(" ".join(text.split()))
    return re.sub(r"[`\[\]|]|<(?=[A-Za-z/!?])", lambda found: f"&#{ord(found[0])};", text)


def markdown_code(text: str, *, language: str | None = None) -> str:
    """A text as code, between more backticks than it has in a row: within a line, or as lines of a
    language."""
    text = harmless(text)
    most = max((len(run) for run in re.findall("`+", text)), default=0)
    if language is not None:
        fence = "`" * max(3, most + 1)
        return f"{fence}{language}\n{text}\n{fence}"
    marks, line = "`" * (most + 1), " ".join(text.split())
    return f"{marks} {line} {marks}" if most else f"{marks}{line}{marks}"


def markdown_table(group: Group, columns: Sequence[Column], *, links: bool) -> str:
    cells = []
    for place in group.places:
        row = [markdown_text(column.show(place)) for column in columns]
        if links:
            number = columns.index(SCORE)
            row[number] = f"[{row[number]}]({CONFIGS}/{place.entry.label}.yaml)"
        cells.append(row)
    return markdown_rows([column.title for column in columns], *cells)


def markdown_rows(head: Sequence[str], *lines: Sequence[str]) -> str:
    """A table of cells that are Markdown."""
    rows = [f"| {' | '.join(line)} |" for line in (head, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def columns_of(group: Group, columns: Sequence[Column]) -> list[Column]:
    """Of the columns that a report shows, those of this group's table."""
    return [c for c in columns if group.optimizer is None or c.title in WITHIN_OPTIMIZER]


def control_table(curve: Sequence[Entry]) -> list[list[str]]:
    """Of the control at each of its budgets: a head, and a line for each, from the least compute;
    no lines without a control."""
    if not curve:
        return []
    head = ["text read", "FLOPs", "bits per byte", "seeds"]
    return [
        head,
        *(
            [
                scaled(entry.median("train_bytes"), "B"),
                scaled(entry.median("train_flops")),
                f"{entry.mean:.3f}",
                str(len(entry.runs)),
            ]
            for entry in curve
        ),
    ]


def rates_table(entries: Sequence[Entry]) -> list[list[str]]:
    """Of the entries whose learning rates were chosen: a head, and a line for each; no lines where
    there are none."""
    tuned = [entry for entry in entries if entry.tried]
    factors = sorted({factor for entry in tuned for factor in entry.tried})
    if not factors:
        return []
    head = ["model", "learning rate", *(f"at {factor:g} times its own" for factor in factors)]
    lines = []
    for entry in tuned:
        optim = entry.config["optim"]
        rate = f"{optim['lr']:g}"
        if entry.optimizer == "muon":
            rate = f"{optim['muon']['lr']:g}, beside Muon {rate}"
        scores = [f"{entry.tried[f]:.3f}" if f in entry.tried else "failed" for f in factors]
        lines.append([entry.label, rate, *scores])
    return [head, *lines]


def group_title(group: Group, groups: Sequence[Group]) -> str:
    """What a table ranks, and on which text where there are several."""
    what = "Upper bounds" if group.is_bound else "Exact scores"
    if group.optimizer is not None:
        what += f", only models trained with {optimizer_name(group.optimizer)}"
    if len({g.text for g in groups}) == 1:
        return what
    fingerprint, num_bytes, split = group.text
    part = "" if split == "all" else f" of eval.split={split}"
    return f"{what} on text {fingerprint[:8]} ({num_bytes:,} bytes{part})"


def _no_formula(value: Any) -> Any:
    """A cell that no spreadsheet computes: behind an apostrophe it is text."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def results_csv(entries: Sequence[Entry]) -> str:
    """A row for every run: its label, and every number and name of its result.json."""
    rows = []
    for entry in entries:
        for run in entry.runs:
            flat = {k: v for k, v in run.result.items() if not isinstance(v, dict | list)}
            for prefix in ("baselines_bpb", "diagnostics"):
                for key, value in run.result.get(prefix, {}).items():
                    flat[f"{prefix}.{key}"] = value
            own = {"label": entry.label, "optimizer": entry.optimizer}
            row = {**own, **flat, "folder": str(run.folder)}
            rows.append({_no_formula(key): _no_formula(value) for key, value in row.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
