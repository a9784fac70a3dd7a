"""The table of claims: what each paper says, and what a run that fits here shows of it.

    python docs/claims.py [NAME ...] [--run] [--set KEY=VALUE ...]

docs/claims.toml holds, for each claim, its sentence, the comparison that tests it, which difference
is its effect, and how large that must be, written down before anything ran. `--run` trains what is
missing of the claims whose name begins with NAME, and keeps their scores in
docs/pages/claims/NAME.csv, with the settings of `--set` (such as jobs=2) added to the command.
Without it the page, docs/pages/claims.md, is only written anew from the scores that are there.

An effect is the mean difference of two entrants, positive on the paper's side, with Student's
interval, whose spread is pooled over the entrants of the table; a bound's own standard error is
added to it. `A|B` is the better of the two. A gain is

- seen, where its 95 percent interval lies above zero and its mean is at least `at_least`;
- contradicted, where the interval lies below zero and the paper claims the gain at this size too
  (`covered`), since "from three billion parameters on" cannot be contradicted by a small model;
- not visible at this size otherwise.

With `report = "NAME"` in place of a command the scores are those of a committed report,
docs/pages/report/NAME, whose entrants all had the same search for their settings; the report says
by which command it was made.

A claim of `parity` is seen where the 90 percent interval lies within `margin` on both sides: that
no difference was found is not parity.

With `tool = "probe"` the command is one of `nanozoo probe` on one task, and scores are shares of
right answers. `LABEL@PLACE` is the share at a place that the report of a probe names (`length 256`,
`windows up to 8`) or at `depth N`, a number of iterations. A task is learned all at once: where one
entrant's seeds agree and the other's do not, no spread is common to them. So the interval is that
of the differences seed by seed, with the standard error of the test added. There is no parity where
neither entrant has come half of the way from the best trivial strategy to all right.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import statistics
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from marks import between, marks_of

from nanozoo_core.comparing.compare.studentized_range import student_quantile
from nanozoo_core.training.records import git_commit

DOCS = Path(__file__).parent
FILE, PAGE, SCORES = DOCS / "claims.toml", DOCS / "pages/claims.md", DOCS / "pages/claims"
REPORTS = DOCS / "pages/report"
MARKS = marks_of(__file__)
TOOLS = COMPARE, PROBE = "compare", "probe"
PROBE_COLUMNS = (
    "label", "seed", "score", "standard_error", "guess", "lr", "steps", "tokens", "seconds",
    "weights_without_embeddings", "ended_by_clock", "torch", "git_commit",
)  # fmt: skip
COLUMNS = (
    "label", "seed", "val_bpb", "val_bound", "val_standard_error", "train_bytes", "train_flops",
    "train_seconds", "params", "params_non_embedding", "dtype", "device", "torch", "git_commit",
)  # fmt: skip
SEEN, CONTRADICTED, NOT_VISIBLE = "seen", "contradicted", "not visible at this size"
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, and the comparison that tests it."""

    name: str
    model: str
    claim: str
    source: str
    """Its paper, in Markdown."""
    at_full_size: str
    """What the paper's own setting is."""
    setting: str
    effect: tuple[str, str]
    """The score of the first less that of the second: in bits per byte, of which fewer are better,
    or with a probe in the share of right answers."""
    command: str = ""
    report: str = ""
    """Of a committed report that has the scores already, in place of a command."""
    tool: str = COMPARE
    at_least: float = 0.0
    parity: bool = False
    margin: float = 0.0
    covered: bool = False
    remark: str = ""

    @property
    def words(self) -> list[str]:
        """What stands behind `nanozoo compare` or `nanozoo probe`."""
        return [*shlex.split(self.command), f"folder={self.folder}"]

    @property
    def folder(self) -> Path:
        return Path("runs/claims") / self.name


@dataclass(frozen=True)
class Score:
    """One run of a comparison, or one answer of a training of a probe."""

    label: str
    value: float
    error: float
    """The standard error of a bound's draws, or of a test's samples."""
    seed: int = 0
    guess: float | None = None
    """Of a probe: what the strongest trivial strategy scores."""


@dataclass(frozen=True)
class Effect:
    mean: float
    half_width: float | None
    """Of the interval; None where one seed each leaves none."""
    learned: bool = True
    """Whether the better entrant has come at least half of the way from the guess to all right."""

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)


def load(file: Path = FILE) -> list[Claim]:
    """Raises: TypeError for a key that is unknown or missing."""
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["claim"]
    return [Claim(**entry | {"effect": tuple(entry["effect"])}) for entry in entries]


