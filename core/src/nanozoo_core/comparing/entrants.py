"""What takes part in a comparison or a benchmark: models, recipes, run folders and variants."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanozoo_core.comparing.options import Words
from nanozoo_core.config import ResolvedConfig, compose_config, resolve
from nanozoo_core.config.compose import SETTINGS
from nanozoo_core.errors import ConfigError, Problems, suggest
from nanozoo_core.machine.paths import require_path, shortened

LABEL = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class Entrant:
    """A model, or a recipe file, under a name of its own."""

    label: str
    model: str | None = None
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()

    @property
    def source(self) -> list[str]:
        """The flags with which `train` starts it."""
        if self.recipe is not None:
            return ["--config", str(self.recipe)]
        return ["--model", str(self.model)]


def compose_values(
    overrides: Sequence[str], *, model: str | None, recipe: Path | None
) -> ResolvedConfig:
    """The settings of a model's own YAML or of a recipe, with overrides.

    Raises: ConfigError for settings that do not fit.
    """
    first = [] if recipe is not None else [f"model={model}"]
    return resolve(compose_config([*first, *overrides], recipe=recipe))


def read_entrants(words: Words, reserved: Mapping[str, str]) -> tuple[list[Entrant], list[str]]:
    """The entrants of `models=` with their own overrides, and the overrides of all.

    Args: reserved: settings that the command refuses, and why.
    """
    problems = words.problems
    found: dict[str, Entrant] = {}
    for name in words.parts("models"):
        entrant = _entrant(name, found, problems)
        found[entrant.label] = entrant
    general: list[str] = []
    own: dict[str, list[str]] = {label: [] for label in found}
    for override in words.settings:
        key, _, value = override.partition("=")
        head, _, rest = key.lstrip("+").partition(".")
        if head in own and (mine := rest.partition(".")[0]) in reserved:
            problems.add(f"'{override}': {reserved[mine]}")
        elif head in own:
            own[head].append(f"{rest}={value}")
        elif head in reserved:
            problems.add(f"'{override}': {reserved[head]}")
        elif head in SETTINGS:
            general.append(override)
        else:
            near = suggest(head, [*(option.key for option in words.options), *own, *SETTINGS])
            problems.add(
                f"'{override}': no setting and none of the models is called '{head}'{near}"
            )
    entrants = [
        Entrant(e.label, model=e.model, recipe=e.recipe, overrides=tuple(own[e.label]))
        for e in found.values()
    ]
    return entrants, general


def _entrant(name: str, others: Mapping[str, Entrant], problems: Problems) -> Entrant:
    """One name of `models=`: MODEL, RECIPE.yaml, RUN or LABEL:ANY_OF_THESE."""
    label, colon, target = name.partition(":")
    target = target if colon else label
    recipe = Path(target) if target.endswith((".yaml", ".yml")) else None
    label = label if colon else Path(label).stem
    if not LABEL.fullmatch(label):
        problems.add(f"models: '{shortened(label)}' must be letters, digits, _ and -, at most 100")
    require_path(problems, "models", target)
    if label in SETTINGS:
        problems.add(f"models: '{label}' is the name of a setting; write another:{target}")
    if label in others:
        problems.add(
            f"models: '{label}' stands there twice; name a variant, as in "
            f"models={label},wide:{label} wide.model_cfg.model_dim=256"
        )
    return Entrant(label, model=None if recipe is not None else target, recipe=recipe)


def as_label(name: str) -> str:
    """A name from a file of somebody else as a label, which is a file's name too."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:100] or "model"


def labelled(text: str) -> tuple[str | None, Path]:
    """The name and the folder of a finished run, from RUN or NAME:RUN; a drive's letter is no
    name."""
    label, colon, run = text.partition(":")
    if colon and len(label) > 1 and LABEL.fullmatch(label) and not Path(text).exists():
        return label, Path(run)
    return None, Path(text)


def named(label: str, error: ConfigError) -> list[str]:
    """The problems of an entrant's settings, each with the entrant's name."""
    return [f"{label}: {problem}" for problem in error.problems]
