"""What models have in common that learn to predict several tokens from every position: the next one
is the model's score, those behind it are a second task in training and drafts in decoding.

B batch, T sequence, D model_dim, V vocabulary; horizons i = 1 .. n, of which 1 is the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from nanozoo_core.config.multi_token import MultiTokenConfig
from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.nn.accounting import decoder_flops_per_token
from nanozoo_core.ops.linear_cross_entropy import linear_cross_entropy


class MultiTokenModel(Protocol):
    """What the functions below read of a model."""

    @property
    def config(self) -> MultiTokenConfig: ...

    @property
    def output_weight(self) -> Tensor: ...  # (V, D)


class MultiTokenAdapter(DefaultModelAdapter):
    """A subclass gives the training loss and the drafter."""

    family = "several tokens"

    def lookahead(self, config: Any) -> int:
        """n: every input of a window then has a target at every horizon."""
        return config.num_horizons

    def batch_totals(self, model: nn.Module, batch: Batch, step: Step) -> Tensor | None:
        """(n,): the positions that count at every horizon, by whose number its loss is divided."""
        return count_targets(cast(MultiTokenModel, model), batch)

    def draft_parts(self, model: nn.Module) -> Iterable[nn.Module]:
        """The parts of a model that plain decoding leaves out."""
        raise NotImplementedError

    def flops_per_token(self, config: Any, seq_len: int) -> float:
        """Those of a decoder with the same weights, and 6 V D for every output projection behind
        the first."""
        with torch.device("meta"):
            model = self.make_model(config)
        projections = 6.0 * config.num_extra_projections * config.vocab_size * config.model_dim
        roles = self.parameter_roles(model)
        return decoder_flops_per_token(model, roles, config, seq_len) + projections

    def report(self, model: nn.Module) -> dict[str, float]:
        """Adds `params_inference`, the parameters that plain decoding uses."""
        total = sum(p.numel() for p in model.parameters())
        idle = sum(p.numel() for part in self.draft_parts(model) for p in part.parameters())
        return super().report(model) | {"params_inference": total - idle}


def targets_of(model: MultiTokenModel, batch: Batch, horizon: int) -> tuple[Tensor, Tensor]:
    """x_{t+i} (B, T), and where it counts. The next token always does: its loss is the score's."""
    across = horizon == 1 or model.config.cross_document_targets
    return batch.ahead(horizon, across_documents=across)


def horizon_loss(model: MultiTokenModel, batch: Batch, horizon: int, features: Tensor) -> Tensor:
    """The mean of -log softmax(U features)_{x_{t+i}} in nats over the positions that count, from
    features (B, T, D); the logits are made and turned into gradients chunk by chunk."""
    targets, counts = targets_of(model, batch, horizon)
    is_whole = horizon == 1 and batch.scored is None
    return linear_cross_entropy(
        features.flatten(0, 1),
        model.output_weight,
        targets.flatten(),
        token_weight=None if is_whole else counts.flatten().float(),
    )


def count_targets(model: MultiTokenModel, batch: Batch) -> Tensor:
    """(n,) int64: the positions of a batch that count at every horizon."""
    horizons = range(1, model.config.num_horizons + 1)
    return torch.stack([targets_of(model, batch, horizon)[1].sum() for horizon in horizons])


def shares_of_targets(model: MultiTokenModel, batch: Batch, step: Step) -> Tensor | None:
    """(n,) float32: for every horizon the positions that count here over the mean of all parts of
    the global batch. These weigh the means over parts so that their mean is that of the whole; None
    where this batch is the whole."""
    if step.totals is None:
        return None
    counts = count_targets(model, batch).float()
    return step.num_parts * counts / step.totals.clamp(min=1)


@uncompiled(with_callees=True)  # the weights of a step, not a constant of the graph
def weights_at(schedule: Callable[[float], float | Sequence[float]], step: Step) -> Tensor:
    """What a schedule over the progress of the run, 0 .. 1, gives at a step, as a tensor."""
    return torch.tensor(schedule(step.progress))
