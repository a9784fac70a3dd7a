"""Small trainings and gradients for tests of a package's own laws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import MuonConfig, OptimConfig, from_defaults
from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.build import build_optimizers, muon_settings
from nanozoo_core.optim.muon import Muon
from nanozoo_core.training.distributed import LossModule
from nanozoo_core.training.parts import Part, with_totals


@torch.no_grad()
def move(model: nn.Module, scale: float, *, seed: int = 1) -> None:
    """Adds seeded noise to every weight, so that parts that start at zero take part."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((scale * noise).to(parameter.dtype))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Those of a loss by parameter, zeros where there is none."""
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def gradients_in_parts(
    adapter: DefaultModelAdapter, model: nn.Module, batch: Batch, num_parts: int
) -> dict[str, Tensor]:
    """Those of a global batch that the trainer takes in so many micro-steps."""
    rows = len(batch.rows) // num_parts
    parts: list[Part] = [
        (
            batch.take(slice(number * rows, (number + 1) * rows)),
            Step(number=3, progress=0.4, seed=0, micro_step=number, num_micro_steps=num_parts),
        )
        for number in range(num_parts)
    ]
    module = LossModule(model, adapter)
    device = torch.device("cpu")
    parts = with_totals(adapter, module, parts, Ranks(), device=device, dtype=torch.float32)
    losses = [adapter.training_loss(model, *part).value for part in parts]
    return gradients(model, torch.stack(losses).mean())


def make_muon(params: Iterable[Any], **changes: Any) -> Muon:
    """Our Muon with the settings of training.yaml, changed by `changes`."""
    return Muon(params, **muon_settings(from_defaults(MuonConfig)) | changes)


def train_on_batches(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    batches: Sequence[Batch],
    lr: float = 1e-2,
    *,
    optim: OptimConfig | None = None,
    points: Sequence[float] | None = None,
) -> list[float]:
    """One step per batch, with all that the trainer calls of the adapter; leaves the model in eval
    mode.

    Args: optim: AdamW, its rate falling to zero, unless told otherwise. points: of the run at which
        the steps are taken; None spreads them over it.

    Returns: the loss of each batch before its step.
    """
    if optim is None:
        optim = from_defaults(OptimConfig, name="adamw", lr=lr, warmup=10, decay_fraction=0.7)
    groups = adapter.optimizer_groups(model, optim)
    optimizers = build_optimizers(
        groups, optim, total_steps=len(batches), device=next(model.parameters()).device
    )
    model.train()
    losses = []
    for number, batch in enumerate(batches):
        progress = number / len(batches) if points is None else points[number]
        step = Step(number=number, progress=progress, seed=0)
        optimizers.set_schedule(number, step.progress)
        adapter.before_step(model, step)
        loss = adapter.training_loss(model, batch, step).value
        loss.backward()
        with torch.no_grad():
            adapter.before_update(model, step, optimizers.optimizers)
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
        with torch.no_grad():
            adapter.after_step(model, step, optimizers.optimizers)
        losses.append(float(loss.detach()))
    model.eval()
    return losses
