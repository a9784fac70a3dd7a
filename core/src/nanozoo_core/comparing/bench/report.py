"""What `nanozoo bench` found: a table for every task, and bench.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.comparing.bench.parts import told
from nanozoo_core.comparing.bench.request import Assignment, Request
from nanozoo_core.comparing.units import scaled
from nanozoo_core.files import write_json
from nanozoo_core.machine.terminal import text_table

if TYPE_CHECKING:
    from nanozoo_core.comparing.bench.contestant import Block, Facts


FILES = ("bench.json",)


@dataclass(frozen=True)
class Spread:
    """Median, least and most over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Entry:
    """One model's measurements in one task, a block for every round."""

    assignment: Assignment
    facts: Facts
    blocks: tuple[Block, ...]
    peak_memory_bytes: int
    parts: dict[str, float] = field(default_factory=dict)
    """Shares of kinds of operations in the time, where it was profiled."""

    @property
    def tokens_per_second(self) -> Spread:
        return Spread.of([block.tokens_per_second for block in self.blocks])

    @property
    def bytes_per_second(self) -> Spread:
        """At the bytes that a token of the training text has on average."""
        return Spread.of(self._bytes_per_second())

    def ratio(self, first: Entry) -> Spread:
        """How many times as fast as `first`, in text, round by round."""
        pairs = zip(self._bytes_per_second(), first._bytes_per_second(), strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])

    def _bytes_per_second(self) -> list[float]:
        per_token = self.facts.bytes_per_token
        return [block.tokens_per_second * per_token for block in self.blocks]

    @property
    def flops_per_second(self) -> float | None:
        """Of training; what decoding computes is not counted."""
        if self.assignment.task != "train":
            return None
        return self.facts.flops_per_token * self.tokens_per_second.median

    def mfu(self, peak_flops: float | None) -> float | None:
        """Model FLOPs over what the device can do, where that is known."""
        peak = peak_flops or self.facts.peak_flops
        flops = self.flops_per_second
        return None if peak is None or flops is None else flops / peak


def row(entry: Entry, first: Entry | None, request: Request) -> dict[str, Any]:
    """An entry of bench.json."""
    facts = asdict(entry.facts)
    report = facts.pop("report")
    del facts["peak_flops"]
    return {
        "label": entry.assignment.label,
        "model": entry.assignment.model,
        "task": entry.assignment.task,
        "arguments": list(entry.assignment.arguments),
        "run": None if entry.assignment.run is None else str(entry.assignment.run),
        **report,
        **facts,
        "tokens_per_second": asdict(entry.tokens_per_second),
        "bytes_per_second": asdict(entry.bytes_per_second),
        "ratio_to_first": None if first is None else asdict(entry.ratio(first)),
        "flops_per_second": entry.flops_per_second,
        "mfu": entry.mfu(request.peak_flops),
        "peak_memory_bytes": entry.peak_memory_bytes,
        "blocks": [asdict(block) for block in entry.blocks],
        "parts": entry.parts,
    }


def first_entry(entries: Sequence[Entry], task: str, request: Request) -> Entry | None:
    """That of the first model named, against which the others are held; None where it failed."""
    label = request.of(task)[0].label
    found = (e for e in entries if e.assignment.task == task and e.assignment.label == label)
    return next(found, None)


def write(
    request: Request, entries: Sequence[Entry], failures: dict[str, str], about: dict[str, Any]
) -> Path:
    """Writes bench.json into the request's folder."""
    results = [
        row(entry, first_entry(entries, entry.assignment.task, request), request)
        for entry in entries
    ]
    path = request.folder / "bench.json"
    write_json(path, {**about, "results": results, "failures": failures})
    return path


TITLES = {
    "train": "Training steps",
    "decode": "Decoding {tokens} tokens, one text at a time",
}


def describe(request: Request, entries: Sequence[Entry]) -> str:
    """The tables for the terminal."""
    parts = []
    for task in request.tasks:
        chosen = [entry for entry in entries if entry.assignment.task == task]
        if not chosen:
            continue
        title = TITLES[task].format(tokens=chosen[0].assignment.decode_tokens)
        parts.append(f"{title} ({chosen[0].facts.device}):\n{_table(request, chosen, task)}")
        profiled = [f"  {e.assignment.label}: {told(e.parts)}" for e in chosen if e.parts]
        if profiled:
            parts.append("\n".join(["Where the time goes:", *profiled]))
    tokenizers = {(entry.facts.tokenizer, entry.facts.bytes_per_token) for entry in entries}
    if len(tokenizers) > 1:
        parts.append("Tokens differ in length: compare bytes/s; the ratios are of bytes.")
    return "\n\n".join(parts)


def _table(request: Request, entries: Sequence[Entry], task: str) -> str:
    first = first_entry(entries, task, request)
    base = request.of(task)[0].label
    lines = [["model", "parameters", "tokens/s", "bytes/s", f"times {base}", "memory"]]
    if task == "train":
        lines[0] += ["FLOP/s", "MFU"]
    for entry in entries:
        speed, ratio = entry.tokens_per_second, None if first is None else entry.ratio(first)
        cells = [
            entry.assignment.label,
            scaled(entry.facts.report["params"]),
            f"{speed.median:,.0f} ({speed.least:,.0f} to {speed.most:,.0f})",
            f"{entry.bytes_per_second.median:,.0f}",
            "" if ratio is None else f"{ratio.median:.3f} ({ratio.least:.3f} to {ratio.most:.3f})",
            f"{entry.peak_memory_bytes / 2**20:,.0f} MiB",
        ]
        if task == "train":
            mfu = entry.mfu(request.peak_flops)
            cells += [scaled(entry.flops_per_second), "" if mfu is None else f"{100 * mfu:.1f} %"]
        lines.append(cells)
    return text_table(lines, left=range(len(lines[0])))
