"""From a request to its runs: each model at each rung it can be matched at, with its budgets, seeds
and cost, before anything is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.plan import Member, make_plan, write_plan
from nanozoo_core.comparing.compare.request import Request as CompareRequest
from nanozoo_core.comparing.entrants import Entrant, named
from nanozoo_core.comparing.scale import budgets, counting
from nanozoo_core.comparing.scale.carry import carried_rates
from nanozoo_core.comparing.scale.ladder import Rung, Size, at_rung, rung_of
from nanozoo_core.comparing.scale.request import Request
from nanozoo_core.config import ResolvedConfig, schema
from nanozoo_core.data.prepare import AnyData, MixedData, PreparedData, prepare
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import write_json
from nanozoo_core.training.plan import plan_run

TOKENS_PER_WEIGHT = 20
MANY_TOKENS = 25e6  # from where a rung gets half as many for each weight

Cell = tuple[str, str, float]
"""Label, rung and budget of a run, beside its seed."""


@dataclass(frozen=True)
class Place:
    """A model at a rung."""

    label: str
    size: Size
    unique_tokens: float
    bytes_per_token: float
    step_tokens: float
    step_flops: float
    steps: dict[float, int]
    """By budget."""
    branched: bool
    first: ResolvedConfig
    """With the learning rates of the model's own width."""
    factor: float = 1.0
    """Of all rates beyond the rule that carries them, where a check of them has found one."""

    @property
    def rung(self) -> Rung:
        return self.size.rung

    @property
    def rates(self) -> list[str]:
        """Overrides that carry the learning rates to this width."""
        return carried_rates(self.first, _width_ratio(self.first, self.size), self.factor)

    @property
    def bill_flops(self) -> float:
        """Of one seed."""
        steps = [*self.steps.values()]
        return self.step_flops * budgets.bill(steps, branched=self.branched)

    @property
    def alone_flops(self) -> float:
        """Of one seed, were no run a branch of another."""
        return self.step_flops * sum(self.steps.values())


@dataclass(frozen=True)
class Ladder:
    """All places, the control's first, and a sentence for each that there is none of."""

    places: tuple[Place, ...]
    dropped: tuple[str, ...]

    def of(self, label: str) -> list[Place]:
        return [place for place in self.places if place.label == label]


def make_ladder(request: Request) -> Ladder:
    """Raises: ConfigError for settings that a model refuses, each problem with the model's name, or
    where the control itself has no such rung."""
    rungs = [rung_of(name) for name in request.rungs]
    if len({rung.body for rung in rungs}) < len(rungs):
        shapes = ", ".join(f"{rung.name} {rung.num_layers} x {rung.model_dim}" for rung in rungs)
        raise ConfigError(
            f"rungs={','.join(request.rungs)} must be sizes of different shapes; two of them are "
            f"the same (layers x width): {shapes}"
        )
    data: dict[str, AnyData] = {}
    places: list[Place] = []
    dropped: list[str] = []
    problems: list[str] = []
    text: dict[str, float] = {}  # bytes of each rung's whole budget
    targets: dict[str, float] = {}
    for entrant in request.entrants:
        is_control = entrant == request.control
        try:
            first = request.resolve(entrant)
        except ConfigError as error:
            problems += named(entrant.label, error)
            continue
        of_text = _data_of(first, data)
        for number, rung in enumerate(rungs):
            target = targets.get(rung.name, float(rung.body))
            try:
                size = at_rung(
                    partial(request.resolve, entrant),
                    rung,
                    match="body" if is_control else request.match,
                    target=target,
                )
            except ConfigError as error:
                dropped.append(f"{entrant.label} has no rung {rung.name}: {error}")
                continue
            size = replace(size, config=size.config.with_vocabulary(of_text.vocabulary.size))
            size = replace(size, counts=counting.count_at(size.config))
            if is_control:
                per_byte = of_text.bytes_per_token
                wanted = request.tokens[number] if request.tokens else _usual_tokens(size)
                text[rung.name] = wanted * per_byte
                if request.match == "flops":
                    targets[rung.name] = size.counts.flops_per_token
            if rung.name not in text:
                continue
            shares = _shares(request, number) if is_control else request.budgets
            places.append(_place(entrant, size, first, of_text, text[rung.name], shares))
        if is_control and len(places) < len(rungs):
            problems += [f"control={entrant.label}: {sentence}" for sentence in dropped]
    if problems:
        raise ConfigError(problems)
    return Ladder(tuple(places), tuple(dropped))


def _data_of(config: ResolvedConfig, known: dict[str, AnyData]) -> AnyData:
    """The prepared text, once for all models that read the same tokens."""
    key = json.dumps(schema.to_dict(config.training.data), sort_keys=True)
    if key not in known:
        known[key] = prepare(config.training.data)
    return known[key]


def _parts(data: AnyData) -> list[PreparedData]:
    """The sources of a mixture, or the one that there is."""
    return [part.data for part in data.parts] if isinstance(data, MixedData) else [data]


def _usual_tokens(size: Size) -> float:
    tokens = TOKENS_PER_WEIGHT * size.counts.n
    return tokens if tokens <= MANY_TOKENS else tokens / 2


