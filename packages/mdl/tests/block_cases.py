"""Small models in blocks, whose every mask, order and text can be listed.

B windows, S positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.diffusion.models import SmallModels
from nanozoo_mdl.generate import unmask
from nanozoo_mdl.model import MDLM

SMALL = SmallModels(
    "mdl", {"plain": {}}, {"locality": 0.25}, vocab_size=2, seq_len=6, model_dim=16, num_layers=1
)
NUM_TEXTS = 2**6
NUM_DRAWS = 4000


def small(size: int, **changes: object) -> MDLM:
    """Its predictions differ much from text to text."""
    model: MDLM = SMALL.make(block_size=size, **changes).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = seeded_generator(9, len(name), parameter.numel())
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.6 * noise)
    return model


def texts() -> Tensor:
    """(64, 7): all texts behind a context token."""
    return torch.tensor([(1, *text) for text in itertools.product(range(2), repeat=6)])


def log_probs(model: MDLM, windows: Tensor, start: int, end: int, hidden: Tensor) -> Tensor:
    """(B, end - start): log p of each token of a block of which `hidden` (end - start,) is masked,
    behind the clean text before it."""
    tokens = windows[:, :end].clone()
    tokens[:, start:] = tokens[:, start:].masked_fill(hidden, SMALL.vocab_size)
    with torch.no_grad():
        found = model(tokens)[:, start:].log_softmax(-1)
    return found.gather(-1, windows[:, start:end, None])[..., 0]


def exact_bound(model: MDLM, windows: Tensor) -> Tensor:
    """(B,) nats: over all subsets of every block."""
    nats = torch.zeros(len(windows), dtype=torch.float64)
    for start, end in spans(6, model.blocks.size):
        first = max(start, 1)
        size = end - first
        for pattern in itertools.product((False, True), repeat=size):
            k = sum(pattern)
            if k:
                hidden = torch.tensor([False] * (first - start) + list(pattern))
                losses = -log_probs(model, windows, start, end, hidden)[:, hidden].sum(1)
                nats += losses / (k * math.comb(size, k))
    return nats


def exact_law(model: MDLM, windows: Tensor, num_known: int = 1) -> Tensor:
    """(B,): with which probability each window is drawn behind its first `num_known` tokens: in
    every block the mean over all orders of its holes."""
    law = torch.ones(len(windows), dtype=torch.float64)
    for start, end in spans(6, model.blocks.size):
        known_odds: dict[frozenset[int], Tensor] = {}  # by what is hidden
        holes = [place for place in range(start, end) if place >= num_known]
        orders = list(itertools.permutations(holes))
        mean = torch.zeros_like(law)
        for order in orders:
            product = torch.ones_like(law)
            for number, place in enumerate(order):
                left = frozenset(order[number:])
                if left not in known_odds:
                    hidden = torch.tensor([p in left for p in range(start, end)])
                    known_odds[left] = log_probs(model, windows, start, end, hidden).exp()
                product *= known_odds[left][:, place - start]
            mean += product / len(orders)
        law *= mean
    return law


def spans(length: int, size: int) -> list[tuple[int, int]]:
    """First position of each block, and the one behind it; the context is with the first."""
    starts = range(1, length + 1, size)
    return [(0 if n == 1 else n, min(n + size, length + 1)) for n in starts]


def states(model: MDLM, windows: Tensor, seed: int = 0, **settings: object) -> Iterator[Tensor]:
    """Of windows (B, S) whose holes are masks."""
    chosen = SamplingSettings(**settings)  # type: ignore[arg-type]
    known = windows != model.mask_id
    with torch.no_grad():
        yield from unmask(model, Holes(windows, known, chosen, seeded_generator(seed)))
