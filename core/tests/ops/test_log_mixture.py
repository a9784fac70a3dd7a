"""The fused head of the uniform process: values and gradients against the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.ops import log_mixture as module
from nanozoo_core.testing.reduced_heads import ReducedHeadTests


class TestLogMixture(ReducedHeadTests):
    module = module
    reduction = module.LOG_MIXTURE
    head = module.log_mixture
    reference = module.log_mixture_reference
    logit_size = 4.0

    def row_arguments(
        self, rows: int, vocab_size: int, dtype: torch.dtype, generator: torch.Generator
    ) -> list[Tensor]:
        """The ratios; that of the first row is the first timestep's."""
        ratio = torch.rand(rows, generator=generator, dtype=torch.float64) * 3 * vocab_size
        ratio[:1] = 0
        return [ratio.to(torch.float64 if dtype == torch.float64 else torch.float32)]
