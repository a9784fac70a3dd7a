"""The scores of finished runs as arrays for the fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanozoo_core.comparing.compare.plan import Member
from nanozoo_core.comparing.scale.plan import Cell, Place
from nanozoo_core.comparing.scale.scores import Scores
from nanozoo_core.errors import CheckpointError, NonFiniteError
from nanozoo_core.training.run_folder import RunFolder

NUMBERS = ("train_tokens", "train_bytes", "train_flops", "train_seconds", "val_bpb")


@dataclass(frozen=True)
class Collected:
    """What of a ladder is there."""

    scores: dict[str, Scores]
    """By label, of all models with a finished run."""
    texts: dict[str, tuple[str, int]]
    """What was scored: the fingerprint of the data, and bytes."""
    missing: tuple[str, ...]
    """A sentence for each run that has diverged or is not there."""


def collect(places: Sequence[Place], members: Mapping[tuple[Cell, int], Member]) -> Collected:
    """Reads the results of all members that are done. Raises: CheckpointError for one that is
    damaged."""
    scores: dict[str, Scores] = {}
    texts: dict[str, tuple[str, int]] = {}
    missing: list[str] = []
    for label in dict.fromkeys(place.label for place in places):
        rows: list[tuple[Place, float, int, dict[str, Any]]] = []
        own = {place.rung.name: place for place in places if place.label == label}
        for (cell, seed), member in members.items():
            if cell[0] != label or cell[1] not in own:
                continue
            try:
                result = RunFolder(member.folder).read_result()
            except NonFiniteError as error:
                missing.append(f"{member.name}: {error}")
            except CheckpointError:
                missing.append(f"{member.name} is not trained")
            else:
                rows.append((own[cell[1]], cell[2], seed, result))
        if rows:
            rows.sort(key=lambda row: (row[0].size.counts.n, row[2], row[1]))
            scores[label] = _scores(label, rows)
            first = rows[0][3]
            texts[label] = str(first["data_fingerprint"]), int(first["val_bytes"])
    return Collected(scores, texts, tuple(missing))


def _scores(label: str, rows: Sequence[tuple[Place, float, int, dict[str, Any]]]) -> Scores:
    places, budgets, seeds, results = zip(*rows, strict=True)
    tokens, text, flops, seconds, loss = (
        np.array([float(result[key]) for result in results]) for key in NUMBERS
    )
    return Scores(
        model=label,
        rung=tuple(place.rung.name for place in places),
        budget=budgets,
        seed=seeds,
        n=np.array([place.size.counts.n for place in places]),
        tokens=tokens,
        unique=places[0].unique_tokens,
        flops=flops,
        seconds=seconds,
        bytes=text,
        loss=loss,
        branched=places[0].branched,
        is_bound=results[0]["val_bound"] == "upper",
    )
