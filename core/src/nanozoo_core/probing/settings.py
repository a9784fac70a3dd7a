"""The settings with which a model is probed: its own YAML at the window of the task, and one
optimiser for all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from nanozoo_core import registry
from nanozoo_core.config import ResolvedConfig, compose_config, resolve
from nanozoo_core.errors import ConfigError

UNITS = ("tokens", "bytes", "flops", "seconds")
OPTIMISER: dict[str, Any] = {
    "name": "adamw",
    "schedule": "wsd",
    "warmup": 50,
    "decay_fraction": 0.4,
    "hold_fraction": 0.0,
    "final_lr_fraction": 0.0,
}
ADAMW: dict[str, Any] = {
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    **dict.fromkeys(("embedding_lr", "head_lr", "vector_lr")),
    "cautious": False,
    "wd_power": 1,
    "every": 1,
}
"""For all models: AdamW, 50 steps of warm-up, and a linear fall over the last 40 percent."""

FITTING: dict[str, Any] = {"train_noise_min": 0.0, "train_noise_max": 1.0}
"""Settings of models that have them: answers are all hidden in the test, so that training hides any
number of them."""
DENSE_CHUNKS: dict[str, Any] = {"target_ratio": 1.5}
"""For models that learn chunks where symbols are drawn: these cannot be compressed."""


@dataclass(frozen=True)
class Chosen:
    """A model with what the user changes of its settings."""

    model: str | None
    recipe: Path | None
    overrides: tuple[str, ...]

    @property
    def reads_bytes(self) -> bool:
        """By the tokenizer of its own settings. Raises: ConfigError."""
        return _own_values(self)["data"]["tokenizer"] == "bytes"


@dataclass(frozen=True)
class Form:
    """What a model is trained on, in numbers."""

    length: int
    windows: int
    steps: int
    vocab_size: int
    lr: float
    weight_decay: float
    is_text: bool
    """Of words, which chunks can compress, and no symbols drawn one by one."""


@cache
def _own_values(chosen: Chosen) -> dict[str, Any]:
    first = [] if chosen.recipe is not None else [f"model={chosen.model}"]
    return compose_config([*first, *chosen.overrides], recipe=chosen.recipe)


def compose(form: Form, chosen: Chosen) -> ResolvedConfig:
    """The settings of a model for a task. A model that refuses weight decay, as its weights have no
    length to decay, has none.

    Raises: ConfigError for settings that do not fit.
    """
    try:
        return _composed(form, chosen)
    except ConfigError:
        if form.weight_decay == 0:
            raise
    return _composed(replace(form, weight_decay=0.0), chosen)


def _composed(form: Form, chosen: Chosen) -> ResolvedConfig:
    values = copy.deepcopy(_own_values(chosen))
    values["optim"] |= OPTIMISER | {"lr": form.lr, "weight_decay": form.weight_decay}
    values["optim"]["adamw"] |= ADAMW
    values["data"]["seq_len"] = form.length
    values["train"] |= {
        "batch_tokens": form.length * form.windows,
        "micro_batch_tokens": None,
        "max_steps": form.steps,
        "grad_clip": 1.0,
        **{f"max_{unit}": None for unit in UNITS},
    }
    values["model_cfg"] |= _fitting(values["model"], form, chosen)
    return resolve(values).with_vocabulary(form.vocab_size)


def _fitting(model: str, form: Form, chosen: Chosen) -> Mapping[str, Any]:
    known = {field.name for field in fields(registry.config_class(model))}
    wanted = FITTING if form.is_text else FITTING | DENSE_CHUNKS
    given = {word.partition("=")[0].lstrip("+") for word in chosen.overrides}
    return {
        key: value
        for key, value in wanted.items()
        if key in known and f"model_cfg.{key}" not in given
    }