def read_scores(text: str) -> list[Score]:
    """The scores of a results.csv, or of what is kept of one or of a probe."""
    rows = list(csv.DictReader(io.StringIO(text)))
    value, error = (
        ("score", "standard_error") if "score" in rows[0] else ("val_bpb", "val_standard_error")
    )
    return [
        Score(
            *(row["label"], float(row[value]), float(row[error] or 0.0), int(row["seed"])),
            guess=float(row["guess"]) if "guess" in row else None,
        )
        for row in rows
    ]


def effect(claim: Claim, scores: list[Score]) -> Effect:
    """Raises: KeyError where an entrant has no score."""
    by_label: dict[str, list[Score]] = {}
    for score in scores:
        by_label.setdefault(score.label, []).append(score)
    best = max if claim.tool == PROBE else min
    first, second = (_best(by_label, names.split("|"), best) for names in claim.effect)
    mean = _mean(first) - _mean(second)
    if claim.tool == PROBE:
        freedom, spread = len(first) - 1, _spread_of_differences(first, second)
    else:
        freedom = sum(len(one) - 1 for one in by_label.values())
        squares = sum((s.value - _mean(one)) ** 2 for one in by_label.values() for s in one)
        spread = squares / max(freedom, 1) * (1 / len(first) + 1 / len(second))
    learned = any(_is_learned(one) for one in (first, second))
    if freedom == 0:
        return Effect(mean, None, learned)
    draws = sum(s.error**2 / len(one) ** 2 for one in (first, second) for s in one)
    quantile = student_quantile(0.1 if claim.parity else 0.05, freedom)
    return Effect(mean, quantile * (spread + draws) ** 0.5, learned)


def _is_learned(scores: list[Score]) -> bool:
    bars = [(1 + score.guess) / 2 for score in scores if score.guess is not None]
    return not bars or _mean(scores) >= statistics.mean(bars)


def _best(
    by_label: dict[str, list[Score]], labels: list[str], best: Callable[..., list[Score]]
) -> list[Score]:
    return best((by_label[label] for label in labels), key=_mean)


def _spread_of_differences(first: list[Score], second: list[Score]) -> float:
    """The squared standard error of a mean over seeds. Raises: KeyError for a missing seed."""
    others = {score.seed: score.value for score in second}
    differences = [score.value - others[score.seed] for score in first]
    return statistics.variance(differences) / len(first) if len(first) > 1 else 0.0


def _mean(scores: list[Score]) -> float:
    return statistics.mean(score.value for score in scores)


def outcome(claim: Claim, found: Effect) -> str:
    if found.half_width is None or (claim.parity and not found.learned):
        return NOT_VISIBLE
    if claim.parity:
        if -claim.margin < found.low and found.high < claim.margin:
            return SEEN
        apart = found.high < -claim.margin or found.low > claim.margin
        return CONTRADICTED if apart and claim.covered else NOT_VISIBLE
    if found.low > 0 and found.mean >= claim.at_least:
        return SEEN
    return CONTRADICTED if found.high < 0 and claim.covered else NOT_VISIBLE


def kept(claim: Claim) -> Path:
    """The scores of a claim."""
    if claim.report:
        return REPORTS / claim.report / "results.csv"
    return SCORES / f"{claim.name}.csv"


def keep(claim: Claim, results: Path) -> None:
    """The columns of a results.csv that the page is made of."""
    with results.open(encoding="utf-8", newline="") as file:
        _write(claim, COLUMNS, list(csv.DictReader(file)))


