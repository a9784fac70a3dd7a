"""What recurrent depth asks of training beyond the default: a depth and an initial state drawn for
each step, FLOPs at the expected depth, text at a chosen depth, and the score by depth.

Shapes: B batch, T sequence, D model_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nanozoo_core.contract import (
    Batch,
    Curves,
    Inspection,
    Loss,
    Step,
    Vocabulary,
)
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.likelihood import bits_per_byte, target_bytes
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_rd.config import RDConfig
from nanozoo_rd.model import EVAL_KEY, RecurrentDepth

INSPECTED_DEPTHS = (1, 2, 4, 8, 16, 32)
INSPECTED_SEEDS = 4


class RDAdapter(DefaultModelAdapter):
    family = "recurrence"

    # The depth decides the graph: what is compiled is the parts that it calls.
    @uncompiled(with_callees=False)
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean next-token cross-entropy after a drawn number of iterations on a drawn state."""
        assert isinstance(model, RecurrentDepth)
        depth, key = draw_step(model.config, step)
        tokens = batch.inputs
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        angles = model.angles(positions)
        injected = model.read(tokens, angles)
        state = model.initial_state(key, positions, batch.rows.to(tokens.device))
        thought = model.iterate(state, injected, angles, depth, model.config.num_backprop)
        features = model.finish(thought.state, angles)
        loss = self._cross_entropy(model, batch, "mean", features)
        metrics = state_metrics(*(state.detach() for state in thought))
        return Loss(loss, {"depth": torch.tensor(float(depth), device=tokens.device)} | metrics)

    # -- decoding -------------------------------------------------------------------------------

    @property
    def takes_steps(self) -> bool:
        return True

    @contextmanager
    def at_steps(self, model: nn.Module, num_steps: int | None) -> Iterator[None]:
        """Inside it every token has `num_steps` iterations; None is the config's number."""
        assert isinstance(model, RecurrentDepth)
        own = model.decoding
        model.decoding = own.at(num_steps)
        try:
            yield
        finally:
            model.decoding = own

    def is_branchable(self, model_cfg: RDConfig) -> bool:
        """Unless its depth grows over the run."""
        return model_cfg.recurrence_curriculum == "none"

    def at_depth(self, model_cfg: RDConfig, num_layers: int) -> dict[str, object]:
        """A layer before the core and one behind it, and the others in the core; the sum of the
        three is `num_layers`, where that is given."""
        core = max(1, num_layers - 2)
        total = None if model_cfg.num_layers is None else core + 2
        return {
            "num_prelude_layers": 1,
            "num_core_layers": core,
            "num_coda_layers": 1,
            "num_layers": total,
        }

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: RDConfig, seq_len: int) -> float:
        """Training FLOPs per token at the expected depth: forward through E[p] iterations, backward
        (twice that) through E[min(p, k)]; attention as a full square, recomputation not counted."""
        forward, backward = config.expected_depths()
        return forward_flops(config, seq_len, forward) + 2 * forward_flops(
            config, seq_len, backward
        )

    def report(self, model: nn.Module) -> dict[str, float]:
        """Adds the mean training depth, and the layers that a token passes when scored."""
        assert isinstance(model, RecurrentDepth)
        config, decoding = model.config, model.decoding
        outside = config.num_prelude_layers + config.num_coda_layers
        return super().report(model) | {
            "mean_training_depth": config.expected_depths()[0],
            "layers_per_token": outside + config.num_core_layers * decoding.num_iterations,
        }

    # -- inspection -----------------------------------------------------------------------------

    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        """Bits per byte after 1 .. 32 iterations, whether the state grows, collapses or settles,
        and how far the score moves with the initial state. A flat curve means that the state is
        ignored, a token correlation above 0.9 that it has collapsed."""
        assert isinstance(model, RecurrentDepth)
        num_bytes = sum(target_bytes(batch, vocabulary) for batch in batches)
        to_bits = bits_per_byte(1.0, num_bytes)
        nats = dict.fromkeys(INSPECTED_DEPTHS, 0.0)
        states: dict[str, dict[int, float]] = {}
        for batch in batches:
            for depth, (nll, metrics) in self._by_depth(model, batch, INSPECTED_DEPTHS).items():
                nats[depth] += nll
                for name, value in metrics.items():
                    by_depth = states.setdefault(name, dict.fromkeys(INSPECTED_DEPTHS, 0.0))
                    by_depth[depth] += float(value) / len(batches)
        own = model.decoding.num_iterations
        by_seed = torch.tensor(
            [
                sum(self._by_depth(model, b, (own,), EVAL_KEY + n)[own][0] for b in batches)
                for n in range(1, 1 + INSPECTED_SEEDS)
            ],
            dtype=torch.float64,
        )
        bits = {depth: total * to_bits for depth, total in nats.items()}
        return Inspection(
            metrics={
                **{f"bpb_depth_{depth}": value for depth, value in bits.items()},
                "bpb_over_seeds_mean": float(by_seed.mean()) * to_bits,
                "bpb_over_seeds_std": float(by_seed.std()) * to_bits,
            },
            pictures=(
                _curves("Score by depth", "bits per byte", {"bits per byte": bits}),
                _curves("State by depth", "rms; mean cosine; relative change", states),
            ),
        )

    def _by_depth(
        self, model: RecurrentDepth, batch: Batch, depths: Sequence[int], key: int = EVAL_KEY
    ) -> dict[int, tuple[float, dict[str, Tensor]]]:
        """Summed nats and the state's metrics after each of `depths`, in one recurrence."""
        positions = torch.arange(batch.inputs.shape[1], device=batch.tokens.device)
        angles = model.angles(positions)
        injected = model.read(batch.inputs, angles)
        state = model.initial_state(key, positions).expand_as(injected)
        found, done = {}, 0
        for depth in depths:
            state, previous = model.iterate(state, injected, angles, depth - done)
            done = depth
            features = model.finish(state, angles)
            nll = in_float64(self._cross_entropy(model, batch, "none", features)).sum()
            found[depth] = float(nll), state_metrics(state, previous)
        return found


