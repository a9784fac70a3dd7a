"""Whether it was safe to end trials early: some of them train to their end all the same."""

from __future__ import annotations

from collections.abc import Sequence

from nanozoo_core.comparing.tune.candidates import Candidate
from nanozoo_core.comparing.tune.report import Audit
from nanozoo_core.comparing.tune.study import Told
from nanozoo_core.comparing.tune.trial import BARS, END
from nanozoo_core.comparing.tune.trials import Trainings, read_outcome
from nanozoo_core.files import write_json
from nanozoo_core.randomness import hash_integers

AUDITED = 3  # of the trials that ended early


def chosen_for_audit(told: Sequence[Told], *, seed: int) -> list[Told]:
    """Some of the trials that ended early, by the seed alone."""
    pruned = [one for one in told if one.outcome.state == "pruned"]
    return sorted(pruned, key=lambda one: hash_integers(seed, one.number))[:AUDITED]


def audit(
    candidate: Candidate, told: Sequence[Told], trainings: Trainings, *, seed: int
) -> Audit | None:
    """Trains them to their end; None where no trial ended early. Raises: as `Trainings.train`."""
    chosen = chosen_for_audit(told, seed=seed)
    if not chosen:
        return None
    again = [candidate.member(one.number, one.point, seed=seed, split="tune") for one in chosen]
    for training in again:
        end = training.member.beside(END)
        if end.is_file():
            write_json(training.member.beside(BARS), {})
            end.replace(training.member.beside("pruned.json"))
    trainings.train([training.member for training in again])
    outcomes = {one.number: one.outcome for one in told if one.outcome.state == "complete"}
    outcomes |= {
        one.number: read_outcome(training) for one, training in zip(chosen, again, strict=True)
    }
    last = candidate.checks[-1]
    both = {n: o for n, o in outcomes.items() if o.score is not None and last in o.reports}
    return Audit(
        last_check={n: o.reports[last] for n, o in both.items()},
        final={n: float(o.score) for n, o in both.items() if o.score is not None},
        audited=tuple(one.number for one in chosen),
        spent={
            key: sum(
                getattr(outcomes[one.number], key) - getattr(one.outcome, key) for one in chosen
            )
            for key in ("tokens", "flops", "seconds")
        },
    )
