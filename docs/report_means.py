"""Prints what the committed report measured of some models: mean, deviation and each seed.

    python docs/report_means.py LABEL ... [--results FILE]

A line for each number of the report's results.csv: the label, the column, the mean over the seeds,
their deviation, and the value of each seed in order. FILE is that of another comparison.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "pages" / "report" / "results.csv"


def numbers(label: str, results: Path) -> dict[str, list[float]]:
    """The numeric columns of a label, a value for each seed. Raises: KeyError for no such label."""
    with results.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == label]
    if not rows:
        raise KeyError(f"{results} has no run of '{label}'")
    columns: dict[str, list[float]] = {}
    for column in rows[0]:
        try:
            columns[column] = [float(row[column]) for row in rows]
        except ValueError:
            continue  # a name, or nothing
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labels", nargs="+", metavar="LABEL")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for label in arguments.labels:
        for column, values in numbers(label, arguments.results).items():
            name = column.removeprefix("diagnostics.")
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            each = " ".join(f"{value:.10g}" for value in values)
            print(f"{label} {name} {statistics.mean(values):.10g} +- {deviation:.3g} ({each})")


if __name__ == "__main__":
    main()
