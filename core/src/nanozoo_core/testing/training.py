"""Small trainings and gradients for tests of a package's own laws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.config import OptimConfig, from_defaults
from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.optim.build import build_optimizers


@torch.no_grad()
def move(model: nn.Module, scale: float) -> None:
    """Adds seeded noise to every weight, so that parts that start at zero take part."""
    generator = torch.Generator().manual_seed(1)
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


def train(
    adapter: DefaultModelAdapter, model: nn.Module, batches: Sequence[Batch], lr: float = 1e-2
) -> None:
    """One AdamW step per batch, the rate falling to zero; leaves the model in eval mode."""
    optim = from_defaults(OptimConfig, name="adamw", lr=lr, warmup=10, decay_fraction=0.7)
    groups = adapter.optimizer_groups(model, optim)
    optimizers = build_optimizers(
        groups, optim, total_steps=len(batches), device=torch.device("cpu")
    )
    model.train()
    for number, batch in enumerate(batches):
        step = Step(number=number, progress=number / len(batches), seed=0)
        optimizers.set_schedule(number, step.progress)
        adapter.training_loss(model, batch, step).value.backward()
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
    model.eval()
