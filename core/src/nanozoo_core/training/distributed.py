"""What is wrapped around a model, and in which order.

Models are written for one device; `parallelize` applies compile and data parallelism around the
whole loss, from outside.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Draw, Loss, Nll, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.sharding import keep_marks


class LossModule(nn.Module):
    """The adapter's loss and score as one module, so that wrappers see the whole of it."""

    def __init__(self, model: nn.Module, adapter: DefaultModelAdapter) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter

    def forward(
        self, batch: Batch, noise: Step | Draw, *, only_totals: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]] | Nll | Tensor | None:
        """A Step asks for the training loss and its metrics, or for the batch's totals; a Draw for
        the score."""
        if isinstance(noise, Draw):
            return self.adapter.nll(self.model, batch, noise)
        if only_totals:
            return self.adapter.batch_totals(self.model, batch, noise)
        loss: Loss = self.adapter.training_loss(self.model, batch, noise)
        return loss.value, loss.metrics


def parallelize(
    module: LossModule, ranks: Ranks, *, strategy: str, compiled: bool, device: torch.device
) -> nn.Module:
    """Compiles, then distributes: the one place where either happens."""
    wrapped: nn.Module = module
    if ranks.world_size > 1 and strategy == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (ranks.world_size,))
        with keep_marks(module):
            for child in module.model.modules():
                if isinstance(child, nn.ModuleList):
                    for block in child:
                        fully_shard(block, mesh=mesh)
            fully_shard(module, mesh=mesh)
    if compiled:
        module.compile()
    if ranks.world_size > 1 and strategy == "ddp":
        # Buffers are each rank's own: what a model counts there it sums itself.
        options: dict[str, Any] = {_syncs_buffers(): False}
        if device.type == "cuda":
            options["device_ids"] = [device.index]
        wrapped = nn.parallel.DistributedDataParallel(module, **options)
    return wrapped


def _syncs_buffers() -> str:
    """The option of DistributedDataParallel by which every forward pass copies the buffers of rank
    0. In newer versions of torch it has another name, and the old one warns on every rank."""
    options = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    new = "forward_sync_buffers"
    return new if new in options else "broadcast_buffers"


def set_gradient_sync(wrapped: nn.Module, enabled: bool) -> None:
    """Leaves gradients local on all but the last micro-step of a step."""
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        wrapped.require_backward_grad_sync = enabled
    # An FSDPModule is known by its method: importing its class takes seconds.
    elif callable(set_sync := getattr(wrapped, "set_requires_gradient_sync", None)):
        set_sync(enabled)


def reshard(wrapped: nn.Module) -> None:
    """Frees the weights that FSDP gathered for a forward pass without a backward one; until then
    parameters would show their gathered form."""
    for module in wrapped.modules():
        if callable(free := getattr(module, "reshard", None)):
            free()
