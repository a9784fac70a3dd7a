"""What H-Net asks of training beyond the default: the ratio loss and its statistics, a learning
rate for each stage, prefill of ragged prompts, and a picture of the chunks.

Shapes: B batch, T sequence, K new tokens, D model_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.config import OptimConfig
from nanozoo_core.contract import (
    Batch,
    Curves,
    Inspection,
    Loss,
    Step,
    Vocabulary,
)
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.nn.accounting import cache_growth
from nanozoo_core.optim.groups import ParameterGroup, default_roles, make_groups
from nanozoo_hnet.boundaries import Agreement
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.model import ChunkedStage, HNet
from nanozoo_hnet.routing import Router, Routing, ratio_loss
from nanozoo_hnet.state import HNetCache

WHITESPACE = tuple(b" \t\n\r\v\f")
LETTERS = tuple(byte for byte in range(256) if chr(byte).isalpha() or byte >= 128)
CLASSES = {
    "line_break": tuple(b"\n\r"),
    "space": tuple(b" \t\v\f"),
    "letter": (*LETTERS, ord("_")),
    "digit": tuple(b"0123456789"),
}
PUNCTUATION = tuple(set(range(128)) - {byte for group in CLASSES.values() for byte in group})
CLASSES["punctuation"] = PUNCTUATION
LONGEST_SHOWN = 16  # bytes of a chunk


class HNetAdapter(DefaultModelAdapter):
    family = "bytes"

    def batch_totals(self, model: nn.Module, batch: Batch, step: Step) -> Tensor:
        """(S, 2): the boundaries and positions of every chunking, whose shares the ratio loss
        multiplies."""
        assert isinstance(model, HNet)
        documents = batch.documents[:, : -batch.lookahead]
        return torch.stack([r.counts() for r in model.route(batch.inputs, documents)])

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean next-token cross-entropy + ratio_loss_coef * sum of the stages' ratio losses."""
        assert isinstance(model, HNet)
        config = model.config
        features, routings = model.encode(batch.inputs, batch.documents[:, : -batch.lookahead])
        nll = self._cross_entropy(model, batch, "mean", features)
        loss, metrics = nll, {"nll": nll.detach()}
        for s, (routing, ratio) in enumerate(zip(routings, config.ratios, strict=True)):
            totals = None if step.totals is None else step.totals[s]
            share, mean_prob = routing.means_of(totals, step.num_parts)
            penalty = ratio_loss(share, mean_prob, ratio)
            if config.chunking == "dynamic":
                loss = loss + config.ratio_loss_coef * penalty
            metrics[f"stage{s}_chunk_fraction"] = share
            metrics[f"stage{s}_boundary_prob"] = mean_prob.detach()
            metrics[f"stage{s}_ratio_loss"] = penalty.detach()
        metrics |= self._chunk_metrics(model, batch.inputs, routings)
        return Loss(loss, metrics)

    def token_nats(self, model: nn.Module, batch: Batch) -> Tensor:
        """The exact likelihood: a boundary depends only on what stands before it."""
        assert isinstance(model, HNet)
        features, _ = model.encode(batch.inputs, batch.documents[:, : -batch.lookahead])
        return in_float64(self._cross_entropy(model, batch, "none", features))  # (B, T)

    @torch.no_grad()
    def _chunk_metrics(
        self, model: HNet, tokens: Tensor, routings: list[Routing]
    ) -> dict[str, Tensor]:
        shares = [r.boundaries.sum() / tokens.numel() for r in routings]
        whitespace = torch.tensor(WHITESPACE, device=tokens.device)
        behind = torch.isin(tokens[:, :-1], whitespace)
        starts = routings[0].boundaries[:, 1:]
        flops = model.forward_flops(
            tokens.shape[1], torch.stack([torch.ones_like(shares[0]), *shares])
        )
        return {
            "bytes_per_chunk": 1 / shares[-1],
            "starts_after_whitespace": (starts & behind).sum() / starts.sum().clamp(min=1),
            "flops_per_token": 3 * flops,
        }

    # -- optimisation ---------------------------------------------------------------------------

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """As usual, but the router (the identity at the start, whose scale means nothing) and the
        step sizes of the scan are AdamW's without decay, and the residual projection (zero at the
        start) is AdamW's with decay, like the head."""
        roles = default_roles(model)
        for path, module in model.named_modules():
            if isinstance(module, Router):
                roles |= {f"{path}.query.weight": "vector", f"{path}.key.weight": "vector"}
            elif isinstance(module, ChunkedStage):
                roles[f"{path}.residual.weight"] = "head"
        return roles | {name: "vector" for name in roles if name.endswith(".dt_proj.weight")}

    def optimizer_groups(self, model: nn.Module, optim: OptimConfig) -> list[ParameterGroup]:
        """Each stage has its own multiple of the rates; Muon's does not depend on the width."""
        assert isinstance(model, HNet)
        roles, stages = self.parameter_roles(model), model.parameter_stages()
        adamw = model.config.stage_lr_multipliers()
        muon = model.config.stage_lr_multipliers(by_width=optim.name != "muon")
        multipliers = {
            name: (muon if roles[name] == "matrix" else adamw)[stage]
            for name, stage in stages.items()
        }
        return make_groups(model, roles, optim, lr_multipliers=multipliers)

    # -- decoding -------------------------------------------------------------------------------

    def prefill(
        self, model: nn.Module, tokens: Tensor, lengths: Tensor, cache: HNetCache
    ) -> Tensor:
        """Reads right-padded prompts (B, T) into an empty cache -> logits (B, V) after the last."""
        assert isinstance(model, HNet)
        features = model.read(tokens, lengths, cache)  # (B, T, D)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return model.head(features[rows, lengths - 1])

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: HNetConfig, seq_len: int) -> float:
        """Training FLOPs per token at the chunk lengths aimed at: 6 per weight that multiplies a
        position of its stage, scans and attention (in full), times the positions per token."""
        with torch.device("meta"):
            model = self.model_class(config)
        assert isinstance(model, HNet)
        ratios = torch.tensor([1.0, *config.ratios], dtype=torch.float64, device="cpu")
        shares = 1 / ratios.cumprod(0)
        return 3 * float(model.forward_flops(seq_len, shares))

    def at_width(self, model_cfg: HNetConfig, factor: float) -> dict[str, object]:
        """Scales the width of every stage, and that of its MLP, to what the heads of its state
        spaces divide. A stage keeps its heads of attention where they divide its width into even
        channels, enough to rotate, and else gets the nearest number that does."""
        head_dim = model_cfg.ssm("head_dim")
        unit = math.lcm(2, head_dim // math.gcd(head_dim, model_cfg.ssm("expand")))
        widths, hidden = model_cfg.per_stage("model_dim"), model_cfg.per_stage("mlp_dim")
        scaled = [max(unit, round(factor * width / unit) * unit) for width in widths]
        heads, rotary = model_cfg.per_stage("num_heads"), model_cfg.per_stage("rotary_emb_dim")
        return {
            "model_dim": scaled,
            "mlp_dim": [round(factor * width / 8) * 8 for width in hidden],
            "num_heads": [
                _nearest_heads(*stage) for stage in zip(scaled, heads, rotary, strict=True)
            ],
        }

    def report(self, model: nn.Module) -> dict[str, float]:
        """Adds the parameters of each stage, and what decoding keeps per token and once."""
        assert isinstance(model, HNet)
        counts = super().report(model)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        for name, number in model.parameter_stages().items():
            key = f"params_stage{number}"
            counts[key] = counts.get(key, 0) + sizes[name]
        share, growing, constant = 1.0, 0.0, 0.0
        for stage, ratio in zip(model.stages(), [*model.config.ratios, 1.0], strict=True):
            for network in stage.networks():
                sizes_at = [
                    sum(state.num_bytes for state in network.empty_states(1, length))
                    for length in self.cache_lengths
                ]
                growth = cache_growth(self.cache_lengths, sizes_at)
                growing += share * growth["cache_bytes_per_token"]
                constant += growth["state_bytes"]
            share /= ratio
        return counts | {"cache_bytes_per_token": growing, "state_bytes": constant}

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """How long chunks are, how often one starts behind each class of bytes, and how well the
        starts agree with those of words."""
        assert isinstance(model, HNet)
        lengths: list[list[Tensor]] = [[] for _ in model.config.ratios]
        starts = dict.fromkeys(CLASSES, 0)
        places = dict.fromkeys(CLASSES, 0)
        agreement = Agreement()
        for batch in batches:
            _, routings = model.encode(batch.inputs, batch.documents[:, : -batch.lookahead])
            agreement.add(batch.inputs, routings)
            for found, routing in zip(lengths, routings, strict=True):
                found += _chunk_lengths(routing)
            before, begins = batch.inputs[:, :-1], routings[0].boundaries[:, 1:]
            for name, members in CLASSES.items():
                behind = torch.isin(before, torch.tensor(members, device=before.device))
                starts[name] += int((begins & behind).sum())
                places[name] += int(behind.sum())
        metrics = {
            f"starts_behind_{name}": starts[name] / places[name] for name in CLASSES if places[name]
        }
        series = {}
        for stage, found in enumerate(lengths):
            sizes = torch.cat(found) if found else torch.zeros(0)
            if len(sizes) == 0:
                continue
            metrics[f"stage{stage}_mean_length"] = float(in_float64(sizes).mean())
            counts = torch.bincount(sizes.clamp(max=LONGEST_SHOWN), minlength=LONGEST_SHOWN + 1)
            shares = (counts[1:] / len(sizes)).tolist()
            series[f"stage {stage}"] = [(float(n + 1), share) for n, share in enumerate(shares)]
        if not series:
            return None
        metrics |= agreement.metrics()
        label = f"positions of the stage in a chunk ({LONGEST_SHOWN}: or more)"
        return Inspection(metrics, (Curves("Lengths of chunks", label, "share", series),))

    @torch.no_grad()
    def show_sample(self, model: nn.Module, vocabulary: Vocabulary, text: str) -> str | None:
        """The text with a | where a chunk starts, || where one of the second chunking does."""
        assert isinstance(model, HNet)
        tokens = vocabulary.encode(text)
        device = model.embedding.weight.device
        read = torch.tensor([[vocabulary.separator, *tokens]], device=device)
        _, routings = model.encode(read)
        depth = torch.zeros_like(read[0])  # how many chunkings start a chunk at each position
        positions = torch.arange(read.shape[1], device=device)
        for routing in routings:
            positions = positions[routing.boundaries[0, : len(positions)]]
            depth[positions] += 1
        pieces = [
            b"|" * (count if i else 0) + vocabulary.decode_bytes([token])
            for i, (token, count) in enumerate(zip(tokens, depth[1:].tolist(), strict=True))
        ]
        return b"".join(pieces).decode(errors="replace")


def _chunk_lengths(routing: Routing) -> list[Tensor]:
    """Of the chunks in each row that begin and end inside it, int64 on the CPU."""
    boundaries = routing.boundaries
    if routing.valid is not None:
        boundaries = boundaries & routing.valid
    return [row.nonzero()[:, 0].diff().cpu() for row in boundaries]


def _nearest_heads(width: int, heads: int, rotary: int) -> int:
    """The number nearest to `heads` that divides a width into even channels, at least `rotary`."""
    fitting = [n for n in range(1, width // 2 + 1)
               if width % (2 * n) == 0 and width // n >= max(rotary, 2)]  # fmt: skip
    return min(fitting, key=lambda n: abs(n - heads), default=heads)


Adapter = HNetAdapter
