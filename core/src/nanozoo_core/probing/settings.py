"""The settings with which a model is probed: its own YAML at the window of the task, and one
optimiser for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nanozoo_core import registry
from nanozoo_core.comparing.entrants import compose_values
from nanozoo_core.config import ResolvedConfig
from nanozoo_core.errors import ConfigError

OPTIMISER = (
    *("optim.name=adamw", "optim.schedule=wsd", "optim.warmup=50", "optim.decay_fraction=0.4"),
    *("optim.hold_fraction=0", "optim.final_lr_fraction=0", "train.grad_clip=1.0"),
    *("optim.adamw.beta1=0.9", "optim.adamw.beta2=0.95", "optim.adamw.eps=1e-8"),
    *("optim.adamw.embedding_lr=null", "optim.adamw.head_lr=null", "optim.adamw.vector_lr=null"),
    *("optim.adamw.cautious=false", "optim.adamw.wd_power=1", "optim.adamw.every=1"),
)
"""For all models: AdamW, 50 steps of warm-up, and a linear fall over the last 40 percent."""

FITTING = {"train_noise_min": "0.0", "train_noise_max": "1.0"}
"""Settings of models that have them: answers are all hidden in the test, so that training hides any
number of them."""
DENSE_CHUNKS = {"target_ratio": "1.5"}
"""For models that learn chunks where symbols are drawn: these cannot be compressed."""


@dataclass(frozen=True)
class Form:
    """What a model is trained on, in numbers."""

    length: int
    windows: int
    steps: int
    vocab_size: int
    lr: float
    weight_decay: float
    is_spelled: bool


def reads_bytes(model: str | None, recipe: Path | None, overrides: Sequence[str]) -> bool:
    """Whether a model reads bytes, by the tokenizer of its own settings. Raises: ConfigError."""
    found = compose_values(list(overrides), model=model, recipe=recipe)
    return found.training.data.tokenizer == "bytes"


def compose(
    form: Form, *, model: str | None, recipe: Path | None, overrides: Sequence[str]
) -> ResolvedConfig:
    """The settings of a model for a task; those that the user gives come last. A model that refuses
    weight decay, as its weights have no length to decay, has none.

    Raises: ConfigError for settings that do not fit.
    """
    try:
        return _composed(form, model=model, recipe=recipe, overrides=overrides)
    except ConfigError:
        if form.weight_decay == 0:
            raise
    return _composed(
        replace(form, weight_decay=0.0), model=model, recipe=recipe, overrides=overrides
    )


def _composed(
    form: Form, *, model: str | None, recipe: Path | None, overrides: Sequence[str]
) -> ResolvedConfig:
    words = [
        *OPTIMISER,
        *(f"optim.lr={form.lr!r}", f"optim.weight_decay={form.weight_decay!r}"),
        *(f"data.seq_len={form.length}", f"train.batch_tokens={form.length * form.windows}"),
        *(f"train.max_steps={form.steps}", "train.micro_batch_tokens=null"),
        *(f"train.max_{unit}=null" for unit in ("tokens", "bytes", "flops", "seconds")),
        *_fitting(model or _model_of(recipe), form),
        *overrides,
    ]
    return compose_values(words, model=model, recipe=recipe).with_vocabulary(form.vocab_size)


def _fitting(model: str, form: Form) -> list[str]:
    known = {field.name for field in fields(registry.config_class(model))}
    wanted = FITTING if form.is_spelled else FITTING | DENSE_CHUNKS
    return [f"model_cfg.{key}={value}" for key, value in wanted.items() if key in known]


def _model_of(recipe: Path | None) -> str:
    return compose_values([], model=None, recipe=recipe).training.model
