"""Sizes that no memory holds are refused before anything is allocated.

The estimates are lower bounds: what passes may still run out of memory, what is refused must.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.defaults import changed_settings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError, show_value
from nanozoo_core.machine.memory import addressable, total_memory_bytes
from nanozoo_core.training.plan import RunPlan

WEIGHTS = 4  # bytes of a parameter in float32
TRAINED = 12  # the same with its gradient and at least one moment
TOKEN = 16  # bytes of a token's id and document, before the model has read it
SHOWN = 6  # changed settings that an error names


class _TooLarge(Exception):
    """More parameters than were asked for; the argument is how many at least."""


def require_room_for_model(
    adapter: DefaultModelAdapter, name: str, model_cfg: Any, device: torch.device, *, each: int
) -> None:
    """Raises: ConfigError when the parameters alone, of `each` bytes, pass the device's memory."""
    room = total_memory_bytes(device)
    if room is None:
        return
    sizes = f"{name} with {changed_numbers(name, model_cfg)}"
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            addressable(sizes),
            _at_most(room // each),
        ):
            adapter.make_model(model_cfg)
    except _TooLarge as error:
        count = int(error.args[0])
        raise ConfigError(
            f"{sizes} has at least {count:.3g} parameters, which "
            f"need {count * each / 2**30:,.0f} GiB, and {device.type} has {room / 2**30:,.0f} GiB; "
            f"use smaller sizes"
        ) from None


def require_room_for_batch(
    config: TrainingConfig, plan: RunPlan, model: nn.Module, device: torch.device
) -> None:
    """Raises: ConfigError when the tokens that a device reads at once and their embeddings alone
    pass its memory."""
    room = total_memory_bytes(device)
    tokens = max(plan.micro_windows(stage) * stage.seq_len for stage in plan.stages)
    widths = [part.embedding_dim for part in model.modules() if isinstance(part, nn.Embedding)]
    needed = tokens * (TOKEN + 2 * min(widths, default=0))
    if room is not None and needed > room:
        train = config.train
        key = "batch_tokens" if train.micro_batch_tokens is None else "micro_batch_tokens"
        raise ConfigError(
            f"train.{key}={getattr(train, key)} lets {device.type} read {tokens:,} tokens at once, "
            f"which need at least {needed / 2**30:,.0f} GiB, and it has {room / 2**30:,.0f} GiB; "
            f"use a smaller train.micro_batch_tokens"
        )


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Counts parameters as modules are given them. Raises: _TooLarge past the limit."""
    count = 0

    def add(_module: nn.Module, _name: str, parameter: Tensor | None) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if count > limit:
            raise _TooLarge(count)

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def changed_numbers(name: str, model_cfg: Any) -> str:
    """The numbers of a model's config that differ from its YAML, for errors."""
    found = changed_settings(name, model_cfg).items()
    texts = [f"model_cfg.{k}={show_value(v)}" for k, v in found if isinstance(v, int | float)]
    return ", ".join(texts[:SHOWN]) or "its own settings"
