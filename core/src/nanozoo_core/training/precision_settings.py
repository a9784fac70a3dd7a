"""What the choice of a CPU's precision leaves in a run's settings. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def undecided(
    stored: dict[str, Any],
    asked: dict[str, Any],
    *,
    keys: Sequence[str] = ("dtype", "attention_form"),
) -> dict[str, Any]:
    """The settings of a run with `auto` again where `asked` has it and a choice has replaced it, to
    compare the two. Args: both have the keys of `TrainingConfig`; of the first ones `keys`."""
    for key in keys:
        if asked.get(key) == "auto":
            stored = stored | {key: "auto"}
    muon, theirs = (settings["optim"]["muon"] for settings in (stored, asked))
    if theirs["orth_dtype"] == "auto":
        stored = stored | {"optim": stored["optim"] | {"muon": muon | {"orth_dtype": "auto"}}}
    return stored
