"""The models of a search, each with its space, and the settings that a trial of one means."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nanozoo_core.comparing.compare.plan import Member, kept_settings, make_member
from nanozoo_core.comparing.compare.request import Request
from nanozoo_core.comparing.compare.width import count
from nanozoo_core.comparing.entrants import Entrant, named
from nanozoo_core.comparing.tune import pruning
from nanozoo_core.comparing.tune.request import TuneRequest
from nanozoo_core.comparing.tune.space import Dimension, Point, Space, make_space
from nanozoo_core.config import ResolvedConfig, schema
from nanozoo_core.config.overrides import as_written
from nanozoo_core.data.prepare import AnyData, prepare
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.memory import addressable
from nanozoo_core.machine.terminal import say
from nanozoo_core.training.plan import RunPlan, plan_run

TOLERANCE = 0.02  # by which an own key may move parameters or FLOPs per token
FEWEST_STEPS_TO_PRUNE = 5 * pruning.GRID  # so that reports lie at equal shares of the budget
WITHOUT_WEIGHTS = ("checkpoint.keep=1", "log.tensorboard=false")


@dataclass(frozen=True)
class Candidate:
    """An entrant whose settings are searched."""

    request: Request
    entrant: Entrant
    config: ResolvedConfig
    """Its committed recipe within the budget."""
    space: Space
    data: AnyData
    tokens: float
    """Of the committed recipe's run."""
    flops: float
    checks: range
    """The reports after which a trial may end early."""
    note: str = ""
    """Why none may, where the request allows it."""
    limit: tuple[str, ...] = field(default=())
    """Overrides that give every batch size the same tokens, where the budget is in steps."""

    @property
    def label(self) -> str:
        return self.entrant.label

    def settings(self, number: int, point: Point) -> tuple[tuple[str, ...], ResolvedConfig, int]:
        """The overrides of a trial, the settings that they make, and its steps.

        The first trial is the committed recipe itself.

        Raises: ConfigError where the model does not take them.
        """
        overrides = (*self.limit, *(self.space.overrides(point) if number else ()))
        config = self._resolve(overrides)
        steps = _plan(config, self.data).budget.steps
        assert steps is not None
        if number and "warmup" in point:  # whole steps: a share would depend on the budget
            overrides = (*overrides, f"optim.warmup={max(1, round(point['warmup'] * steps))}")
            config = self._resolve(overrides)
        return overrides, config, steps

    def member(
        self, number: int, point: Point, *, seed: int, split: str, reports: bool = True
    ) -> Training:
        """The training of a trial. Args: split: that scores it. reports: whether it is scored on
        the way as well. Raises: ConfigError as `settings`."""
        overrides, _, steps = self.settings(number, point)
        every = report_every(steps) if reports else 0
        scored = (f"eval.split={split}", f"eval.every={every}", *WITHOUT_WEIGHTS)
        suffix = "" if split == "tune" else f".{split}"
        entrant = replace(
            self.entrant,
            label=f"{self.label}.t{number:02d}{suffix}",
            overrides=(*self.entrant.overrides, *overrides, *scored),
        )
        config = self.request.resolve(entrant)
        return Training(make_member(self.request, entrant, config.training, seed), config, steps)

    def identity(self) -> dict[str, Any]:
        """All of it that decides what a search does."""
        return {
            "settings": kept_settings(as_written(schema.to_dict(self.config.training))),
            "space": {
                d.name: {"low": d.low, "high": d.high, "log": d.log, "choices": list(d.choices)}
                for d in self.space.dimensions
            },
            "tokens": self.tokens,
            "checks": [self.checks.start, self.checks.stop],
        }

    def _resolve(self, overrides: tuple[str, ...]) -> ResolvedConfig:
        own = (*self.entrant.overrides, *overrides)
        return self.request.resolve(replace(self.entrant, overrides=own))


@dataclass(frozen=True)
class Training:
    """One training of a trial."""

    member: Member
    config: ResolvedConfig
    steps: int


def report_every(steps: int) -> int:
    """Steps between two reports of a run."""
    return max(1, round(steps / pruning.GRID))


def _plan(config: ResolvedConfig, data: AnyData) -> RunPlan:
    sized = config.with_vocabulary(data.vocabulary.size)
    return plan_run(
        sized.training,
        load_adapter(sized.training.model),
        sized.model_cfg,
        bytes_per_token=data.bytes_per_token,
    )