@uncompiled(with_callees=True)
def draw_step(config: RDConfig, step: Step) -> tuple[int, Tensor]:
    """The depth of a step and the key of its initial states, the same on all ranks and
    micro-steps."""
    generator = step.generator()
    depth = config.law(step.progress).draw(generator)
    return depth, torch.randint(1 << 32, (), generator=generator)


@torch.no_grad()
def state_metrics(state: Tensor, previous: Tensor) -> dict[str, Tensor]:
    """Of states (B, T, D): root mean square, mean cosine between positions, and the last
    iteration's relative change."""
    state, previous = state.float(), previous.float()
    norm = state.norm(dim=-1)  # (B, T)
    length = state.shape[1]
    total = (state / norm[..., None]).sum(1).square().sum(-1)  # (B,): of all pairs, T with self
    return {
        "state_rms": state.square().mean().sqrt(),
        "token_correlation": ((total - length) / max(length * (length - 1), 1)).mean(),
        "relative_change": ((state - previous).norm(dim=-1) / norm).mean(),
    }


def forward_flops(config: RDConfig, seq_len: int, depth: float) -> float:
    """Of one token through `depth` iterations: 2 per weight that multiplies it, and attention."""
    dim = config.model_dim
    layer = 2 * (4 * dim**2 + 3 * dim * config.hidden_dim) + 4 * dim * seq_len
    adapter = 2 * dim**2 if config.adapter_mode == "concat" else 0
    outside = config.num_prelude_layers + config.num_coda_layers
    layers = (outside + depth * config.num_core_layers) * layer
    return layers + (depth + 1) * adapter + 2 * dim * config.vocab_size


def _curves(title: str, y_label: str, series: dict[str, dict[int, float]]) -> Curves:
    points = {name: [(float(x), y) for x, y in by.items()] for name, by in series.items()}
    return Curves(title, "iterations", y_label, points)


Adapter = RDAdapter
