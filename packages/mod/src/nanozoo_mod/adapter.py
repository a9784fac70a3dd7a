"""What Mixture of Depths asks of training beyond the default: a loss for the predictor, thresholds
set at the end, and a look at what was chosen.

Shapes: B batch, T sequence, L routed blocks, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, HeatMap, Inspection, Loss, Step, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.optim.groups import default_roles
from nanozoo_mod.config import MoDConfig
from nanozoo_mod.model import MoD, Routing

NUM_STRETCHES = 16  # of the window, in the picture of the choices


class MoDAdapter(DefaultModelAdapter):
    family = "routing"

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Cross-entropy under top-k routing + a coefficient times the causal choice's own loss."""
        assert isinstance(model, MoD)
        config = model.config
        noise = _noise(model, batch, step) if config.router_type == "random" else None
        features, routings = model.encode(batch.inputs, topk=True, noise=noise)
        nll = self._cross_entropy(model, batch, "mean", features)
        loss, metrics = nll, {"nll": nll.detach()}
        if config.router_type == "learned" and config.capacity < 1:
            choice = choice_loss(routings)
            by_predictor = config.causal_router == "predictor"
            coefficient = config.predictor_coef if by_predictor else config.router_aux_coef
            loss = loss + coefficient * choice
            metrics["choice_loss"] = choice.detach()
        for layer, routing in zip(config.routed_layers, routings, strict=True):
            shares = choice_shares(routing)
            metrics |= {f"block{layer}_{name}": value for name, value in shares.items()}
        return Loss(loss, metrics)

    # -- optimisation ---------------------------------------------------------------------------

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """As usual, but the predictor is AdamW's, without decay, like the router."""
        roles = default_roles(model)
        return roles | {name: "vector" for name in roles if ".predictor_" in name}

    @torch.no_grad()
    def finalize(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Sets each predictor's threshold to what the share 1 - capacity of its logits does not
        exceed, where predictor_threshold=calibrated."""
        assert isinstance(model, MoD)
        if not model.config.has_predictor or model.config.predictor_threshold == "zero":
            return
        seen: list[list[Tensor]] = [[] for _ in model.routed_blocks]
        for batch in batches:
            _, routings = model.encode(batch.inputs, topk=True, diagnostic=True)
            for logits, routing in zip(seen, routings, strict=True):
                logits.append(routing.logits.flatten())
        for block, logits in zip(model.routed_blocks, seen, strict=True):
            every = torch.cat(logits)
            rank = max(1, math.floor((1 - model.config.capacity) * len(every)))
            block.threshold.copy_(every.kthvalue(rank).values)

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: MoDConfig, seq_len: int) -> float:
        """Training FLOPs per token: 6 per weight that multiplies it, and attention in full. A
        routed block counts for C of T tokens, each attending over C; scores count for all."""
        num_routed = len(config.routed_layers)
        blocks = (config.num_layers - num_routed) * _full_flops(config, seq_len)
        blocks += num_routed * _routed_flops(config, seq_len)
        return blocks + _head_flops(config)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Adds the training FLOPs relative to those of a control of equal shape, whole and in the
        blocks alone, and what decoding keeps per token."""
        assert isinstance(model, MoD)
        config = model.config
        control = config.num_layers * _full_flops(config, config.seq_len)
        ours, head = self.flops_per_token(config, config.seq_len), _head_flops(config)
        num_routed = len(config.routed_layers)
        stored = config.num_layers - num_routed + config.capacity * num_routed
        width = 2 * config.model_dim * model.embedding.weight.element_size()
        return super().report(model) | {
            "flops_vs_control": ours / (control + head),
            "block_flops_vs_control": (ours - head) / control,
            "cache_bytes_per_token": stored * width,
        }

    # -- inspection -----------------------------------------------------------------------------

    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """How the causal choice fares against top-k. `diag/` marks what looks at later tokens and
        is no likelihood."""
        assert isinstance(model, MoD)
        nats, num_tokens = torch.zeros(2, dtype=torch.float64), 0
        shares: list[Tensor] = []  # (L, shares) of each batch
        stretches: list[Tensor] = []  # (L, NUM_STRETCHES)
        for batch in batches:
            features, causal = model.encode(batch.inputs)
            looking_ahead, best = model.encode(batch.inputs, topk=True, diagnostic=True)
            for which, stream in enumerate((features, looking_ahead)):
                losses = self._cross_entropy(model, batch, "none", stream)
                nats[which] += in_float64(losses).sum().cpu()
            num_tokens += batch.num_scored
            pairs = zip(causal, best, strict=True)
            shares.append(torch.stack([_inspected_shares(*pair) for pair in pairs]))
            taken = torch.stack(
                [in_float64(routing.chosen).mean(0) for routing in causal]
            )  # (L, T)
            stretches.append(F.adaptive_avg_pool1d(taken, min(NUM_STRETCHES, taken.shape[1])))
        layers = model.config.routed_layers
        table = dict(zip(layers, torch.stack(shares).mean(0).tolist(), strict=True))
        metrics = {"nll": float(nats[0]) / num_tokens, "diag/nll_topk": float(nats[1]) / num_tokens}
        metrics |= {
            f"block{layer}_{name}": value
            for layer, values in table.items()
            for name, value in zip(INSPECTED, values, strict=True)
        }
        curves = Curves(
            title="Tokens chosen by the past alone, beside top-k",
            x_label="block",
            y_label="share",
            series={
                name: [(float(layer), values[column]) for layer, values in table.items()]
                for column, name in enumerate(INSPECTED)
                if name != "gate"
            },
        )
        picture = HeatMap(
            title="Share of tokens that a routed block reads",
            row_label="routed block",
            column_label=f"place in the window, in {stretches[0].shape[1]} stretches",
            values=torch.stack(stretches).mean(0).tolist(),
        )
        return Inspection(metrics, (curves, picture))

    @torch.no_grad()
    def show_sample(self, model: nn.Module, vocabulary: Vocabulary, text: str) -> str | None:
        """The text, each token in as many [brackets] as routed blocks read it."""
        assert isinstance(model, MoD)
        tokens = vocabulary.encode(text)
        device = model.embedding.weight.device
        _, routings = model.encode(torch.tensor([[vocabulary.separator, *tokens]], device=device))
        depth = torch.stack([routing.chosen[0, 1:] for routing in routings]).sum(0)
        pieces = [
            b"[" * count + vocabulary.decode_bytes([token]) + b"]" * count
            for token, count in zip(tokens, depth.tolist(), strict=True)
        ]
        return b"".join(pieces).decode(errors="replace")


def choice_loss(routings: Sequence[Routing]) -> Tensor:
    """Mean binary cross-entropy of the causal choice's logits against the tokens read, in nats."""
    losses = [
        F.binary_cross_entropy_with_logits(routing.logits, routing.chosen.to(routing.logits.dtype))
        for routing in routings
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def choice_shares(routing: Routing) -> dict[str, Tensor]:
    """Of a block under top-k: the share that the causal choice would take, how much of that top-k
    took too (precision), how much of top-k it finds (recall), and the mean factor."""
    both = (routing.above & routing.chosen).sum()
    return {
        "selected": routing.above.sum() / routing.above.numel(),
        "precision": both / routing.above.sum().clamp(min=1),
        "recall": both / routing.chosen.sum(),
        "gate": routing.gate,
    }


INSPECTED = ("selected", "precision", "recall", "agreement", "gate")


def _inspected_shares(causal: Routing, best: Routing) -> Tensor:
    """(len(INSPECTED),) of one block. Precision and recall hold the choices on one stream against
    each other; agreement those of the two passes, whose streams part where choices differ."""
    shares = choice_shares(best)
    shares["selected"] = in_float64(causal.chosen).mean()
    shares["agreement"] = (causal.chosen & best.chosen).sum() / best.chosen.sum()
    return torch.stack([shares[name].cpu().double() for name in INSPECTED])


def _noise(model: MoD, batch: Batch, step: Step) -> Tensor:
    """(L, B, T) scores of the random control, each window's own."""
    shape = len(model.routed_blocks), batch.inputs.shape[1]
    rows = [torch.randn(shape, generator=step.row_generator(int(row))) for row in batch.rows]
    return torch.stack(rows, 1).to(batch.inputs.device)


# -- FLOPs of training, per token ------------------------------------------------------------------


def _full_flops(config: MoDConfig, seq_len: int) -> float:
    dim = config.model_dim
    return 6.0 * (4 * dim**2 + 2 * dim * config.mlp_dim) + 12 * dim * seq_len


def _routed_flops(config: MoDConfig, seq_len: int) -> float:
    share = config.num_selected(seq_len) / seq_len
    flops = share * _full_flops(config, config.num_selected(seq_len))
    if config.has_router:
        flops += 6 * config.model_dim
    if config.has_predictor:
        flops += 6 * (config.model_dim + 1) * config.predictor_dim
    return flops


def _head_flops(config: MoDConfig) -> float:
    return 6.0 * config.vocab_size * config.model_dim


Adapter = MoDAdapter
