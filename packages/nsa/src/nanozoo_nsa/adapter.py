"""What NSA asks of training beyond the default: documents read alone, gates reported, roles,
prefill of ragged prompts, FLOPs, and a picture of what was read.

B batch, T sequence, H query heads, Hk key and value heads, n blocks of a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import (
    Batch,
    Curves,
    HeatMap,
    Inspection,
    Loss,
    Step,
    Vocabulary,
)
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.device import require_gpu
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.optim.groups import default_roles
from nanozoo_nsa.config import Grid, NSAConfig
from nanozoo_nsa.mixer import Routing, nsa_roles
from nanozoo_nsa.model import NSA, NSACache

BRANCHES = ("compressed", "selected", "window")


class NSAAdapter(DefaultModelAdapter):
    family = "sparse attention"
    cache_lengths = (4096, 8192)  # beyond all windows, in whole blocks

    def prepare_model(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Raises: ConfigError when kernels are asked for that cannot run."""
        assert isinstance(model, NSA)
        if model.config.nsa_impl == "triton":
            require_gpu("model_cfg.nsa_impl=triton", model)

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean next-token cross-entropy; it reports how open the gates are."""
        assert isinstance(model, NSA)
        features, routings = self._encode(model, batch)
        metrics = {
            f"block{number}_gate_{name}": mean
            for number, routing in enumerate(routings)
            for name, mean in zip(BRANCHES, routing.gates.detach().mean((0, 1, 2)), strict=True)
        }
        return Loss(self._cross_entropy(model, batch, "mean", features), metrics)

    def token_nats(self, model: nn.Module, batch: Batch) -> Tensor:
        """The exact likelihood: what a position reads depends only on what stands before it."""
        assert isinstance(model, NSA)
        features, _ = self._encode(model, batch)
        return in_float64(self._cross_entropy(model, batch, "none", features))  # (B, T)

    def _encode(self, model: NSA, batch: Batch) -> tuple[Tensor, list[Routing]]:
        return model.encode(batch.inputs, documents=batch.documents[:, : -batch.lookahead])

    # -- optimisation ---------------------------------------------------------------------------

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """As usual, but gates and positions within blocks are AdamW's, without decay."""
        return default_roles(model) | nsa_roles(model)

    # -- decoding -------------------------------------------------------------------------------

    def prefill(self, model: nn.Module, tokens: Tensor, lengths: Tensor, cache: NSACache) -> Tensor:
        """Reads right-padded prompts (B, T) into an empty cache -> logits (B, V) after the last."""
        assert isinstance(model, NSA)
        features, _ = model.encode(tokens, cache, lengths=lengths)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return model.logits(features[rows, lengths - 1])

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: NSAConfig, seq_len: int) -> float:
        """Training FLOPs per token: 6 per weight that multiplies it, those of compression once per
        stride, and attention over all compressed blocks, n whole blocks and the whole window."""
        with torch.device("meta"):
            model = NSA(config)
            linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
            mixers = sum(
                m.flops(torch.tensor(float(seq_len), device="cpu")) for m in model.mixers()
            )
        return 6.0 * linear + 3 * float(mixers)

    # -- inspection -----------------------------------------------------------------------------

    @torch.no_grad()
    def show_sample(self, model: nn.Module, vocabulary: Vocabulary, text: str) -> str | None:
        """The text up to its last token, each block in as many [brackets] as there are choices of
        that token for it, over layers and key heads; blocks that it must read are not marked."""
        assert isinstance(model, NSA)
        size = model.config.grid.block
        tokens = [vocabulary.separator, *vocabulary.encode(text)]
        device = model.embedding.weight.device
        _, routings = model.encode(torch.tensor([tokens], device=device))
        chosen = torch.cat([routing.chosen[0, :, -1].flatten() for routing in routings])
        counts = torch.bincount(
            chosen[chosen >= 0], minlength=model.config.grid.num_blocks(len(tokens))
        )
        pieces = [
            b"[" * count + vocabulary.decode_bytes(tokens[i * size : (i + 1) * size]) + b"]" * count
            for i, count in enumerate(counts.tolist())
        ]
        return b"".join(pieces).decode(errors="replace")

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """Gates, how far back chosen blocks lie, and the blocks that the last token of the first
        window reads in every layer."""
        assert isinstance(model, NSA)
        grid, num_layers = model.config.grid, model.config.num_layers
        gates = torch.zeros(num_layers, 3, dtype=torch.float64)
        distances = torch.zeros(num_layers, 1, dtype=torch.float64)
        forced = slots = 0.0
        weight = 0
        rows: list[list[float]] = []
        for batch in batches:
            _, routings = self._encode(model, batch)
            counts = torch.stack([_distances(r.chosen, grid) for r in routings]).cpu().double()
            width = max(counts.shape[1], distances.shape[1])
            distances = _padded(distances, width) + _padded(counts, width)
            for number, routing in enumerate(routings):
                gates[number] += (
                    batch.inputs.numel() * in_float64(routing.gates).mean((0, 1, 2)).cpu()
                )
            weight += batch.inputs.numel()
            for mixer, routing in zip(model.mixers(), routings, strict=True):
                blocks = mixer.blocks(routing.chosen)
                slots += float((blocks >= 0).sum())
                forced += float((blocks[..., : grid.num_forced] >= 0).sum())
            rows = rows or [
                _reads(m.blocks(r.chosen), grid)
                for m, r in zip(model.mixers(), routings, strict=True)
            ]
        metrics = {
            f"block{number}_gate_{name}": float(gates[number, i] / weight)
            for number in range(num_layers)
            for i, name in enumerate(BRANCHES)
        }
        metrics["forced_share"] = forced / slots
        shares = distances / distances.sum(1, keepdim=True).clamp(min=1)
        curves = {
            f"block {number}": [(float(d), float(share)) for d, share in enumerate(row)]
            for number, row in enumerate(shares.tolist())
        }
        pictures = (
            Curves("how far back chosen blocks lie", "blocks back", "share", curves),
            HeatMap("blocks read by the last token", "layer", "selection block", rows),
        )
        return Inspection(metrics, pictures)


def _distances(chosen: Tensor, grid: Grid) -> Tensor:
    """How many chosen blocks (B, Hk, T, F) lie 0, 1, ... blocks before the query's own."""
    own = torch.arange(chosen.shape[2], device=chosen.device) // grid.block
    back = (own[:, None] - chosen)[chosen >= 0]
    return torch.bincount(back, minlength=grid.num_blocks(chosen.shape[2]))


def _reads(blocks: Tensor, grid: Grid) -> list[float]:
    """For each block of the first row, the share of key and value heads that read it from the last
    position, of blocks (B, Hk, T, n)."""
    last = blocks[0, :, -1].long()  # (Hk, n)
    counts = torch.bincount(last[last >= 0], minlength=grid.num_blocks(blocks.shape[2]))
    return (counts / len(last)).tolist()


def _padded(x: Tensor, width: int) -> Tensor:
    return nn.functional.pad(x, (0, width - x.shape[1]))


Adapter = NSAAdapter
