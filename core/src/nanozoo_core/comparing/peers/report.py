"""What the races found: rows for peers.json, and one table for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanozoo_core.comparing.compare.tables import markdown_rows
from nanozoo_core.comparing.peers.races import Race
from nanozoo_core.comparing.units import scaled
from nanozoo_core.machine.terminal import text_table

HEADER = (
    "model",
    "peer",
    "shape",
    "ours over theirs",
    "ours",
    "theirs",
    "tokens/s",
    "FLOP/s",
    "of the peak",
)


def rows_of(race: Race, results: Mapping[str, Any], limits: Mapping[str, Any]) -> list[dict]:
    """A row for each shape that a script has raced.

    Args: results: of the script, nested by shape and by model or peer. limits: the results
        of limits.py, whose peak of our dtype the FLOPs are divided by.
    """
    rows = []
    for path, found in _leaves(results):
        flops = found["flops_per_second"]
        peak = limits["peak_flops"][found["dtype"]]
        rows.append(
            {
                "model": race.model,
                "peer": race.peer,
                "shape": ", ".join(part for part in path if part not in (race.model, race.peer)),
                **{key: found[key] for key in ("ratio", "ratio_least", "ratio_most", "dtype")},
                **{key: found[key] for key in ("peer_form", "peer_forms")},
                "tokens_per_second": found["nanozoo_tokens_per_second"],
                "peer_tokens_per_second": found[f"{found['peer']}_tokens_per_second"],
                "flops_per_second": flops,
                "peak_share": None if flops is None else flops / peak,
            }
        )
    return rows


def _leaves(
    results: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if "ratio" in results:
        yield path, results
        return
    for key, inner in results.items():
        yield from _leaves(inner, (*path, key))


def cells(record: Mapping[str, Any]) -> list[list[str]]:
    """The table of a peers.json, its header first; a race that did not run has one line."""
    lines = [list(HEADER)]
    for row in record["races"]:
        share = row["peak_share"]
        lines.append(
            [
                row["model"],
                row["peer"],
                row["shape"],
                f"{row['ratio']:.2f} ({row['ratio_least']:.2f}..{row['ratio_most']:.2f})",
                row["dtype"],
                row["peer_form"],
                f"{row['tokens_per_second']:,.0f}",
                scaled(row["flops_per_second"]),
                "" if share is None else f"{100 * share:.0f} %",
            ]
        )
    for race in record["not_run"]:
        lines.append([race["model"], race["peer"], "not run", *[""] * (len(HEADER) - 3)])
    return lines


def limits_line(record: Mapping[str, Any]) -> str:
    """What the processor can do at most, in a sentence."""
    limits = record["limits"]
    products = ", ".join(
        f"{flops / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, flops in limits["peak_flops"].items()
    )
    reads = limits["read_bytes_per_second"] / 1e9
    machine = record["machine"]
    where = f"{machine['device']}, torch {machine['torch']}"
    return f"{where}: products {products}; reads {reads:.1f} GB/s"


def describe(record: Mapping[str, Any]) -> str:
    """The tables for the terminal, and why races did not run."""
    table = text_table(cells(record), left=range(len(HEADER)))
    reasons = [
        f"{race['model']} beside {race['peer']}: {race['why']}" for race in record["not_run"]
    ]
    parts = [limits_line(record), table]
    if reasons:
        parts.append("\n".join(["Not run:", *reasons]))
    return "\n\n".join(parts)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a table of Markdown."""
    return markdown_rows(*lines)