def _shares(request: Request, number: int) -> tuple[float, ...]:
    """The control's budgets at a rung: scores of models that are better, or worse, than it at the
    ends of the ladder are within its reach too."""
    shares = request.budgets
    if number == 0:
        shares = (shares[0] / 2, *shares)
    if number == len(request.rungs) - 1:
        shares = (*shares, 2 * shares[-1])
    return shares


def _place(
    entrant: Entrant,
    size: Size,
    first: ResolvedConfig,
    data: AnyData,
    num_bytes: float,
    shares: Sequence[float],
) -> Place:
    """Args: first: with the rates of the model's own width. num_bytes: of text, the rung's whole
    budget."""
    config = size.config
    adapter = load_adapter(config.training.model)
    run = plan_run(config.training, adapter, config.model_cfg, bytes_per_token=data.bytes_per_token)
    tokens = num_bytes / data.bytes_per_token
    steps = {share: budgets.steps_for(share * tokens, run.step_tokens) for share in shares}
    return Place(
        label=entrant.label,
        size=size,
        unique_tokens=float(sum(part.train_tokens for part in _parts(data))),
        bytes_per_token=data.bytes_per_token,
        step_tokens=run.step_tokens,
        step_flops=run.step_flops,
        steps=steps,
        branched=len(run.stages) == 1 and adapter.is_branchable(config.model_cfg),
        first=first,
    )


def _width_ratio(first: ResolvedConfig, size: Size) -> float:
    """The width at a rung over the model's own; where it has no one width, the root of the weights
    of a layer."""
    widths = [getattr(one.model_cfg, "model_dim", None) for one in (size.config, first)]
    if all(isinstance(width, int) for width in widths):
        return float(widths[0] / widths[1])  # type: ignore[operator]
    layers = [getattr(one.model_cfg, "num_layers", None) for one in (size.config, first)]
    depth = layers[0] / layers[1] if all(isinstance(n, int) for n in layers) else 1.0  # type: ignore[operator]
    return math.sqrt(size.counts.body / counting.body(first, {}) / depth)


# -- runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A run, and those that leave it before its decay: (member, step at which it leaves)."""

    trunk: Member
    forks: tuple[tuple[Member, int], ...] = ()


def members_of(
    request: Request, places: Sequence[Place], seeds: Sequence[int]
) -> dict[tuple[Cell, int], Member]:
    """A member for each place, budget and seed, by cell and seed.

    Raises: ConfigError, CheckpointError as a comparison's plan.
    """
    entrants = {one.label: one for one in request.entrants}
    cells: dict[str, Cell] = {}
    found: list[Entrant] = []
    for place in places:
        own = entrants[place.label]
        shortest, whole = min(place.steps.values()), _whole_steps(request, place)
        for share, steps in place.steps.items():
            label = f"{place.label}.{place.rung.name}.{share:.6g}"
            cells[label] = (place.label, place.rung.name, share)
            more = budgets.schedule(place.size.config, steps, whole=whole, shortest=shortest)
            overrides = (*own.overrides, *place.size.overrides, *place.rates, *more)
            found.append(replace(own, label=label, overrides=overrides))
    members = as_members(request, found, seeds)
    return {(cells[member.label], member.seed): member for member in members}


def as_members(request: Request, entrants: Sequence[Entrant], seeds: Sequence[int]) -> list[Member]:
    """Runs whose whole budget and schedule stand in their own settings. Raises: ConfigError,
    CheckpointError as a comparison's plan."""
    members, _ = make_plan(
        CompareRequest(
            entrants=tuple(entrants),
            folder=request.folder,
            budget=None,
            seeds=tuple(seeds),
            jobs=request.jobs,
            overrides=request.overrides,
        )
    )
    return members


def _whole_steps(request: Request, place: Place) -> int:
    """Of the whole budget, which is 1 where the control has more."""
    return place.steps[max(share for share in place.steps if share <= request.budgets[-1])]


def families(
    places: Sequence[Place], members: dict[tuple[Cell, int], Member], seeds: Sequence[int]
) -> list[Family]:
    """In the order in which they are trained: place by place, so that an early stop leaves whole
    rows."""
    found = []
    for place in places:
        for seed in seeds:
            own = [
                (members[(place.label, place.rung.name, share), seed], steps)
                for share, steps in sorted(place.steps.items())
            ]
            if not place.branched:
                found += [Family(member) for member, _ in own]
                continue
            *short, (trunk, _) = own
            forks = tuple((member, budgets.branch_step(steps)) for member, steps in short)
            found.append(Family(trunk, forks))
    return found


def write_families(folder: Path, found: Sequence[Family]) -> Path:
    """The members as plan.json, and beside them as families.json the numbers of each family's."""
    order = [member for one in found for member in (one.trunk, *(fork for fork, _ in one.forks))]
    write_plan(folder, order)
    numbers = {member.folder: number for number, member in enumerate(order)}
    rows: list[dict[str, Any]] = [
        {
            "trunk": numbers[one.trunk.folder],
            "forks": [[numbers[fork.folder], step] for fork, step in one.forks],
        }
        for one in found
    ]
    path = folder / "families.json"
    write_json(path, rows)
    return path
