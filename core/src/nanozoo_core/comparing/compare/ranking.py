"""Who is ahead, and whether the seeds can tell.

Ranked together is only what is comparable: scores of the same text, exact ones with exact ones and
upper bounds with upper bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from nanozoo_core.comparing.compare.results import Entry

LEVEL = 0.05


@dataclass(frozen=True)
class Place:
    """One entry in its group. `best` to `worst` are the ranks that the seeds leave possible:
    entries between which Tukey's test finds no difference may stand in either order."""

    entry: Entry
    best: int
    worst: int
    half_width: float | None
    """Of the 95 percent interval of the mean."""

    @property
    def rank(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}-{self.worst}"


@dataclass(frozen=True)
class Group:
    """Entries that may be ranked against each other, from the fewest bits per byte."""

    text: tuple[str, int, str]
    is_bound: bool
    places: tuple[Place, ...]
    optimizer: str | None = None
    """The one that all were trained with, in a group that leaves the others out."""


def rank(entries: Sequence[Entry]) -> list[Group]:
    """Groups in the order of their first entry, exact scores of a text before bounds on it."""
    keys = list(dict.fromkeys(entry.text for entry in entries))
    groups = []
    for text in keys:
        for is_bound in (False, True):
            inside = [e for e in entries if e.text == text and e.is_bound == is_bound]
            if inside:
                places = tuple(_places(sorted(inside, key=lambda entry: entry.mean)))
                groups.append(Group(text, is_bound, places))
    return groups


def by_optimizer(group: Group) -> list[Group]:
    """The group's entries once more, those of one optimiser apart from the others: a group for each
    that at least two share, in the order of their best; none where all have the same."""
    shared: dict[str, list[Entry]] = {}
    for place in group.places:
        shared.setdefault(place.entry.optimizer, []).append(place.entry)
    if len(shared) == 1:
        return []
    return [
        Group(group.text, group.is_bound, tuple(_places(entries)), optimizer)
        for optimizer, entries in shared.items()
        if len(entries) > 1
    ]


def _places(entries: list[Entry]) -> list[Place]:
    """Ranks by Tukey's honest significance test (Tukey-Kramer where numbers of seeds differ), whose
    spread is pooled over the group; with a single seed each there is no test, and the order is that
    of the scores."""
    differs = _significant(entries)
    places = []
    for n, entry in enumerate(entries):
        if differs is None:
            places.append(Place(entry, n + 1, n + 1, None))
            continue
        ahead = sum(differs[n][m] for m in range(n))
        behind = sum(differs[n][m] for m in range(n + 1, len(entries)))
        places.append(Place(entry, 1 + ahead, len(entries) - behind, half_width(entry, entries)))
    return places


def _significant(entries: list[Entry]) -> list[list[bool]] | None:
    """Which pairs differ at the 5 percent level of the whole family of pairs."""
    if not entries or degrees_of_freedom(entries) == 0:
        return None
    if len(entries) == 1:
        return [[False]]
    from nanozoo_core.comparing.compare.studentized_range import survival

    size, freedom = len(entries), degrees_of_freedom(entries)
    variance = pooled_variance(entries)
    table = [[False] * size for _ in range(size)]
    for (n, one), (m, other) in combinations(enumerate(entries), 2):
        error = (variance / 2 * (1 / len(one.runs) + 1 / len(other.runs))) ** 0.5
        gap = abs(one.mean - other.mean)
        chance = survival(gap / error, size, freedom) if error else float(gap == 0)
        table[n][m] = table[m][n] = bool(chance < LEVEL)
    return table


def degrees_of_freedom(entries: Sequence[Entry]) -> int:
    return sum(len(entry.runs) - 1 for entry in entries)


def pooled_variance(entries: Sequence[Entry]) -> float:
    """Of the score between seeds, taken as equal for all entries of a group."""
    squares = sum((bpb - entry.mean) ** 2 for entry in entries for bpb in entry.bpbs)
    return squares / degrees_of_freedom(entries)


def half_width(entry: Entry, entries: Sequence[Entry]) -> float:
    """Of the 95 percent interval of an entry's mean, from the group's pooled spread."""
    return quantile(entries) * (pooled_variance(entries) / len(entry.runs)) ** 0.5


def quantile(entries: Sequence[Entry]) -> float:
    """Of Student's t for a 95 percent interval from the group's pooled spread."""
    from nanozoo_core.comparing.compare.studentized_range import student_quantile

    return student_quantile(LEVEL, degrees_of_freedom(entries))


def warnings(entries: Sequence[Entry]) -> list[str]:
    """What a reader of the report must know before comparing."""
    found = []
    texts = {entry.text for entry in entries}
    if len(texts) > 1:
        found.append(
            f"The runs were scored on {len(texts)} different texts. Each has a table of its own; "
            f"scores of different tables do not compare."
        )
    if len({entry.is_bound for entry in entries}) > 1:
        found.append(
            "Scores marked <= are upper bounds: the model may be better than it says. They are "
            "ranked apart, and that ranking orders the bounds."
        )
    by_text: dict[tuple[str, int, str], list[Entry]] = {}
    for entry in entries:
        by_text.setdefault(entry.text, []).append(entry)
    for inside in by_text.values():
        read = [run.result["train_bytes"] for entry in inside for run in entry.runs]
        if max(read) > 1.05 * min(read):
            found.append(
                f"The models read different amounts of text, {min(read) / 1e6:.1f} to "
                f"{max(read) / 1e6:.1f} MB."
            )
    for key, what in (
        ("device", "machines"),
        ("git_commit", "commits"),
        ("torch", "versions of torch"),
        ("num_processes", "numbers of processes"),
    ):
        values = {str(run.result.get(key)) for entry in entries for run in entry.runs}
        if len(values) > 1:
            found.append(f"The runs come from different {what}: {', '.join(sorted(values))}.")
    if all(len(entry.runs) == 1 for entry in entries):
        found.append("One seed each: nothing tells how far the order is chance.")
    return found
