"""What a model says of itself to `nanozoo tune`: the section `tune` of its YAML."""

from __future__ import annotations

from dataclasses import dataclass

from nanozoo_core.errors import Problems, suggest

MOST_OWN_KEYS = 3
SHARED_KEYS = (
    *("matrix_lr", "lr", "embedding_ratio", "head_ratio", "vector_ratio", "batch_tokens", "warmup"),
    *("decay_fraction", "has_weight_decay", "weight_decay", "one_minus_beta2"),
)
"""What a search tries for every model, by the names under which a range is moved."""
SECTIONS = ("model_cfg", "optim", "train")
"""Where a model's own keys may stand."""


@dataclass(frozen=True)
class RangeConfig:
    low: float
    """The lowest value that is tried."""
    high: float
    """The highest."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require(self.low < self.high, f"low={self.low} must be below high={self.high}")
        p.raise_if_any()


@dataclass(frozen=True)
class OwnKeyConfig:
    key: str
    """The setting, such as model_cfg.target_ratio."""
    low: float | None = None
    """The lowest value that is tried."""
    high: float | None = None
    """The highest."""
    log: bool = False
    """Whether a factor counts, not a difference."""
    whole: bool = False
    """Whether only whole numbers are tried."""
    choices: list[int | float | str | bool] | None = None
    """The values that are tried, in place of a range."""
    default: int | float | str | bool | None = None
    """What stands for null, where the setting is that."""

    def __post_init__(self) -> None:
        p = Problems()
        section, dot, _ = self.key.partition(".")
        p.require(
            bool(dot) and section in SECTIONS,
            f"key={self.key} must be a setting of {', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}, "
            f"such as model_cfg.dropout{suggest(section, SECTIONS)}",
        )
        is_range = self.low is not None and self.high is not None and self.low < self.high
        p.require(
            is_range if self.choices is None else self.low is None and self.high is None,
            f"key={self.key} needs either low and high, the lower first, or choices",
        )
        p.require(
            self.choices is None or len(self.choices) >= 2,
            f"key={self.key} has choices={self.choices}, but needs at least two of them",
        )
        p.require(
            not self.log or (self.low is not None and self.low > 0),
            f"key={self.key} has log=true, which needs low above 0 and not {self.low}",
        )
        p.raise_if_any()


@dataclass(frozen=True)
class TuneConfig:
    keys: dict[str, OwnKeyConfig]
    """Settings that a search tries for this model alone, by names of one's own; three at most."""
    ranges: dict[str, RangeConfig]
    """Ranges of the shared keys that are others for this model."""
    prune: bool
    """Whether a search may end a run of this model early by its score on the way."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require(
            len(self.keys) <= MOST_OWN_KEYS,
            f"tune.keys has {len(self.keys)} keys ({', '.join(self.keys)}), but a model may have "
            f"{MOST_OWN_KEYS} of its own: a larger space is searched worse with as many trials",
        )
        for name in self.keys:
            p.require(
                name.isidentifier() and name not in SHARED_KEYS,
                f"tune.keys.{name}: a name must be of letters, digits and _, and none of the "
                f"shared keys, whose range tune.ranges.{name} moves",
            )
        for name in self.ranges:
            p.require(
                name in SHARED_KEYS,
                f"tune.ranges.{name} is none of the shared keys {', '.join(SHARED_KEYS)}"
                f"{suggest(name, SHARED_KEYS)}",
            )
        p.raise_if_any()
