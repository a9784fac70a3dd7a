"""What is searched: the dimensions of a model's space, and the settings that a point in it means.

A dimension has an axis. A learning rate or another number stands on it as it is; one of several
choices stands there as its number, from 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nanozoo_core.config import OptimConfig, TrainingConfig
from nanozoo_core.config.tuning import OwnKeyConfig
from nanozoo_core.errors import ConfigError

Value = float | int | str | bool
Point = Mapping[str, float]
"""A place on the axis of each dimension, by its name."""

BATCHES = (1024, 2048, 4096, 8192, 16384)
FEWEST_STEPS = 200  # of a run, for a batch size to be tried
EDGE = 0.1  # of an axis: what lies so near to its ends is at the edge
OFF_SHARE = 0.3  # of the first points that have no weight decay
SPACES = ("core", "full")
ROLES = ("embedding", "head", "vector")


@dataclass(frozen=True)
class Dimension:
    """One axis. `default` is where the model's committed recipe stands on it."""

    name: str
    low: float
    high: float
    default: float
    log: bool = False
    whole: bool = False
    choices: tuple[Value, ...] = ()
    is_own: bool = False
    """Whether the model has declared it."""

    def at(self, share: float) -> float:
        """The place at a share of the axis, from 0 to below 1."""
        if self.name == "has_weight_decay":
            return float(share >= OFF_SHARE)
        if self.log:
            place = float(self.low * (self.high / self.low) ** share)
            return float(round(place)) if self.whole else place
        if self.whole:
            width = self.high - self.low + 1
            return self.low + min(math.floor(share * width), width - 1)
        return self.low + share * (self.high - self.low)

    def share(self, place: float) -> float:
        """Where a place lies between the ends, from 0 to 1."""
        if self.log:
            return math.log(place / self.low) / math.log(self.high / self.low)
        return (place - self.low) / (self.high - self.low)

    def is_at_edge(self, place: float) -> bool:
        """Whether a better place may lie beyond the ends. Choices of few values have none."""
        if self.choices and not all(isinstance(choice, int) for choice in self.choices):
            return False
        if self.name == "has_weight_decay":
            return False
        return not EDGE <= self.share(place) <= 1 - EDGE

    def value(self, place: float) -> Value:
        """What the setting is there."""
        if self.choices:
            return self.choices[round(place)]
        return round(place) if self.whole else place

    def show(self, place: float) -> str:
        value = self.value(place)
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    @property
    def range(self) -> str:
        """The ends, for people."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{self.show(self.low)} to {self.show(self.high)}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Space:
    """All dimensions of one search, and what is needed to make settings of a point."""

    dimensions: tuple[Dimension, ...]
    optim: OptimConfig
    """Of the committed recipe."""
    own: Mapping[str, OwnKeyConfig]

    @property
    def default(self) -> dict[str, float]:
        return {d.name: d.default for d in self.dimensions}

    def at(self, shares: Mapping[str, float]) -> dict[str, float]:
        """The point at shares of the axes, by their names."""
        return {d.name: d.at(shares[d.name]) for d in self.dimensions}

    def edges(self, point: Point) -> list[str]:
        """The dimensions on which a point lies at the edge of what was tried."""
        return [d.name for d in self.dimensions if d.is_at_edge(point[d.name])]

    @property
    def longest_warmup(self) -> float:
        """Share of a run; a recipe whose warm-up is in steps counts as having none."""
        tried = [d.high for d in self.dimensions if d.name == "warmup"]
        own = self.optim.warmup if self.optim.warmup < 1 else 0.0
        return max([own, *tried])

    @property
    def longest_decay(self) -> float:
        """Share of a run at its end in which some trial's rate falls; 1 where the schedule falls
        from the start."""
        if self.optim.schedule not in ("wsd", "constant"):
            return 1.0
        if self.optim.schedule == "constant":
            return 0.0
        tried = [d.high for d in self.dimensions if d.name == "decay_fraction"]
        return min(1.0, max([self.optim.decay_fraction, *tried]) + self.optim.hold_fraction)

    def overrides(self, point: Point) -> list[str]:
        """The settings of a point as overrides. A warm-up stays a share of the run here."""
        values = {d.name: d.value(point[d.name]) for d in self.dimensions}
        found: dict[str, Value] = {}
        self._rates(values, found)
        for name, key in (
            ("batch_tokens", "train.batch_tokens"),
            ("warmup", "optim.warmup"),
            ("decay_fraction", "optim.decay_fraction"),
        ):
            if name in values:
                found[key] = values[name]
        if "weight_decay" in values:
            section = "optim.muon" if self.optim.name == "muon" else "optim"
            found[f"{section}.weight_decay"] = (
                values["weight_decay"] if values["has_weight_decay"] else 0.0
            )
            if section == "optim.muon" and not values["has_weight_decay"]:
                found["optim.muon.wd_power"] = 1  # of no decay there is no power
        if "one_minus_beta2" in values:
            found["optim.adamw.beta2"] = 1 - float(values["one_minus_beta2"])
        for name, declared in self.own.items():
            found[declared.key] = values[name]
        return [f"{key}={_written(value)}" for key, value in found.items()]

    def _rates(self, values: Mapping[str, Value], found: dict[str, Value]) -> None:
        """The rates of the roles keep their ratio to the shared one where it is not searched."""
        if "matrix_lr" in values:
            found["optim.muon.lr"] = values["matrix_lr"]
        lr = float(values["lr"])
        found["optim.lr"] = lr
        for role in ROLES:
            own = getattr(self.optim.adamw, f"{role}_lr")
            ratio = values.get(f"{role}_ratio", None if own is None else own / self.optim.lr)
            if ratio is not None:
                found[f"optim.adamw.{role}_lr"] = lr * float(ratio)


def _written(value: Value) -> str:
    """A value as an override has it, numbers to the last digit."""
    return json.dumps(value) if not isinstance(value, float) else repr(value)


def make_space(config: TrainingConfig, *, which: str, tokens: float, roles: Sequence[str]) -> Space:
    """The space of a model whose committed recipe is `config`.

    Args: which: core or full. tokens: of a trial. roles: that the model's parameters have.
    Raises: ConfigError for an own key whose setting is not there, or holds no value to begin with.
    """
    optim = config.optim
    dimensions = [*_rate_dimensions(optim), *_batches(config, tokens)]
    if optim.schedule == "wsd":
        dimensions.append(Dimension("decay_fraction", 0.1, 0.5, optim.decay_fraction))
    if which == "full":
        dimensions += _further(config, roles, tokens)
    dimensions = [_moved(d, config) for d in dimensions]
    own = config.tune.keys
    dimensions += [_own(name, key, config) for name, key in own.items()]
    return Space(tuple(map(_with_default, dimensions)), optim, own)


def _rate_dimensions(optim: OptimConfig) -> list[Dimension]:
    if optim.name == "adamw":
        return [Dimension("lr", 3e-4, 1e-2, optim.lr, log=True)]
    matches_adamw = optim.muon.lr_scale == "match_rms_adamw"
    low, high = (3e-4, 1e-2) if matches_adamw else (3e-3, 0.1)
    matrix = Dimension("matrix_lr", low, high, optim.muon.lr, log=True)
    return [matrix, Dimension("lr", 1e-3, 3e-2, optim.lr, log=True)]


def _batches(config: TrainingConfig, tokens: float) -> list[Dimension]:
    """The batch sizes that leave a run enough steps, and the recipe's own."""
    own = config.train.batch_tokens
    fitting = [
        size
        for size in BATCHES
        if size % config.data.seq_len == 0 and tokens / size >= FEWEST_STEPS
    ]
    sizes = tuple(sorted({*fitting, own}))
    if len(sizes) == 1:
        return []
    last = len(sizes) - 1
    return [Dimension("batch_tokens", 0, last, sizes.index(own), whole=True, choices=sizes)]


