"""The second look at the best trials: the lowest of many noisy scores is too low.

The three best train again with two seeds that took no part in the search; the best mean of these
chooses. Only what the choice then scores on the test split, with further seeds, is reported, beside
what the committed recipe scores there.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nanozoo_core.comparing.compare.results import Entry, collect
from nanozoo_core.comparing.tune.candidates import Candidate, Training
from nanozoo_core.comparing.tune.study import Told
from nanozoo_core.comparing.tune.trials import Trainings

BEST = 3  # trials that get a second look
Scores = Mapping[int, Sequence[float]]
"""Fresh scores by the number of the trial."""


def finalists(told: Sequence[Told]) -> list[int]:
    """The best trials by their score in the search, from the best; the earlier of two equal ones
    first. Only those that ended count."""
    ended = [one for one in told if one.outcome.state == "complete"]
    return [one.number for one in sorted(ended, key=lambda one: (one.score, one.number))[:BEST]]


def choose(scores: Scores) -> int:
    """The trial with the best mean of its fresh scores."""
    return min(scores, key=lambda number: (statistics.mean(scores[number]), number))


@dataclass(frozen=True)
class Choice:
    """What a search came to."""

    candidate: Candidate
    told: Sequence[Told]
    number: int
    """Of the chosen trial."""
    fresh: Scores
    """Of the finalists, on the tuning split."""
    committed: Entry
    tuned: Entry
    """On the test split; the same runs where the choice is the committed recipe."""

    @property
    def gain(self) -> float:
        """Bits per byte by which the choice is better than the committed recipe."""
        return self.committed.mean - self.tuned.mean

    @property
    def point(self) -> dict[str, float]:
        return next(one.point for one in self.told if one.number == self.number)


def reruns(
    candidate: Candidate, points: Mapping[int, dict[str, float]], seeds: Sequence[int], split: str
) -> list[Training]:
    """Trainings of some trials with further seeds, not scored on the way."""
    return [
        candidate.member(number, point, seed=seed, split=split, reports=False)
        for seed in seeds
        for number, point in points.items()
    ]


def scores_of(trainings: Sequence[Training]) -> dict[str, list[float]]:
    """Bits per byte of the trainings that reached their end with a number, by label."""
    entries, _ = collect([training.member for training in trainings], ())
    return {entry.label: entry.bpbs for entry in entries}


def entry_of(trainings: Sequence[Training], label: str) -> Entry | None:
    """The trainings as a line of a report; None where all have diverged."""
    entries, _ = collect([training.member for training in trainings], ())
    if not entries:
        return None
    runs = tuple(replace(run, label=label) for run in entries[0].runs)
    return Entry(label, runs)


def confirm(
    candidates: Sequence[Candidate],
    told: Mapping[str, Sequence[Told]],
    trainings: Trainings,
    *,
    fresh_seeds: Sequence[int],
    test_seeds: Sequence[int],
) -> tuple[list[Choice], dict[str, str]]:
    """Trains the finalists again, and then the choice and the committed recipe for the test.

    Returns: the choices, and a sentence for each model of which nothing could be chosen.
    """
    looks: dict[str, dict[int, list[Training]]] = {}
    for candidate in candidates:
        points = {one.number: one.point for one in told[candidate.label]}
        looks[candidate.label] = {
            number: reruns(candidate, {number: points[number]}, fresh_seeds, "tune")
            for number in finalists(told[candidate.label])
        }
    trainings.train([t.member for look in looks.values() for ts in look.values() for t in ts])
    failures: dict[str, str] = {}
    tests: dict[str, tuple[int, dict[int, list[float]], dict[int, list[Training]]]] = {}
    for candidate in candidates:
        fresh = {
            number: [score for scores in scores_of(again).values() for score in scores]
            for number, again in looks[candidate.label].items()
        }
        # A trial that diverges with another seed is no recipe.
        fresh = {number: s for number, s in fresh.items() if len(s) == len(fresh_seeds)}
        if not fresh:
            failures[candidate.label] = "no trial reached its end with every seed"
            continue
        number = choose(fresh)
        points = {one.number: one.point for one in told[candidate.label]}
        final = {
            n: reruns(candidate, {n: points[n]}, test_seeds, "test") for n in sorted({0, number})
        }
        tests[candidate.label] = (number, fresh, final)
    trainings.train([t.member for *_, final in tests.values() for ts in final.values() for t in ts])
    choices = []
    for candidate in candidates:
        if candidate.label not in tests:
            continue
        number, fresh, final = tests[candidate.label]
        tuned = entry_of(final[number], f"{candidate.label}_tuned")
        committed = entry_of(final[0], candidate.label)
        if tuned is None or committed is None:
            failures[candidate.label] = "its runs on the test split diverged"
            continue
        choices.append(Choice(candidate, told[candidate.label], number, fresh, committed, tuned))
    return choices, failures
