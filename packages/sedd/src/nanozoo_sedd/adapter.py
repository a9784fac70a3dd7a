"""How a SEDD is trained, scored and sampled: by the graph that its noise walks on.

B windows, L scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Draw, Inspection, Loss, Nll, Step, Vocabulary
from nanozoo_core.diffusion.sampling import copies
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.diffusion_adapter import DiffusionAdapter
from nanozoo_core.machine.precision import in_float64
from nanozoo_sedd.config import SEDDConfig
from nanozoo_sedd.mask_graph import MaskGraph
from nanozoo_sedd.model import SEDD
from nanozoo_sedd.uniform_graph import UniformGraph


def graph_of(model: nn.Module) -> MaskGraph | UniformGraph:
    """Where a corrupted token goes: to the mask, or to any token."""
    assert isinstance(model, SEDD)
    return MaskGraph(model) if model.config.is_absorbing else UniformGraph(model)


class SEDDAdapter(DiffusionAdapter):
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean score entropy in nats per token. With time_sampler=t it leaves out t < t_min, and
        under uniform noise both ends of the bound: for training alone."""
        graph = graph_of(model)
        batch = copies(batch, graph.model.config.train_draws)
        total = graph.training_sum(batch, step)
        return Loss((total / max(1, batch.num_scored)).float())

    def nll(self, model: nn.Module, batch: Batch, draw: Draw) -> Nll:
        """One draw of the bound on -log p of each window, with all of its terms. What it bounds is
        the likelihood of ever smaller steps, whatever number is used to sample."""
        return Nll(in_float64(graph_of(model).nats(batch, draw)), batch.num_scored)

    def steps(self, model: nn.Module, holes: Holes) -> Iterator[Tensor]:
        return graph_of(model).steps(holes)

    def head_share(self, config: SEDDConfig) -> float:
        """Half of the rows with masks, which alone are predicted; all under uniform noise."""
        return 0.5 if config.is_absorbing else 1.0

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """The bound by the level of noise, from one draw. With masks, beside it the bound of the
        normalised model, which shows what masses off 1 cost; under uniform noise, its terms."""
        return graph_of(model).inspect(batches, vocabulary)


Adapter = SEDDAdapter
