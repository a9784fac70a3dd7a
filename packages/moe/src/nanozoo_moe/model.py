"""The control decoder with mixtures of experts in the place of its upper MLPs.

B batch, T sequence, D model_dim, V vocabulary, E experts, k experts per token, F width of an
expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.control import ControlBlock, ControlModel, init_input_matrix
from nanozoo_core.nn.feed_forward import ReluSquared, relu_squared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.experts import Implementation, mix_experts
from nanozoo_moe.routing import Router, Routing


class MixtureOfExperts(nn.Module):
    """y = sum over a token's k experts of w_j FFN_j(h), plus FFN_shared(h).

    Several shared experts are one MLP of their joint width, which computes the same. A single
    expert needs no router: it takes every token.
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        num_experts, model_dim, expert_dim = config.routed[0], config.model_dim, config.expert_dim
        self.implementation: Implementation = config.experts_impl
        self.scale = config.routed_scale
        self.router = Router(config) if num_experts > 1 else None
        self.up = nn.Parameter(torch.empty(num_experts, expert_dim, model_dim))
        self.down = nn.Parameter(torch.empty(num_experts, model_dim, expert_dim))
        shared_dim = config.shared * expert_dim
        self.shared = ReluSquared(model_dim, shared_dim) if shared_dim else None
        self.init_weights()

    def init_weights(self) -> None:
        """
        up, shared.up      U(+-sqrt(3) * 0.5 / sqrt(D)): the fan-in of one expert
        down, shared.down  0
        router.weight      Router.init_weights
        """
        init_input_matrix(self.up)
        nn.init.zeros_(self.down)
        if self.shared is not None:
            init_input_matrix(self.shared.up.weight)
            nn.init.zeros_(self.shared.down.weight)

    def forward(
        self, h: Tensor, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, Routing | None]:
        """h (B, T, D) -> the mixture's output and how it was routed."""
        routing = None
        if self.router is None:
            y = F.linear(relu_squared(F.linear(h, self.up.squeeze(0))), self.down.squeeze(0))
            if self.scale != 1:
                y = y * self.scale
        else:
            routing = self.router(h, generators)
            y = mix_experts(
                h.flatten(0, 1),
                self.up,
                self.down,
                routing.experts.flatten(0, 1),
                routing.weights.flatten(0, 1),
                self.implementation,
            ).view_as(h)
        return y if self.shared is None else y + self.shared(h), routing


class MoEBlock(ControlBlock):
    """The control block with a mixture of experts as its MLP; it returns the routing too.

    It takes over the attention of the block `dense`, and a lone expert of the same width its MLP:
    with one seed all that the control has starts as the control's.
    """

    def __init__(self, config: MoEConfig, dense: ControlBlock) -> None:
        super().__init__(config.model_dim, config.num_heads, mlp_ratio=config.mlp_ratio)
        self.attention = dense.attention
        mixture = MixtureOfExperts(config)
        if config.num_experts == 1 and config.expert_dim == config.mlp_dim:
            with torch.no_grad():
                mixture.up.copy_(dense.mlp.up.weight[None])
        self.mlp = mixture  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        angles: Angles,
        *,
        cache: KVCache | None = None,
        layer: int = 0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, Routing | None]:
        attended = self.attention(rms_norm(x), angles, cache=cache, layer=layer)
        mixed, routing = self.mlp(rms_norm(x + attended), generators)
        return x + (attended + mixed), routing


class MoE(ControlModel):
    """The control; blocks from `first_k_dense` on are mixtures of experts."""

    config: MoEConfig

    def __init__(self, config: MoEConfig) -> None:
        super().__init__(config)
        for number, block in enumerate(self.blocks):
            if number >= config.num_dense:
                assert isinstance(block, ControlBlock)
                self.blocks[number] = MoEBlock(config, block)

    def encode(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """The final normalised stream (B, T, D) for tokens (B, T), and how each router decided.

        Args: generators: one per row, for the jitter of the routers' inputs; None leaves it off.
        """
        x, angles = self.embed(tokens, cache)
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            if not isinstance(block, MoEBlock):
                x = block(x, angles, cache=cache, layer=layer)
                continue
            x, routing = block(x, angles, cache=cache, layer=layer, generators=generators)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return rms_norm(x), routings

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final normalised stream (B, T, D) for tokens (B, T); `cache` continues a sequence."""
        return self.encode(tokens, cache)[0]

    def routers(self) -> Iterator[tuple[int, Router]]:
        """The routers with the numbers of their blocks."""
        for number, block in enumerate(self.blocks):
            mixture = getattr(block, "mlp", None)
            if isinstance(mixture, MixtureOfExperts) and mixture.router is not None:
                yield number, mixture.router


Model = MoE
