"""Holds the figures of the pages to the commands that they come from.

    python docs/figures.py [NAME ...] [--quick] [--write]

Runs the commands of every file `figures.toml`, or those whose name begins with NAME, and compares
what they print with what the page beside the file says. `--quick` takes those that need seconds,
which CI runs; `--write` puts what was printed into the page and the file.

Each entry of a file has a name, a command, and the figures that it makes. In the text of a figure,
which stands in the page word for word, `{...}` marks the values; the groups of `find`, a pattern or
several, are these values in the output, and without it the output repeats the text. A printed value
may differ by what the page's digits round off, by `tolerance`, a share of the value, and by
`margin`, an amount. `figures` may name another entry of the file, whose figures the command makes
too. An entry with `needs` runs only where that environment variable is set.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    p
    for where in ("docs", "core/benchmarks/*", "packages/*")
    for p in ROOT.glob(f"{where}/figures.toml")
)
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "million": 1e6, "G": 1e9, "T": 1e12, "%": 1e-2}
UNIT = rf"\s*({'|'.join(UNITS)})B?\s*"
MARKED = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Figure:
    """A piece of a page with one or more values in it."""

    page: Path
    marked: str
    find: tuple[str, ...]
    tolerance: float
    margin: float

    @property
    def text(self) -> str:
        return MARKED.sub(r"\1", self.marked)

    @property
    def values(self) -> list[str]:
        return MARKED.findall(self.marked)

    def with_values(self, values: list[str]) -> str:
        """The marked text with other values."""
        rest = iter(values)
        return MARKED.sub(lambda _: "{" + next(rest) + "}", self.marked)

    def printed(self, output: str) -> list[str] | None:
        """The values that a command printed, as it printed them."""
        found: list[str] = []
        for pattern in self.find:
            match = re.search(pattern, output, re.MULTILINE)
            if match is None:
                return None
            found += match.groups()
        return found

    def agrees(self, value: str, printed: str) -> bool:
        number, rounding = read_number(value)
        difference = abs(read_number(printed)[0] - number)
        return difference <= rounding * (1 + 1e-9) + self.tolerance * abs(number) + self.margin


@dataclass(frozen=True)
class Run:
    """A command and the figures that it makes."""

    name: str
    command: str
    quick: bool
    needs: str | None
    file: Path
    figures: tuple[Figure, ...]


def read_number(text: str) -> tuple[float, float]:
    """A number and half of its last place: `1.35 M`, `124 439 808`, `10,100` or `23 %`.

    The zeros that end a whole number of four digits or more count as rounded.
    """
    match = re.fullmatch(r"\s*([+-]?[\d ,]*\.?\d+(?:e[+-]?\d+)?)" + UNIT, text)
    if match is None:
        raise ValueError(f"'{text}' is no number")
    digits, unit = match[1].replace(" ", "").replace(",", ""), UNITS[match[2]]
    mantissa, _, exponent = digits.partition("e")
    whole, _, decimals = mantissa.partition(".")
    place = -len(decimals)
    if not decimals and len(whole.lstrip("+-")) >= 4:
        place = len(whole) - len(whole.rstrip("0"))
    return float(digits) * unit, 0.5 * 10.0 ** (place + int(exponent or 0)) * unit


def load(file: Path) -> list[Run]:
    """The entries of a file. Raises: TypeError for a key that is unknown or missing."""
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["run"]
    figures = {entry["name"]: entry["figures"] for entry in entries}
    return [
        read_run(file, **entry | {"figures": figures.get(str(entry["figures"]), entry["figures"])})
        for entry in entries
    ]


def read_run(
    file: Path,
    *,
    name: str,
    command: str,
    figures: list[dict[str, Any]],
    page: str = "README.md",
    quick: bool = False,
    needs: str | None = None,
    tolerance: float = 0.0,
    margin: float = 0.0,
) -> Run:
    def read_figure(
        *,
        text: str,
        find: str | list[str] | None = None,
        tolerance: float = tolerance,
        margin: float = margin,
    ) -> Figure:
        patterns = [as_pattern(text)] if find is None else [find] if isinstance(find, str) else find
        return Figure((file.parent / page).resolve(), text, tuple(patterns), tolerance, margin)

    found = tuple(read_figure(**figure) for figure in figures)
    return Run(f"{file.parent.name}: {name}", command, quick, needs, file, found)


def as_pattern(marked: str) -> str:
    """Finds the text with any values."""
    return MARKED.sub("([^ |]+)", re.sub(r"\\?([.^$*+?()\[\]|\\])", r"\\\1", marked))


def is_on_page(figure: Figure) -> bool:
    """Whether the page has the text, however its lines are broken."""
    return one_line(figure.text) in one_line(figure.page.read_text(encoding="utf-8"))


def one_line(text: str) -> str:
    return " ".join(text.split())


def output_of(command: str) -> str:
    """What a command prints. The quick `nanozoo show` runs in this process, so that torch is not
    loaded for each. Raises: subprocess.CalledProcessError."""
    command = command.removeprefix("uv run ") if "--with" not in command else command
    if command.startswith("nanozoo show "):
        from nanozoo_core.commands.cli import main as nanozoo

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.chdir(ROOT):
            try:
                nanozoo(shlex.split(command)[1:])
            except SystemExit as error:
                raise subprocess.CalledProcessError(1, command) from error
        return printed.getvalue()
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def problems(run: Run, output: str) -> list[str]:
    """A sentence for each value that the page has and the command does not print."""
    found = []
    for figure in run.figures:
        printed = figure.printed(output)
        if printed is None:
            found.append(f"{run.name}: the output has nothing for '{figure.text}'")
            continue
        for value, new in zip(figure.values, printed, strict=True):
            if not figure.agrees(value, new):
                found.append(f"{run.name}: '{figure.text}' says {value}, the command {new}")
    return found


def rewrite(run: Run, output: str) -> None:
    """Puts what was printed into page and file, with the page's number of decimals."""
    for figure in run.figures:
        printed = figure.printed(output)
        if printed is None:
            continue
        marked = figure.with_values(
            [like(old, new) for old, new in zip(figure.values, printed, strict=True)]
        )
        replace_text(figure.page, figure.text, MARKED.sub(r"\1", marked))
        replace_text(run.file, figure.marked, marked)


