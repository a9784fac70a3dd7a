"""What a mixture of experts asks of training beyond the default: balance losses, the bias that
follows the loads, rates for the routers, and the count of what a token uses.

B batch, T sequence, E experts, L layers of experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanozoo_core.contract import Batch, HeatMap, Inspection, Loss, Step, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.optim.groups import default_roles
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.huggingface import to_hf
from nanozoo_moe.model import MixtureOfExperts, MoE
from nanozoo_moe.routing import (
    Router,
    Routing,
    balance_loss,
    load_metrics,
    score_metrics,
    sequence_loss,
    z_loss,
)


class MoEAdapter(DefaultModelAdapter):
    family = "routing"

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean next-token cross-entropy plus the balance losses, each the mean over layers.

        Tokens are counted here and not in the routers, so that neither evaluation nor recomputed
        activations move the bias.
        """
        assert isinstance(model, MoE)
        features, routings = self._encode(model, batch, step)
        nll = self._cross_entropy(model, batch, "mean", features)
        metrics = {"nll": nll.detach()}
        loss = nll
        for name, weight, penalty in _penalties(model.config, routings, step.totals):
            metrics[name] = penalty.detach()
            loss = loss + weight * penalty
        for (number, router), routing in zip(model.routers(), routings, strict=True):
            if model.training:
                router.loads += routing.counts
            for name, value in score_metrics(routing).items():
                metrics[f"block{number}_{name}"] = value
        return Loss(loss, metrics)

    def batch_totals(self, model: nn.Module, batch: Batch, step: Step) -> Tensor | None:
        """(L, E): the tokens of each expert, where the balance loss multiplies their shares with
        mean scores."""
        assert isinstance(model, MoE)
        if model.config.alpha == 0:
            return None
        _, routings = self._encode(model, batch, step)
        return torch.stack([routing.counts for routing in routings]) if routings else None

    def _encode(self, model: MoE, batch: Batch, step: Step) -> tuple[Tensor, list[Routing]]:
        generators = None
        if model.training and model.config.jitter_noise > 0:
            generators = [step.row_generator(row) for row in batch.rows.tolist()]
        return model.encode(batch.inputs, generators=generators)

    # -- optimisation ---------------------------------------------------------------------------

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """As usual, experts being matrices each; routers are AdamW's, without decay."""
        roles = default_roles(model)
        for path, module in model.named_modules():
            if isinstance(module, Router):
                roles[f"{path}.weight"] = "vector"
        return roles

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Forgets the loads of a step that is taken again."""
        assert isinstance(model, MoE)
        for _, router in model.routers():
            router.loads.zero_()

    @torch.no_grad()
    def after_step(
        self, model: nn.Module, step: Step, optimizers: Sequence[torch.optim.Optimizer]
    ) -> dict[str, Tensor]:
        """Moves each bias by the loads of the whole step, over micro-batches and ranks.

        Returns: how even they were, and the largest bias."""
        assert isinstance(model, MoE)
        metrics: dict[str, Tensor] = {}
        routers = list(model.routers())
        if not routers:
            return metrics
        counts = torch.stack([router.loads for _, router in routers])  # (L, E)
        if step.world_size > 1:
            dist.all_reduce(counts)
        for (number, router), count in zip(routers, counts, strict=True):
            found = load_metrics(count)
            if router.choice_bias is not None:
                self._move_bias(model.config, router, count, step.progress)
                found["bias_max"] = router.choice_bias.abs().max()
            metrics |= {f"block{number}_{name}": value for name, value in found.items()}
            router.loads.zero_()
        return metrics

    @staticmethod
    def _move_bias(config: MoEConfig, router: Router, counts: Tensor, progress: float) -> None:
        assert config.bias_update_rate is not None
        assert config.bias_freeze_frac is not None
        if progress < 1 - config.bias_freeze_frac:
            router.update_bias(counts, config.bias_update_rate)

    # -- other projects -------------------------------------------------------------------------

    def to_hf(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """For Dots1ForCausalLM or Qwen3MoeForCausalLM. Raises: ConfigError for other mixtures."""
        assert isinstance(model, MoE)
        return to_hf(model)

    def is_branchable(self, model_cfg: MoEConfig) -> bool:
        """Unless its bias comes to rest in the last part of the run."""
        return not model_cfg.bias_freeze_frac

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: MoEConfig, seq_len: int) -> float:
        """6 per weight that a token meets, the router and the head among them, plus attention in
        full."""
        with torch.device("meta"):
            model = MoE(config)
        used = _active_parameters(model) - model.embedding.weight.numel()
        return 6.0 * used + 12 * config.num_layers * config.model_dim * seq_len

    def report(self, model: nn.Module) -> dict[str, float]:
        """Adds the parameters that one token uses, and those of one routed expert."""
        assert isinstance(model, MoE)
        counts = super().report(model)
        counts["params_active"] = _active_parameters(model)
        counts["params_expert"] = _expert_parameters(model.config)
        return counts

    # -- inspection -----------------------------------------------------------------------------

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """The load of every expert on this text, and how even it is."""
        assert isinstance(model, MoE)
        numbers = [number for number, _ in model.routers()]
        if not numbers:
            return None
        counts = torch.zeros(0)
        entropies = torch.zeros(len(numbers), dtype=torch.float64)
        num_tokens = 0
        for batch in batches:
            _, routings = model.encode(batch.inputs)
            found = torch.stack([routing.counts for routing in routings]).cpu().double()
            counts = counts + found if len(counts) else found
            weight = batch.inputs.numel()
            for row, routing in enumerate(routings):
                entropies[row] += weight * score_metrics(routing)["router_entropy"].cpu()
            num_tokens += weight
        loads = counts / counts.mean(1, keepdim=True)  # (L, E)
        metrics: dict[str, float] = {}
        for row, (number, router) in enumerate(model.routers()):
            metrics[f"block{number}_max_vio"] = float(loads[row].max() - 1)
            metrics[f"block{number}_min_load"] = float(loads[row].min())
            metrics[f"block{number}_dead_experts"] = int((counts[row] == 0).sum())
            metrics[f"block{number}_router_entropy"] = float(entropies[row] / num_tokens)
            if router.choice_bias is not None:
                metrics[f"block{number}_bias_max"] = float(router.choice_bias.abs().max())
        picture = HeatMap(
            title="tokens of each expert, over the mean",
            row_label=f"block less {numbers[0]}" if numbers[0] else "block",
            column_label="expert",
            values=loads.tolist(),
        )
        return Inspection(metrics, (picture,))


def _penalties(
    config: MoEConfig, routings: list[Routing], totals: Tensor | None
) -> list[tuple[str, float, Tensor]]:
    """Name, weight and mean over layers of every loss beside the cross-entropy.

    Args: totals: (L, E) tokens of each expert in the global batch, or None."""
    counts: list[Tensor | None] = [None] * len(routings) if totals is None else [*totals]
    losses = {
        "sequence_loss": (config.seq_aux_alpha, map(sequence_loss, routings)),
        "balance_loss": (config.alpha, map(balance_loss, routings, counts)),
        "z_loss": (config.beta, map(z_loss, routings)),
    }
    return [
        (name, weight, torch.stack(list(found)).mean())
        for name, (weight, found) in losses.items()
        if weight and routings
    ]


def _active_parameters(model: MoE) -> int:
    """Parameters less those of the routed experts that a token does not use."""
    num_experts, top_k = model.config.routed
    num_mixtures = sum(isinstance(module, MixtureOfExperts) for module in model.modules())
    idle = num_mixtures * (num_experts - top_k) * _expert_parameters(model.config)
    return sum(p.numel() for p in model.parameters()) - idle


def _expert_parameters(config: MoEConfig) -> int:
    """Of one expert; from the settings, because indexing a sharded stack would gather it."""
    return 2 * config.model_dim * config.expert_dim


Adapter = MoEAdapter