def _further(config: TrainingConfig, roles: Sequence[str], tokens: float) -> list[Dimension]:
    """What `space=full` searches beside the core."""
    optim = config.optim
    spans = {"embedding": (0.3, 10.0), "head": (0.1, 3.0), "vector": (0.3, 3.0)}
    found = []
    for role in ROLES:
        if role in roles:
            own = getattr(optim.adamw, f"{role}_lr")
            ratio = 1.0 if own is None else own / optim.lr
            found.append(Dimension(f"{role}_ratio", *spans[role], ratio, log=True))
    warmup = optim.warmup
    if warmup >= 1:
        warmup = min(1.0, warmup * config.train.batch_tokens / tokens)
    if warmup > 0:
        found.append(Dimension("warmup", 0.005, 0.1, warmup, log=True))
    decay = optim.muon.weight_decay if optim.name == "muon" else optim.weight_decay
    found.append(
        Dimension("has_weight_decay", 0, 1, float(decay > 0), whole=True, choices=(False, True))
    )
    found.append(Dimension("weight_decay", 1e-3, 0.2, decay or 0.02, log=True))
    found.append(Dimension("one_minus_beta2", 1e-3, 0.1, 1 - optim.adamw.beta2, log=True))
    return found


def _moved(dimension: Dimension, config: TrainingConfig) -> Dimension:
    """With the range that the model has declared for it, if it has."""
    given = config.tune.ranges.get(dimension.name)
    if given is None:
        return dimension
    if dimension.choices:
        kept = tuple(c for c in dimension.choices if given.low <= float(c) <= given.high)
        own = dimension.choices[round(dimension.default)]
        sizes = tuple(sorted({*kept, own}, key=float))
        if len(sizes) == 1:
            raise ConfigError(
                f"tune.ranges.{dimension.name} from {given.low:g} to {given.high:g} leaves one "
                f"value alone; those that can be tried are {dimension.range}"
            )
        return replace(
            dimension, choices=sizes, high=len(sizes) - 1, default=float(sizes.index(own))
        )
    if dimension.log and given.low <= 0:
        raise ConfigError(f"tune.ranges.{dimension.name}.low={given.low} must be positive")
    return replace(dimension, low=given.low, high=given.high)


