"""The recipe that a search found: a YAML file that `train --config` can run, with where it came
from in its first lines."""

from __future__ import annotations

import platform
from datetime import date
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.tune.confirm import Choice
from nanozoo_core.comparing.tune.provenance import MARK
from nanozoo_core.config import schema
from nanozoo_core.config.overrides import all_literal, as_written
from nanozoo_core.errors import WriteError
from nanozoo_core.files import write_text

SECTIONS = ("model_cfg", "data", "train", "optim")
"""What of the settings a recipe holds: all that trains the model, and nothing of its scoring."""


def recipe_text(choice: Choice, *, command: str, seed: int) -> str:
    """The file, with every setting of the training: it stays what it is when defaults change."""
    from omegaconf import OmegaConf

    _, config, _ = choice.candidate.settings(choice.number, choice.point)
    values = as_written(schema.to_dict(config.training))
    found: dict[str, Any] = {
        "defaults": ["training", {"override model": config.training.model}, "_self_"]
    }
    found |= {section: values[section] for section in SECTIONS}
    body: str = OmegaConf.to_yaml(OmegaConf.create(all_literal(found)))
    lines = provenance(choice, command=command, seed=seed)
    return "\n".join([*(f"# {line}" for line in lines), body])


def provenance(choice: Choice, *, command: str, seed: int) -> list[str]:
    """Where a recipe comes from, a line each."""
    first = choice.tuned.first
    told = choice.told
    tuned, committed = (
        ", ".join(f"{score:.4f}" for score in entry.bpbs)
        for entry in (choice.tuned, choice.committed)
    )
    return [
        f"Found by `nanozoo tune` on {date.today().isoformat()}, by the command",
        f"  {command}",
        f"trial {choice.number} of {len(told)} with seed {seed}; {choice.candidate.tokens:,.0f} "
        "tokens each",
        f"bits per byte on the test split, a seed each: {tuned}; the committed recipe: {committed}",
        f"data {first['data_fingerprint']}, commit {first.get('git_commit')}, "
        f"torch {first.get('torch')}, Python {platform.python_version()}",
        *(
            f"searched {d.name}: {d.range}; chosen {d.show(choice.point[d.name])}, "
            f"committed {d.show(d.default)}"
            for d in choice.candidate.space.dimensions
        ),
    ]


def write_recipe(folder: Path, budget: str, choice: Choice, *, command: str, seed: int) -> Path:
    """Writes MODEL-BUDGET.yaml. Raises: WriteError, also where a file lies there that no search
    wrote."""
    path = folder / f"{choice.candidate.label}-{budget}.yaml"
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(MARK):
        raise WriteError(
            f"{path} was not written by nanozoo tune; choose another recipes= or move it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, recipe_text(choice, command=command, seed=seed))
    return path
