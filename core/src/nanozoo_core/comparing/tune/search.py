"""The rounds of a search: a batch of each study, trained together, and told when all have ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nanozoo_core.comparing.tune.study import Outcome, Study, Trial

Round = Mapping[str, Sequence[Trial]]
"""The trials to train, by the name of their study."""
Train = Callable[[Round], Mapping[str, Mapping[int, Outcome]]]
"""Trains all trials of a round; returns how each ended, by study and number."""


def search(studies: Sequence[Study], train: Train, *, batch: int) -> None:
    """Goes through the rounds until every study has all its trials.

    All studies advance together, so that a search that is stopped has spent the same on each.

    Args: batch: trials of a study that are proposed at once, before the scores of any of them.
    """
    while True:
        asked = {study.name: study.ask(batch) for study in studies}
        asked = {name: trials for name, trials in asked.items() if trials}
        if not asked:
            return
        outcomes = train(asked)
        for study in studies:
            if study.name in asked:
                study.tell(dict(outcomes[study.name]))
