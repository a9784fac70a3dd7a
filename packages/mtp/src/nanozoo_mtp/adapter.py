"""What multi-token prediction asks of training beyond the default: a loss for each horizon, drafts
for decoding, and a look at how far the model sees.

B batch, T sequence, V vocabulary; horizons i = 1 .. n.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Inspection, Loss, Step, Vocabulary
from nanozoo_core.generation.draft_acceptance import inspect_drafts
from nanozoo_core.multi_token_adapter import (
    MultiTokenAdapter,
    shares_of_targets,
    targets_of,
    weights_at,
)
from nanozoo_mtp.config import MTPConfig
from nanozoo_mtp.drafter import HeadDrafter
from nanozoo_mtp.losses import horizon_losses, token_losses
from nanozoo_mtp.model import MTP


class MTPAdapter(MultiTokenAdapter):
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """sum_i lambda_i L_i; a window without lookahead lacks targets at its end."""
        assert isinstance(model, MTP)
        weights = weights_at(model.config.loss_weights, step).to(batch.tokens.device)
        shares = shares_of_targets(model, batch, step)
        if shares is None:
            loss, losses = horizon_losses(model, batch, weights)
        else:
            loss, losses = horizon_losses(model, batch, shares * weights)
            losses = shares * losses
        return Loss(loss, dict(zip(_names(len(losses)), losses, strict=True)))

    # -- decoding -------------------------------------------------------------------------------

    def drafter(self, model: nn.Module) -> HeadDrafter | None:
        """Heads 2 .. n; none without heads of their own."""
        assert isinstance(model, MTP)
        return HeadDrafter(model) if model.config.has_own_heads else None

    def is_branchable(self, model_cfg: MTPConfig) -> bool:
        """Unless the weights of its heads change over the run."""
        return model_cfg.mtp_weight_schedule == "constant"

    # -- accounting -----------------------------------------------------------------------------

    def draft_parts(self, model: nn.Module) -> Iterable[nn.Module]:
        """Heads 2 .. n, as far as they are their own."""
        assert isinstance(model, MTP)
        if model.config.head_type == "block":
            return model.blocks[model.config.num_trunk_layers + 1 :]
        return model.maps

    # -- inspection -----------------------------------------------------------------------------

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        """The loss at every horizon, and what drafts are worth. `diag/block_nll` is the score of
        texts predicted n tokens at a time: a likelihood, but of another model."""
        assert isinstance(model, MTP)
        count = model.config.num_mtp_tokens
        nats = torch.zeros(2, count, dtype=torch.float64)
        blocks = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            found = [
                (losses.cpu().double(), targets_of(model, batch, horizon)[1].cpu())
                for horizon, losses in enumerate(token_losses(model, batch), start=1)
            ]
            nats += torch.stack([_total(*pair) for pair in found], 1)
            blocks += sum(_total(losses[:, ::count], c[:, ::count]) for losses, c in found)
        means = (nats[0] / nats[1].clamp(min=1)).tolist()
        metrics = dict(zip(_names(count), means, strict=True))
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


def _names(count: int) -> list[str]:
    return ["nll", *(f"nll_ahead{horizon}" for horizon in range(2, count + 1))]


def _total(losses: Tensor, counts: Tensor) -> Tensor:
    """(2,): the losses that count, summed, and how many they are."""
    return torch.stack([(losses * counts).sum(), counts.sum().double()])


Adapter = MTPAdapter
