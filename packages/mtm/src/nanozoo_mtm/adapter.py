"""What the multi-token model asks of training beyond the default: a loss for each module, drafts
for decoding, and how often modules agree with the main model.

B batch, T sequence, D model_dim, V vocabulary; depths k = 1 .. n.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Inspection, Loss, Step, Vocabulary
from nanozoo_core.generation.draft_acceptance import inspect_drafts
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.multi_token_adapter import (
    MultiTokenAdapter,
    horizon_loss,
    shares_of_targets,
    targets_of,
    weights_at,
)
from nanozoo_core.nn.norms import rms_norm
from nanozoo_mtm.config import MTMConfig
from nanozoo_mtm.drafter import ChainDrafter
from nanozoo_mtm.model import MTM

INSPECTED_WINDOWS = 32


class MTMAdapter(MultiTokenAdapter):
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """L_0 + lambda / n * sum_k L_k, each the mean nats over the positions that count."""
        assert isinstance(model, MTM)
        stream, angles = model.stream(batch.inputs)
        features = rms_norm(stream)
        nll = self._cross_entropy(model, batch, "mean", features)
        config = model.config
        if config.num_mtp_modules == 0:
            return Loss(nll)
        losses = []
        hidden = model.first_hidden(stream)
        for depth in range(1, config.num_mtp_modules + 1):
            hidden = model.look_ahead(depth, hidden, read_by(batch, depth), angles)
            losses.append(horizon_loss(model, batch, depth + 1, hidden))
        together = torch.stack(losses)
        shares = shares_of_targets(model, batch, step)
        if shares is not None:
            together = shares[1:] * together
        weight = weights_at(config.module_weight, step).to(together)
        metrics = {"nll": nll.detach(), "mtp_lambda": weight}
        for depth, loss in enumerate(together.detach(), start=1):
            metrics[f"nll_module{depth}"] = loss
        return Loss(nll + weight * together.mean(), metrics)

    # -- decoding -------------------------------------------------------------------------------

    def drafter(self, model: nn.Module) -> ChainDrafter | None:
        """The modules, for as many tokens as the config says; none without."""
        assert isinstance(model, MTM)
        return ChainDrafter(model) if model.config.spec_draft_tokens > 0 else None

    def is_branchable(self, model_cfg: MTMConfig) -> bool:
        """Unless the weight of its modules changes over the run."""
        return model_cfg.num_mtp_modules == 0 or model_cfg.mtp_lambda_schedule == "constant"

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: MTMConfig, seq_len: int) -> float:
        """Those of the control, and for each module its matrices, its attention in full and the
        output projection."""
        num_attentions = config.num_mtp_modules if config.mtp_block == "base" else 0
        attention = 12 * num_attentions * config.model_dim * seq_len
        return super().flops_per_token(config, seq_len) + attention

    def draft_parts(self, model: nn.Module) -> Iterable[nn.Module]:
        assert isinstance(model, MTM)
        return model.modules_ahead

    # -- inspection -----------------------------------------------------------------------------

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """For each module: its loss on tokens that the main model predicts too, how often both
        would choose the same, and the share of drafts that sampling would accept; then what
        decoding makes of it."""
        assert isinstance(model, MTM)
        count = model.config.num_mtp_modules
        if count == 0:
            return None
        sums = torch.zeros(count + 1, 4, dtype=torch.float64)
        for batch in _single_rows(batches):
            for depth, found in enumerate(compare_depths(model, batch)):
                sums[depth] += found
        means = sums[:, :3] / sums[:, 3:].clamp(min=1)
        metrics = {"nll": float(means[0, 0])}
        for depth, (nll, agreement, acceptance) in enumerate(means[1:].tolist(), start=1):
            metrics[f"nll_module{depth}"] = nll
            metrics[f"agreement_module{depth}"] = agreement
            metrics[f"overlap_module{depth}"] = acceptance
        series = {
            name: [(float(depth), float(means[depth, column])) for depth in range(1, count + 1)]
            for column, name in ((1, "same best token"), (2, "sum of min(p, q)"))
        }
        curves = Curves("Modules against the main model", "module", "share", series)
        drafts = inspect_drafts(self, model, batches)
        return Inspection(metrics | drafts.metrics, (curves, *drafts.pictures))


def read_by(batch: Batch, depth: int) -> Tensor:
    """The tokens k places on, (B, T); those past the window are any, and nothing that counts sees
    them."""
    return batch.ahead(depth, across_documents=True)[0]


def logits_by_depth(model: MTM, batch: Batch) -> Iterator[Tensor]:
    """logits^0 .. logits^n, (B, T, V) each."""
    stream, angles = model.stream(batch.inputs)
    features = rms_norm(stream)
    yield model.logits(features)
    hidden = model.first_hidden(stream)
    for depth in range(1, model.config.num_mtp_modules + 1):
        hidden = model.look_ahead(depth, hidden, read_by(batch, depth), angles)
        yield model.logits(hidden)


def compare_depths(model: MTM, batch: Batch) -> Iterator[Tensor]:
    """(4,) for each depth 0 .. n, over the positions that count: sums of the nats, of whether the
    best token is the main model's, of sum_v min(p, q) with the main model's p of the same token,
    and how many they are. Depth k is compared only where the window holds that p."""
    main: Tensor | None = None
    for depth, logits in enumerate(logits_by_depth(model, batch)):
        log_q = in_float64(logits).log_softmax(-1)
        main = log_q if main is None else main
        targets, counts = (x.to(log_q.device) for x in targets_of(model, batch, depth + 1))
        held = log_q.shape[1] - depth  # main at i + k predicts the same token as depth k at i
        log_q, log_p = log_q[:, :held], main[:, depth:]
        nats = -log_q.gather(2, targets[:, :held, None])[..., 0]
        same = log_q.argmax(-1) == log_p.argmax(-1)
        overlap = torch.minimum(log_q, log_p).exp().sum(-1)
        counts = counts[:, :held]
        found = [(value * counts).sum() for value in (nats, same, overlap)]
        yield torch.stack([*found, counts.sum()]).double().cpu()


def _single_rows(batches: Sequence[Batch]) -> Iterator[Batch]:
    """The first windows one by one, so that few logits are held at a time."""
    left = INSPECTED_WINDOWS
    for batch in batches:
        for row in range(min(left, len(batch.tokens))):
            yield batch.take(slice(row, row + 1))
        left -= min(left, len(batch.tokens))


Adapter = MTMAdapter
