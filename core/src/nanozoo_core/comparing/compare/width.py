"""Equal parameters: each entrant's width is scaled until its count is that of the target."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nanozoo_core.comparing.compare.request import Request
from nanozoo_core.comparing.entrants import Entrant
from nanozoo_core.config import ResolvedConfig, model_config
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.memory import addressable

TOLERANCE = 0.05
LARGEST_FACTOR = 64.0
HALVINGS = 14
NUDGES = (1.0, 1.04, 0.96, 1.1, 0.9)  # where a model refuses a width, one beside it


def match_widths(request: Request) -> tuple[tuple[Entrant, ...], dict[str, str]]:
    """The entrants with overrides that bring each to the parameters of `request.match`, and a
    sentence for each model that no width brings to within 5 percent.

    Raises: ConfigError for a target that is neither a number nor an entrant.
    """
    target = _target(request)
    matched, failures = [], {}
    for entrant in request.entrants:
        config = request.resolve(entrant)
        try:
            added = width_overrides(config, target)
        except ConfigError as error:
            failures[entrant.label] = str(error)
            continue
        matched.append(dataclasses.replace(entrant, overrides=(*entrant.overrides, *added)))
    return tuple(matched), failures


def _target(request: Request) -> float:
    text = str(request.match)
    for entrant in request.entrants:
        if entrant.label == text:
            return count(request.resolve(entrant), {})
    with contextlib.suppress(ValueError):
        if 1 <= float(text) < math.inf:
            return float(text)
    labels = ", ".join(entrant.label for entrant in request.entrants)
    raise ConfigError(f"match={text} must be a number of parameters or one of {labels}")


def count(config: ResolvedConfig, changes: dict[str, object]) -> float:
    """Parameters of a model with changed settings. Raises: ConfigError as `weightless`."""
    adapter, _, model = weightless(config, changes)
    return adapter.report(model)["params"]


def weightless(
    config: ResolvedConfig, changes: dict[str, object]
) -> tuple[DefaultModelAdapter, Any, nn.Module]:
    """The adapter, the config and the model of changed settings, without memory behind its weights.

    Raises: ConfigError when the model refuses them.
    """
    training = config.training
    adapter = load_adapter(training.model)
    model_cfg = model_config(
        training.model,
        training.model_cfg | changes,
        seq_len=training.data.seq_len,
        vocab_size=config.vocab_size,
    )
    with torch.device("meta"), addressable(f"{training.model} with {changes}"):
        model = adapter.make_model(model_cfg)
    return adapter, model_cfg, model


def width_overrides(
    config: ResolvedConfig,
    target: float,
    *,
    size: Callable[[ResolvedConfig, dict[str, object]], float] = count,
    unit: str = "parameters",
) -> list[str]:
    """Overrides of `model_cfg` whose size comes nearest to `target`; none where the model is within
    the tolerance as it is. Widths that the model refuses are passed over.

    Args: size: of changed settings; it raises ConfigError as `weightless`. unit: what it counts.

    Raises: ConfigError when the nearest is more than 5 percent off.
    """
    with contextlib.suppress(ConfigError):
        if abs(size(config, {}) / target - 1) <= TOLERANCE:
            return []
    adapter = load_adapter(config.training.model)
    low, high = 1 / LARGEST_FACTOR, LARGEST_FACTOR
    best: tuple[float, dict[str, object]] | None = None
    for _ in range(HALVINGS):
        factor = (low * high) ** 0.5
        ratio = None
        for nudge in NUDGES:
            changes = adapter.at_width(config.model_cfg, factor * nudge)
            with contextlib.suppress(ConfigError):
                ratio = size(config, changes) / target
                break
        if ratio is None:
            low = factor  # too narrow for its heads
            continue
        if best is None or abs(ratio - 1) < abs(best[0] - 1):
            best = (ratio, changes)
        if ratio > 1:
            high = factor
        else:
            low = factor
    if best is None or abs(best[0] - 1) > TOLERANCE:
        nearest = "none" if best is None else f"{best[0] * target:,.0f}"
        raise ConfigError(
            f"no width has within {TOLERANCE:.0%} of {target:,.0f} {unit}; the nearest has "
            f"{nearest}"
        )
    return [f"model_cfg.{key}={json.dumps(value)}" for key, value in best[1].items()]
