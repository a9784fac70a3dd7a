"""Errors that a user can act on, and the collector that reports all of them at once."""

from __future__ import annotations

import difflib
import errno
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class NanozooError(Exception):
    """A mistake the user can mend: printed as one sentence, without a traceback."""

    rank: int | None = None
    """Which process of several met it, where it is known."""
    unsaid: list[str] | None = None
    """The sentences that this process is to say, as no other does; None are all."""


class ConfigError(NanozooError, ValueError):
    """One or more settings are wrong; `problems` holds one sentence for each."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(NanozooError, ValueError):
    """A corpus, shard or tokenizer cannot be used as asked."""


class MissingDataError(DataError):
    """What data.path names is not there; `what` says so without advice."""

    def __init__(self, what: str, advice: str = "") -> None:
        self.what = what
        super().__init__(f"{what}; {advice}" if advice else what)


class CheckpointError(NanozooError, ValueError):
    """A run folder or checkpoint cannot be read, written or resumed."""


class OutOfMemoryError(NanozooError, MemoryError):
    """A device does not hold what was asked of it."""


class LostRankError(NanozooError):
    """Another process of the run has ended, or does not answer."""


class NonFiniteError(NanozooError, ArithmeticError):
    """A loss or gradient is NaN or infinite; the weights were not touched."""


class WriteError(NanozooError, OSError):
    """A file cannot be written, mostly since the disk is full; what was there before still is."""

    @classmethod
    def at(cls, path: Path, cause: OSError) -> WriteError:
        """The sentence for what the disk refused, with its errno."""
        advice = ""
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "; free some space"
        error = cls(f"{path} cannot be written: {cause.strerror or cause}{advice}")
        error.errno, error.strerror = cause.errno, cause.strerror
        return error

    def __str__(self) -> str:
        return str(self.args[0])


class Problems:
    """Collects the problems of one config and raises them together.

    Example of use in a config's `__post_init__`:

        problems = Problems()
        problems.require(self.top_k >= 1, f"model_cfg.top_k={self.top_k} must be >= 1")
        problems.raise_if_any()
    """

    def __init__(self) -> None:
        self._problems: list[str] = []

    def require(self, condition: bool, message: str) -> bool:
        """Records `message` unless `condition` holds; returns `condition`."""
        if not condition:
            self._problems.append(message)
        return condition

    def add(self, message: str) -> None:
        self._problems.append(message)

    def require_at_least(
        self, config: object, least: dict[str, int], *, or_null: bool = False
    ) -> None:
        """Records each setting of a model below its least value; null passes with `or_null`."""
        for key, bound in least.items():
            value = getattr(config, key)
            self.require(
                (or_null and value is None) or value >= bound,
                f"model_cfg.{key}={value} must be at least {bound}{' or null' if or_null else ''}",
            )

    def take_preset(
        self,
        config: object,
        preset: str | None,
        published: Mapping[str, object],
        defaults: Mapping[str, object],
    ) -> None:
        """Fills every setting of `config` that is null: from what the preset publishes, else from
        `defaults`; records each other that contradicts the preset."""
        for key, value in {**defaults, **published}.items():
            mine = getattr(config, key)
            if mine is None:
                object.__setattr__(config, key, value)
            elif key in published:
                self.require(
                    mine == value,
                    f"model_cfg.{key}={show_value(mine)} contradicts model_cfg.preset={preset}, "
                    f"which has {show_value(value)}; leave out one of the two",
                )

    def require_heads(self, num_heads: int, model_dim: int) -> bool:
        """Records heads that do not divide the width; returns whether they do, which for sizes
        below 1, a problem of its own, is no."""
        if num_heads < 1 or model_dim < 1:
            return False
        return self.require(
            model_dim % num_heads == 0,
            f"model_cfg.num_heads={num_heads} does not divide model_cfg.model_dim={model_dim}; "
            f"use {divisors(model_dim)}",
        )

    def require_rotary_heads(self, num_heads: int, model_dim: int) -> bool:
        """As `require_heads`; records odd widths too, which rotary positions cannot turn."""
        if not self.require_heads(num_heads, model_dim):
            return False
        width = model_dim // num_heads
        advice = "an even model_cfg.model_dim" if model_dim % 2 else divisors(model_dim // 2)
        return self.require(
            width % 2 == 0,
            f"model_cfg.num_heads={num_heads} makes heads of odd width {width}, which rotary "
            f"positions cannot turn; use {advice}",
        )

    def require_mlp(self, config: Any) -> None:
        """Records an MLP without a channel."""
        self.require(
            config.mlp_ratio > 0 and int(config.mlp_ratio * config.model_dim) >= 1,
            f"model_cfg.mlp_ratio={config.mlp_ratio} must be positive and leave at least one "
            "channel",
        )

    def require_stack(self, config: Any) -> None:
        """Records sizes of which no stack of control blocks can be made."""
        self.require_at_least(config, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        self.require_at_least(config, {"num_layers": 1, "num_heads": 1, "model_dim": 1})
        self.require_rotary_heads(config.num_heads, config.model_dim)
        self.require_mlp(config)

    def raise_if_any(self) -> None:
        """Raises: ConfigError with every message recorded so far."""
        if self._problems:
            raise ConfigError(self._problems)


def show_value(value: object) -> str:
    """A setting as one would type it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def suggest(name: str, valid: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says, shortly; its class where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def divisors(number: int) -> str:
    """Names the divisors of `number`, for messages about a value that must divide another."""
    found = [str(d) for d in all_divisors(number)]
    return ", ".join(found) if len(found) <= 8 else ", ".join(found[:8]) + ", ..."


def all_divisors(number: int) -> list[int]:
    """Those of a positive number, ascending; of one above 10^12, those up to 10^6 and itself."""
    root = math.isqrt(number)
    low = [d for d in range(1, min(root, 10**6) + 1) if number % d == 0]
    if root > 10**6:
        return [*low, number]
    return low + [number // d for d in reversed(low) if d * d != number]
