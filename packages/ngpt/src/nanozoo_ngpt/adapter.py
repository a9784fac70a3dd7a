"""How nGPT trains: as any next-token model, and after each step back on the sphere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Curves, Inspection, Step, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_ngpt.config import NGPTConfig
from nanozoo_ngpt.model import NGPT, Attention, Block, UnitEmbedding, UnitLinear


class Adapter(DefaultModelAdapter):
    def before_step(self, model: nn.Module, step: Step) -> None:
        """The first step of a process may follow a load, of weights of any length."""
        assert isinstance(model, NGPT)
        if not model.has_stepped:
            self._project(model)
            model.has_stepped = True

    def after_step(
        self, model: nn.Module, step: Step, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        """Moments stay as they are: the projection is no part of the gradient."""
        assert isinstance(model, NGPT)
        self._project(model)

    def _project(self, model: NGPT) -> None:
        config: NGPTConfig = model.config
        if config.weight_norm == "project":
            model.project()

    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """How far each block steps, and what the scales have become."""
        assert isinstance(model, NGPT)
        series: dict[str, list[tuple[float, float]]] = {"attention": [], "mlp": []}
        metrics = {"sz_mean": float(model.sz().mean()), "norm_error": _norm_error(model)}
        for number, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            for name, scale in (("attention", block.alpha_attention), ("mlp", block.alpha_mlp)):
                alpha = float(scale().abs().mean())
                series[name].append((number, alpha))
                metrics[f"block{number}_alpha_{name}"] = alpha
            attention = block.attention
            assert isinstance(attention, Attention)
            if attention.sqk is not None:
                metrics[f"block{number}_sqk"] = float(attention.sqk().abs().mean())
        picture = Curves("mean step of each block", "block", "|alpha|", series)
        return Inspection(metrics, (picture,))


def _norm_error(model: NGPT) -> float:
    """The largest distance of a weight vector's length from 1."""
    errors: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, UnitLinear | UnitEmbedding):
            norms = torch.linalg.vector_norm(module.unit_weight(), dim=module.axis)
            errors.append((norms - 1).abs().max())
    return float(torch.stack(errors).max())