def make_candidates(request: TuneRequest) -> list[Candidate]:
    """Every entrant with its space; the data of all are prepared.

    Raises: ConfigError for settings that a model refuses, each problem with the model it belongs
        to; DataError.
    """
    found, problems = [], []
    for entrant in request.base.entrants:
        try:
            found.append(_candidate(request, entrant))
        except ConfigError as error:
            problems += named(entrant.label, error)
    if problems:
        raise ConfigError(problems)
    return found


def _candidate(request: TuneRequest, entrant: Entrant) -> Candidate:
    base = request.base
    config = base.resolve(entrant)
    data = prepare(config.training.data, progress=say)
    for split in ("tune", "test"):
        data.validation_texts(config.training.eval.bytes, split)  # an error now is better than late
    plan = _plan(config, data)
    limit: tuple[str, ...] = ()
    if base.budget is not None and base.budget[0] == "steps":
        limit = ("train.max_steps=null", f"train.max_tokens={plan.tokens:.0f}")
        config = base.resolve(replace(entrant, overrides=(*entrant.overrides, *limit)))
    adapter = load_adapter(config.training.model)
    space = make_space(
        config.training, which=request.space, tokens=plan.tokens, roles=_roles(adapter, config)
    )
    _check_own_keys(adapter, config, space)
    checks, note = _checks(request, config, space, plan.budget.steps or 0)
    return Candidate(
        base, entrant, config, space, data, plan.tokens, plan.flops, checks, note, limit
    )


def _roles(adapter: DefaultModelAdapter, config: ResolvedConfig) -> list[str]:
    with torch.device("meta"), addressable(config.training.model):
        model = adapter.make_model(config.model_cfg)
    return sorted(set(adapter.parameter_roles(model).values()))


def _checks(
    request: TuneRequest, config: ResolvedConfig, space: Space, steps: int
) -> tuple[range, str]:
    """The reports after which a trial may end early, and why there are none."""
    none = range(0)
    if not request.is_pruned:
        return none, ""
    if not config.training.tune.prune:
        return none, "the model's YAML says that its curves cross late (tune.prune=false)"
    largest = max((d.choices[-1] for d in space.dimensions if d.name == "batch_tokens"),
                  default=config.training.train.batch_tokens)  # fmt: skip
    fewest = steps * config.training.train.batch_tokens / float(largest)
    if fewest < FEWEST_STEPS_TO_PRUNE:
        return none, f"runs of {fewest:.0f} steps are too short for reports at equal shares"
    found = pruning.checks(longest_warmup=space.longest_warmup, longest_decay=space.longest_decay)
    return found, "" if found else "its warm-up and its decay leave no room for a check"


def _check_own_keys(adapter: DefaultModelAdapter, config: ResolvedConfig, space: Space) -> None:
    """Raises: ConfigError for a declared key that makes a model of another size or cost."""

    def cost(of: ResolvedConfig) -> dict[str, float]:
        seq_len = of.training.data.seq_len
        flops = adapter.flops_per_token(of.model_cfg, seq_len)
        return {"parameters": count(of, {}), "FLOPs per token": flops}

    own = [d for d in space.dimensions if d.is_own and _of_model(space, d)]
    before = cost(config) if own else {}
    for dimension in own:
        key = space.own[dimension.name].key
        places = range(len(dimension.choices)) if dimension.choices else (
            dimension.low, dimension.high)  # fmt: skip
        for place in places:
            value = dimension.value(place)
            changed = _with_model_value(config, key, value)
            for what, now in cost(changed).items():
                change = abs(now / before[what] - 1)
                if change > TOLERANCE:
                    raise ConfigError(
                        f"tune.keys.{dimension.name}: {key}={value} changes the {what} by "
                        f"{change:.1%}, but {TOLERANCE:.0%} is the most: a search may not choose "
                        "another model"
                    )


def _of_model(space: Space, dimension: Dimension) -> bool:
    return space.own[dimension.name].key.startswith("model_cfg.")


def _with_model_value(config: ResolvedConfig, key: str, value: object) -> ResolvedConfig:
    """Settings with one of the model's changed."""
    from nanozoo_core.config.resolved import resolve

    values = json.loads(json.dumps(schema.to_dict(config.training)))
    section: dict[str, Any] = values["model_cfg"]
    *path, last = key.split(".")[1:]
    for part in path:
        section = section[part]
    section[last] = value
    return resolve(values)