def replace_text(file: Path, old: str, new: str) -> None:
    """Replaces a text wherever it stands in a file, and breaks lines where they were broken."""
    words = new.split()

    def replaced(match: re.Match[str]) -> str:
        gaps = re.findall(r"\s+", match[0])
        gaps = gaps if len(gaps) == len(words) - 1 else [" "] * (len(words) - 1)
        return "".join(word + gap for word, gap in zip(words, [*gaps, ""], strict=True))

    pattern = r"\s+".join(map(re.escape, old.split()))
    page = file.read_text(encoding="utf-8")
    file.write_text(re.sub(pattern, replaced, page), encoding="utf-8")


def like(old: str, printed: str) -> str:
    """The printed value in the manner of the old one: its unit, decimals and separators."""
    _, rounding = read_number(old)
    unit = re.search(UNIT + "$", old)
    assert unit is not None
    suffix, scale = unit[0], UNITS[unit[1]]
    step = 2 * rounding / scale
    number = round(read_number(printed)[0] / scale / step) * step
    decimals = len(old.removesuffix(suffix).partition(".")[2])
    sign = "+" if old.startswith("+") else ""
    separator = next((mark for mark in ", " if mark in old.removesuffix(suffix).strip()), "")
    return f"{number:{sign},.{decimals}f}".replace(",", separator) + suffix


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="how the names of entries begin")
    parser.add_argument("--quick", action="store_true", help="only what takes seconds")
    parser.add_argument("--write", action="store_true", help="put what was printed into the pages")
    parser.add_argument("--list", action="store_true", help="print names and commands, run nothing")
    arguments = parser.parse_args()
    runs = [run for file in FILES for run in load(file)]
    if arguments.names:
        runs = [run for run in runs if run.name.startswith(tuple(arguments.names))]
    if arguments.quick:
        runs = [run for run in runs if run.quick]
    found = []
    for run in runs:
        print(f"{run.name}\n    {run.command}", flush=True)
        if arguments.list:
            continue
        if run.needs is not None and run.needs not in os.environ:
            print(f"    not run: ${run.needs} is not set")
            continue
        try:
            output = output_of(run.command)
        except subprocess.CalledProcessError as error:
            found.append(f"{run.name}: ended with status {error.returncode}")
            continue
        if arguments.write:
            rewrite(run, output)
        else:
            found += problems(run, output)
    print("\n".join(found) or f"{len(runs)} commands")
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