def _write(claim: Claim, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    assert not claim.report, f"{claim.name}: a report's scores are its own"
    SCORES.mkdir(exist_ok=True)
    with kept(claim).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def keep_answers(claim: Claim, found: Sequence[dict[str, Any]]) -> None:
    """What the page is made of. Args: found: what each training of a probe wrote, the best rate of
    each seed. Raises: SystemExit where an entrant was not asked what the effect is of."""
    about = {"torch": torch.__version__, "git_commit": git_commit()}
    rows = []
    for training in found:
        settings = training["settings"]
        for place, score, error in answers(training):
            label = f"{settings['label']}@{place}" if place else settings["label"]
            own = {"label": label, "score": score, "standard_error": error}
            rows.append(training | settings | about | own)
    asked = {row["label"] for row in rows}
    for name in "|".join(claim.effect).split("|"):
        if name not in asked:
            raise SystemExit(f"{claim.name}: {name} was not asked; the probe's report says why")
    _write(claim, PROBE_COLUMNS, rows)


def answers(training: dict[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """(place, score, standard error where it is known) of all that one training was asked; the
    headline has no place."""
    headline = training["headline"]
    yield "", training["score"], training["standard_error"]
    for name, asked in (training["modes"] | training["beyond"]).items():
        if "not_asked" not in asked:
            yield name, asked[headline], asked[f"{headline}_error"]
    own = training["modes"][training["mode"]]
    for group, score in own["by_group"].items():
        yield f"{own['group_name']} {group}", score, None
    for depth, asked in training["by_depth"].items():
        yield f"depth {depth}", asked["accuracy"], None


def run(claim: Claim, settings: list[str]) -> None:
    """Trains what is missing of a claim's comparison or probe. Raises: NanozooError."""
    if claim.report:
        print(f"{claim.name}: {_report_page(claim)} says how to train its runs again")
        return
    words = [*claim.words, *settings]
    if claim.tool == PROBE:
        from nanozoo_core.probing.command import probe

        asked = probe(words)
        _stop_at(claim, asked.failures)
        keep_answers(claim, [training for cell in asked.cells for training in cell.chosen])
        return
    from nanozoo_core.comparing.compare.command import compare

    _stop_at(claim, compare(words).failures)
    keep(claim, claim.folder / "results.csv")


def _stop_at(claim: Claim, failures: Mapping[str, str]) -> None:
    for name, sentence in failures.items():
        raise SystemExit(f"{claim.name}: {name} failed: {sentence}")


def _report_page(claim: Claim) -> str:
    """From the folder of the page."""
    return f"report/{claim.report}/report.md"


def table(claims: list[Claim]) -> str:
    rows = [
        "| model | claim | what ran | outcome | effect, bits per byte or share of answers |",
        "|---|---|---|---|---|",
    ]
    for claim in claims:
        shown, numbers = NOT_RUN, ""
        if kept(claim).is_file():
            found = effect(claim, read_scores(kept(claim).read_text(encoding="utf-8")))
            shown = f"**{outcome(claim, found)}**"
            width = "one seed" if found.half_width is None else f"+- {found.half_width:.3f}"
            numbers = f"{found.mean:+.3f} {width}, {_asked(claim)}"
        link = f"[{claim.claim}](#{claim.name})"
        rows.append(f"| {claim.model} | {link} | {claim.setting} | {shown} | {numbers} |")
    return "\n".join(rows)


def _asked(claim: Claim) -> str:
    if claim.parity:
        return f"asked: within {claim.margin:g}"
    return f"asked: above 0 and at least {claim.at_least:g}"


def details(claim: Claim) -> str:
    first, second = (" or ".join(names.split("|")) for names in claim.effect)
    what = "share of right answers" if claim.tool == PROBE else "score"
    text = [
        f"### {claim.name}",
        f"{claim.claim} {claim.source}",
        f"At full size: {claim.at_full_size} The effect is the {what} of {first} less that of "
        f"{second}.{' ' + claim.remark if claim.remark else ''}",
        f"The scores are those of [the report]({_report_page(claim)}), which has the command."
        if claim.report
        else f"```sh\nnanozoo {claim.tool} {claim.command}\n```",
    ]
    if kept(claim).is_file():
        scores = read_scores(kept(claim).read_text(encoding="utf-8"))
        labels = [label for label in dict.fromkeys(s.label for s in scores) if _told(claim, label)]
        each = [f"{label} {_mean([s for s in scores if s.label == label]):.3f}" for label in labels]
        with kept(claim).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        machine = [
            ", ".join(dict.fromkeys(row[key] for row in rows))
            for key in ("device", "dtype")
            if key in rows[0]
        ]
        seeds = len({row["seed"] for row in rows})
        machine.append(f"torch {rows[0]['torch']}")
        text.append(
            f"Means over {seeds} seed{'s' if seeds > 1 else ''}: {', '.join(each)}. "
            f"{', '.join(machine)}."
        )
    return "\n\n".join(text)


def _told(claim: Claim, label: str) -> bool:
    """Whether a mean stands on the page: of the places of a probe those of the effect's kind, of a
    report's entrants those of the effect."""
    if claim.report:
        return label in "|".join(claim.effect).split("|")
    _, _, place = label.partition("@")
    kinds = {names.partition("@")[2].split(" ")[0] for names in claim.effect}
    return not place or place.split(" ")[0] in kinds


def replaced(page: str, claims: list[Claim]) -> str:
    """The page with table and details between its marks."""
    return between(page, "\n\n".join([table(claims), *map(details, claims)]), MARKS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--run", action="store_true", help="train what is missing")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    arguments = parser.parse_args()
    claims = load()
    if arguments.run:
        for claim in claims:
            if not arguments.names or claim.name.startswith(tuple(arguments.names)):
                run(claim, arguments.settings)
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), claims), encoding="utf-8")


if __name__ == "__main__":
    main()
