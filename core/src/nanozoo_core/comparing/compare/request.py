"""What the user asked `nanozoo compare` for, read from its key=value arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanozoo_core.config.compose import SETTINGS
from nanozoo_core.errors import Problems, suggest

UNITS = ("steps", "tokens", "bytes", "flops", "seconds")
KEYS = ("models", "budget", "seeds", "jobs", "folder", "match", "runs")
RESERVED = {
    "model": "the models are those of models=",
    "seed": "the seeds are those of seeds=",
    "resume": "a comparison resumes its own runs; give the same command again",
    "run_dir": "the runs lie under folder=",
}
USAGE = (
    "nanozoo compare models=gpt2,vanilla budget=bytes:2e6 seeds=2 [jobs=1] [folder=PATH] "
    "[match=gpt2|PARAMETERS] [runs=RUN,RUN] [key=value ...] [MODEL.key=value ...] "
    "[hydra/launcher=NAME]"
)


@dataclass(frozen=True)
class Entrant:
    """One line of the table: a model, or a recipe file, under a name of its own."""

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


@dataclass(frozen=True)
class Request:
    """The parsed command; `budget` is (unit, amount), or None for each model's own."""

    entrants: tuple[Entrant, ...]
    folder: Path
    budget: tuple[str, float] | None = ("bytes", 2e6)
    seeds: tuple[int, ...] = (0, 1)
    jobs: int = 1
    match: str | None = None
    runs: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    words: tuple[str, ...] = field(default=(), compare=False)

    @property
    def command(self) -> str:
        """The command to type for the same comparison."""
        return shlex.join(["nanozoo", "compare", *self.words])


def parse(words: Sequence[str]) -> Request:
    """Reads the arguments of `nanozoo compare`.

    Raises: ConfigError with a sentence for every argument that makes no sense.
    """
    problems = Problems()
    own, others = split_words(words, KEYS, USAGE, problems)
    launcher = [word for word in others if word.startswith("hydra")]
    shared = [word for word in others if word not in launcher]
    problems.require(
        "models" in own or "runs" in own,
        f"nothing to compare: give models=A,B or runs=RUN,RUN; usage: {USAGE}",
    )
    names = split_list(own.get("models", ""))
    entrants, general = parse_entrants(names, shared, problems, keys=KEYS, reserved=RESERVED)
    budget = _budget(own.get("budget", "bytes:2e6"), problems)
    seeds = _seeds(own.get("seeds", "2"), problems)
    jobs = whole_number(own.get("jobs", "1"), "jobs", problems)
    problems.raise_if_any()
    folder = own.get("folder", f"runs/compare/{_budget_name(budget)}")
    return Request(
        entrants=tuple(entrants),
        folder=Path(folder),
        budget=budget,
        seeds=tuple(seeds),
        jobs=jobs,
        match=own.get("match"),
        runs=tuple(Path(run) for run in split_list(own.get("runs", ""))),
        overrides=tuple(general),
        launcher=tuple(launcher),
        words=tuple(words),
    )


def split_words(
    words: Sequence[str], keys: Sequence[str], usage: str, problems: Problems
) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own `keys`, and all other key=value words."""
    own: dict[str, str] = {}
    others: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            problems.add(f"'{word}' is not key=value; usage: {usage}")
        elif key in keys:
            own[key] = value
        else:
            others.append(word)
    return own, others


def split_list(value: str) -> list[str]:
    return [part.strip() for part in value.strip("[]").split(",") if part.strip()]


def parse_entrants(
    names: Sequence[str],
    overrides: Sequence[str],
    problems: Problems,
    *,
    keys: Sequence[str],
    reserved: Mapping[str, str],
) -> tuple[list[Entrant], list[str]]:
    """The entrants with their own overrides, and the overrides of all.

    Args: keys: the command's own; reserved: settings that it refuses, and why.
    """
    found: dict[str, Entrant] = {}
    for name in names:
        label, colon, target = name.partition(":")
        target = target if colon else label
        recipe = Path(target) if target.endswith((".yaml", ".yml")) else None
        label = label if colon else Path(label).stem
        if not re.fullmatch(r"[A-Za-z0-9_-]+", label):
            problems.add(f"models: '{label}' must be letters, digits, _ and -")
        if label in SETTINGS:
            problems.add(f"models: '{label}' is the name of a setting; write another:{target}")
        if label in found:
            problems.add(
                f"models: '{label}' stands there twice; name a variant, as in "
                f"models={label},wide:{label} wide.model_cfg.model_dim=256"
            )
        model = None if recipe is not None else target
        found[label] = Entrant(label, model=model, recipe=recipe)
    general: list[str] = []
    own: dict[str, list[str]] = {label: [] for label in found}
    for override in overrides:
        key, _, value = override.partition("=")
        head, _, rest = key.lstrip("+").partition(".")
        if head in own:
            own[head].append(f"{rest}={value}")
        elif head in reserved:
            problems.add(f"'{override}': {reserved[head]}")
        elif head in SETTINGS:
            general.append(override)
        else:
            near = suggest(head, [*keys, *own, *SETTINGS])
            problems.add(
                f"'{override}': no setting and none of the models is called '{head}'{near}"
            )
    return [
        Entrant(e.label, model=e.model, recipe=e.recipe, overrides=tuple(own[e.label]))
        for e in found.values()
    ], general


def _budget(text: str, problems: Problems) -> tuple[str, float] | None:
    if text == "own":
        return None
    unit, _, amount = text.partition(":")
    try:
        number = float(amount)
    except ValueError:
        number = 0.0
    if unit not in UNITS or not number > 0:
        problems.add(
            f"budget={text} must be UNIT:AMOUNT with UNIT one of {', '.join(UNITS)}, as in "
            f"budget=bytes:2e6, or own for each model's own budget{suggest(unit, UNITS)}"
        )
        return None
    return unit, number


def _budget_name(budget: tuple[str, float] | None) -> str:
    return "own" if budget is None else f"{budget[0]}_{budget[1]:g}".replace("+", "")


def _seeds(text: str, problems: Problems) -> list[int]:
    """`3` is three seeds from 0; `[4]` and `4,5` are those seeds."""
    try:
        if "," in text or text.startswith("["):
            seeds = [int(part) for part in split_list(text)]
        else:
            seeds = list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        problems.add(f"seeds={text} must be a number of seeds, or a list as in seeds=3,4,5")
    return seeds


def whole_number(text: str, key: str, problems: Problems) -> int:
    if not text.isdigit() or int(text) < 1:
        problems.add(f"{key}={text} must be a whole number of at least 1")
        return 1
    return int(text)
