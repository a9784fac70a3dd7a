"""What multi-token prediction asks of training beyond the default: a loss for each horizon, drafts
for decoding, and a look at how far the model sees.

B batch, T sequence, V vocabulary; horizons i = 1 .. n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Inspection, Loss, Step, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.draft_acceptance import inspect_drafts
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_mtp.config import MTPConfig
from nanozoo_mtp.drafter import HeadDrafter
from nanozoo_mtp.losses import horizon_losses, targets_of, token_losses
from nanozoo_mtp.model import MTP


class MTPAdapter(DefaultModelAdapter):
    def lookahead(self, config: MTPConfig) -> int:
        """n: every input of a window then has a target at every horizon."""
        return config.num_mtp_tokens

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """sum_i lambda_i L_i; a window without lookahead lacks targets at its end."""
        assert isinstance(model, MTP)
        weights = loss_weights(model.config, step).to(batch.tokens.device)
        loss, losses = horizon_losses(model, batch, weights)
        metrics = {"nll": losses[0]}
        for horizon in range(2, len(losses) + 1):
            metrics[f"nll_ahead{horizon}"] = losses[horizon - 1]
        return Loss(loss, metrics)

    # -- decoding -------------------------------------------------------------------------------

    def drafter(self, model: nn.Module) -> HeadDrafter | None:
        """Heads 2 .. n; none without heads of their own."""
        assert isinstance(model, MTP)
        return HeadDrafter(model) if model.config.has_own_heads else None

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: MTPConfig, seq_len: int) -> float:
        """Those of a decoder of as many blocks, and one output projection more for each further
        head."""
        num_more = config.num_mtp_tokens - 1 if config.has_own_heads else 0
        projections = 6.0 * num_more * config.vocab_size * config.model_dim
        return super().flops_per_token(config, seq_len) + projections

    def report(self, model: nn.Module) -> dict[str, float]:
        """Adds the parameters that plain decoding uses."""
        assert isinstance(model, MTP)
        config = model.config
        total = sum(p.numel() for p in model.parameters())
        idle = sum(p.numel() for p in model.maps.parameters())
        if config.head_type == "block":
            idle = sum(p.numel() for p in model.blocks[config.num_trunk_layers + 1 :].parameters())
        return super().report(model) | {"params_inference": total - idle}

    # -- inspection -----------------------------------------------------------------------------

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        """The loss at every horizon, and what drafts are worth. `diag/block_nll` is the score of
        texts predicted n tokens at a time: a likelihood, but of another model."""
        assert isinstance(model, MTP)
        count = model.config.num_mtp_tokens
        nats, blocks = (
            torch.zeros(2, count, dtype=torch.float64),
            torch.zeros(2, dtype=torch.float64),
        )
        for batch in batches:
            found = [
                (losses.double(), targets_of(model, batch, horizon)[1])
                for horizon, losses in enumerate(token_losses(model, batch), start=1)
            ]
            nats += torch.stack([_total(*pair) for pair in found], 1)
            blocks += sum(_total(losses[:, ::count], c[:, ::count]) for losses, c in found)
        means = (nats[0] / nats[1].clamp(min=1)).tolist()
        metrics = {"nll": means[0]}
        metrics |= {f"nll_ahead{number}": mean for number, mean in enumerate(means[1:], start=2)}
        if count > 1:
            metrics["diag/block_nll"] = float(blocks[0] / blocks[1])
        picture = Curves(
            title="Loss of a token by how far ahead it is predicted",
            x_label="places ahead",
            y_label="nats",
            series={"nll": [(float(n), mean) for n, mean in enumerate(means, start=1)]},
        )
        drafts = inspect_drafts(self, model, batches)
        return Inspection(metrics | drafts.metrics, (picture, *drafts.pictures))


def _total(losses: Tensor, counts: Tensor) -> Tensor:
    """(2,): the losses that count, summed, and how many they are."""
    return torch.stack([(losses * counts).sum(), counts.sum().double()]).cpu()


@uncompiled(with_callees=True)  # the weights of a step, not a constant of the graph
def loss_weights(config: MTPConfig, step: Step) -> Tensor:
    return torch.tensor(config.loss_weights(step.progress))


Adapter = MTPAdapter
