"""What the user asked `nanozoo scale` for, read from its key=value arguments."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from nanozoo_core.comparing.compare.request import OTHERS as COMPARE_OTHERS
from nanozoo_core.comparing.compare.request import RESERVED as COMPARE_RESERVED
from nanozoo_core.comparing.compare.request import read_seeds
from nanozoo_core.comparing.entrants import Entrant, compose_values, read_entrants
from nanozoo_core.comparing.options import Option, Words, usage
from nanozoo_core.comparing.scale.budgets import FIXED
from nanozoo_core.comparing.tune.provenance import undertuned
from nanozoo_core.config import ResolvedConfig
from nanozoo_core.config.overrides import Override
from nanozoo_core.errors import Problems

RUNGS = ("0.1", "0.3", "1", "2")
BUDGETS = ("1/8", "1/4", "1/2", "1")
CONTROL = "vanilla"
MOST_HOURS = 24.0
MOST_BEYOND = 3.0  # times the largest compute that was trained: an extrapolation may go so far
PLANS = ("full", "small")
MATCHES = ("body", "flops")  # the sizes of ladder.py
RATES = ("carried", "checked")
UNTUNED = ("refuse", "allow")
OPTIONS = (
    Option("models", "A,B", "models, recipe files, or variants NAME:MODEL with NAME.key=value"),
    Option("control", "C", f"the model that all are measured against ({CONTROL})"),
    Option("rungs", "X,Y", f"sizes, in million weights of the body ({','.join(RUNGS)})"),
    Option("budgets", "X,Y", f"shares of a rung's whole budget ({','.join(BUDGETS)})"),
    Option("tokens", "N,M", "the whole budget of each rung in tokens of the control (20 a weight)"),
    Option("seeds", "N", "how many seeds (2), or a list of them, such as 3,4,5"),
    Option("jobs", "N", "how many runs train at the same time (1) and share the CPU's threads"),
    Option("folder", "PATH", "where the runs and the report are written (runs/scale)"),
    Option(
        "recipes", "FOLDER", "recipe files MODEL.yaml, or MODEL-BUDGET.yaml as tune writes them"
    ),
    Option("plan", "full|small", "small: the top rung for the control and the best three alone"),
    Option("match", "body|flops", "what the models of a rung have in common (body)"),
    Option("rates", "carried|checked", "checked: try half and twice the rates at the ends first"),
    Option("untuned", "refuse|allow", "whether a control with less tuning than a model may be one"),
    Option("hours", "N", f"begin although it may take so long; without it {MOST_HOURS:g} at most"),
    Option(
        "extrapolate",
        "X",
        f"draw frontiers to X times the largest compute, {MOST_BEYOND:g} at most (off)",
    ),
    Option("plan_only", "true", "print the plan and its cost, and train nothing"),
)
OTHERS = COMPARE_OTHERS[:1]  # without launchers: a trunk and its branches are one process
RESERVED = COMPARE_RESERVED | {"resume": "a ladder goes on by itself; give the same command again"}
DEFAULTS = ("data.vocab_size=1024", "eval.every=0", "checkpoint.every=500")
"""Of all models, before what the user sets: the head of a larger vocabulary would be most of a
small model, and nothing is chosen by a validation on the way."""


@dataclass(frozen=True)
class Request:
    """The parsed command."""

    entrants: tuple[Entrant, ...]
    """The control first."""
    rungs: tuple[str, ...]
    """From the smallest."""
    budgets: tuple[float, ...]
    tokens: tuple[float, ...]
    """Of the rungs; empty for the usual ones."""
    seeds: tuple[int, ...]
    jobs: int
    folder: Path
    match: str = "body"
    plan: str = "full"
    rates: str = "carried"
    hours: float = MOST_HOURS
    extrapolate: float | None = None
    """To how many times its largest compute a frontier is drawn; None is no further."""
    plan_only: bool = False
    overrides: tuple[str, ...] = ()
    words: tuple[str, ...] = field(default=(), compare=False)

    @property
    def command(self) -> str:
        return shlex.join(["nanozoo", "scale", *self.words])

    @property
    def control(self) -> Entrant:
        return self.entrants[0]

    def resolve(self, entrant: Entrant, more: Sequence[str] = ()) -> ResolvedConfig:
        """The settings of an entrant, with more behind its own. Raises: ConfigError."""
        words = [*self.overrides, *entrant.overrides, *more]
        return compose_values(words, model=entrant.model, recipe=entrant.recipe)


def parse(words: Sequence[str]) -> Request:
    """Reads the arguments of `nanozoo scale`.

    Raises: ConfigError with a sentence for every argument that makes no sense.
    """
    problems = Problems()
    given = Words.read("scale", OPTIONS, words, problems)
    names = given.parts("models")
    problems.require(
        bool(names), f"nothing to measure: give models=A,B; usage: {usage('scale', OPTIONS)}"
    )
    control = given.text("control", CONTROL)
    label = control.partition(":")[0]
    if not any(name.partition(":")[0] == Path(label).stem or name == control for name in names):
        given.own["models"] = Override("models", [control, *names], "")
    entrants, general = read_entrants(given, RESERVED)
    for override in (*general, *(word for one in entrants for word in one.overrides)):
        key = override.lstrip("+").partition("=")[0]
        problems.require(key not in FIXED, f"'{override}': {FIXED.get(key)}")
    entrants = [_with_recipe(one, given) for one in entrants]
    entrants.sort(key=lambda one: one.label != Path(label).stem)
    match, plan = given.one_of("match", MATCHES), given.one_of("plan", PLANS)
    rungs = _numbers(given, "rungs", RUNGS)
    tokens = _numbers(given, "tokens", ())
    problems.require(
        len(tokens) in (0, len(rungs)),
        f"tokens={given.text('tokens', '')} must be one number for each of the {len(rungs)} rungs",
    )
    plan_only = given.text("plan_only", "false")
    problems.require(plan_only in ("true", "false"), f"plan_only={plan_only} must be true or false")
    order = sorted(range(len(rungs)), key=lambda at: rungs[at][1])
    request = Request(
        entrants=tuple(entrants),
        rungs=tuple(rungs[at][0] for at in order),
        budgets=tuple(sorted(share for _, share in _numbers(given, "budgets", BUDGETS))),
        tokens=tuple(tokens[at][1] for at in order) if len(tokens) == len(rungs) else (),
        seeds=read_seeds(given),
        jobs=given.whole_number("jobs", 1),
        folder=given.path("folder", "runs/scale"),
        match=match,
        plan=plan,
        rates=given.one_of("rates", RATES),
        hours=given.positive("hours", MOST_HOURS) or MOST_HOURS,
        extrapolate=given.positive("extrapolate", None),
        plan_only=plan_only == "true",
        overrides=(*DEFAULTS, *general),
        words=tuple(words),
    )
    _check_tuning(given, request)
    beyond = request.extrapolate
    problems.require(
        beyond is None or 1 < beyond <= MOST_BEYOND,
        f"extrapolate={beyond} must be above 1 and at most {MOST_BEYOND:g}: tiny runs say nothing "
        f"of what lies further beyond them",
    )
    problems.raise_if_any()
    return request


def _check_tuning(given: Words, request: Request) -> None:
    """A problem where a model is tuned and the control is not, or less, unless that is allowed."""
    is_allowed = given.one_of("untuned", UNTUNED) == "allow"
    if is_allowed or not request.entrants:
        return
    control, *models = request.entrants
    less = undertuned(control.recipe, {one.label: one.recipe for one in models})
    given.problems.require(
        not less,
        f"{', '.join(less)}: the recipe is that of a search, and the control {control.label} had "
        f"less of it or none, which flatters the others; tune it by the same command, or give "
        f"untuned=allow",
    )


def _numbers(given: Words, key: str, default: Sequence[str]) -> list[tuple[str, float]]:
    """Distinct positive numbers, or fractions such as 1/8, as they were typed and as values; or a
    problem."""
    texts = given.parts(key, default)
    found = []
    for text in texts:
        try:
            value = float(Fraction(text))
        except (ValueError, ZeroDivisionError):
            value = 0.0
        if value > 0:
            found.append((text, value))
    if len(found) < len(texts) or len({value for _, value in found}) < len(found):
        given.problems.add(
            f"{key}={given.text(key, '')} must be positive numbers, none of them twice, as in "
            f"{key}={','.join(default or ('1e6', '2e6'))}"
        )
    return found


def _with_recipe(entrant: Entrant, given: Words) -> Entrant:
    """With the file of its name in recipes= where there is one."""
    if "recipes" not in given.own:
        return entrant
    folder = given.path("recipes", "")
    files = [*folder.glob(f"{entrant.label}.yaml"), *folder.glob(f"{entrant.label}-*.yaml")]
    if len(files) > 1:
        names = ", ".join(sorted(file.name for file in files))
        given.problems.add(
            f"recipes={folder} has {len(files)} recipes of {entrant.label}, {names}; leave one of "
            "them there"
        )
    return replace(entrant, model=None, recipe=files[0]) if files else entrant