def _with_default(dimension: Dimension) -> Dimension:
    """With a range that holds the committed recipe: the first trial of every search."""
    low, high = (f(end, dimension.default) for f, end in
                 ((min, dimension.low), (max, dimension.high)))  # fmt: skip
    return replace(dimension, low=low, high=high)


def _own(name: str, declared: OwnKeyConfig, config: TrainingConfig) -> Dimension:
    """Raises: ConfigError."""
    now = committed(declared, config)
    where = f"tune.keys.{name}: {declared.key}"
    if declared.choices is not None:
        choices = tuple(declared.choices)
        if now not in choices:
            raise ConfigError(f"{where} is {now}, which is none of its choices {choices}")
        last = len(choices) - 1
        return Dimension(name, 0, last, choices.index(now), whole=True, choices=choices,
                         is_own=True)  # fmt: skip
    assert declared.low is not None
    assert declared.high is not None
    if isinstance(now, bool) or not isinstance(now, int | float):
        raise ConfigError(
            f"{where} is {now}, and so no number; give tune.keys.{name}.default, what it stands for"
        )
    if declared.log and now <= 0:
        raise ConfigError(f"{where} is {now}, which has no logarithm; leave out log=true")
    return Dimension(
        name, declared.low, declared.high, float(now), log=declared.log, whole=declared.whole,
        is_own=True,
    )  # fmt: skip


def committed(declared: OwnKeyConfig, config: TrainingConfig) -> object:
    """The value of a declared setting in the recipe, or what stands for null.

    Raises: ConfigError where there is no such setting.
    """
    section, *keys = declared.key.split(".")
    found: object = getattr(config, section)
    for key in keys:
        inside = found if isinstance(found, dict) else getattr(found, "__dict__", {})
        if key not in inside:
            raise ConfigError(f"tune.keys: {declared.key} is not a setting of {config.model}")
        found = inside[key]
    return declared.default if found is None else found
