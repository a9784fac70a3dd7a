"""Checks of a model's drafter: speculative text is the model's own, greedy and drawn.

B rows, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Choose, Drafter, SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.autoregressive import autoregressive
from nanozoo_core.generation.speculative import Tally, decode, speculative
from nanozoo_core.ops.sampling import probabilities
from nanozoo_core.randomness import seeded_generator

GREEDY = SamplingSettings(temperature=0)


def decoded_rows(
    drafter: Drafter,
    tokens: Tensor,
    lengths: Tensor,
    settings: SamplingSettings,
    *,
    max_tokens: int,
    tally: Tally | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """What `decode` gives to each of some prompts (B, T) with `lengths` (B,), put together."""
    rows: list[list[int]] = [[] for _ in tokens]
    generator = seeded_generator(seed)
    for passed in decode(
        drafter, tokens, lengths, settings, generator, max_tokens=max_tokens, tally=tally
    ):
        for row, new in zip(rows, passed, strict=True):
            row += new
    return rows


@torch.no_grad()
def check_greedy_rows(
    adapter: DefaultModelAdapter, model: nn.Module, *, vocab_size: int, max_tokens: int = 128
) -> Tally:
    """20 prompts of 1 to 20 tokens, every row at its own pace, give what plain decoding gives.

    Give the model in float64, where no rounding decides between tokens.
    """
    tokens = torch.randint(vocab_size, (20, 20), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(1, 21)
    tally = Tally()
    found = decoded_rows(
        _drafter(adapter, model), tokens, lengths, GREEDY, max_tokens=max_tokens, tally=tally
    )
    cache = adapter.init_cache(model, 20, 20 + max_tokens)
    plain = [adapter.prefill(model, tokens, lengths, cache).argmax(-1)]
    for _ in range(max_tokens - 1):
        plain.append(adapter.append(model, plain[-1][:, None], cache)[:, 0].argmax(-1))
    assert found == torch.stack(plain, 1).tolist()
    return tally


def check_greedy_text(adapter: DefaultModelAdapter, model: nn.Module, *, max_tokens: int) -> Tally:
    """One text, longer than the context if asked, is that of plain decoding."""
    settings = SamplingSettings(temperature=0, max_tokens=max_tokens)
    tally = Tally()
    plain = autoregressive(adapter, model, [1, 2, 3], settings, seeded_generator(0))
    drafted = speculative(
        _drafter(adapter, model), [1, 2, 3], settings, seeded_generator(0), tally=tally
    )
    assert [t for new in drafted for t in new] == [t for new in plain for t in new]
    return tally


@torch.no_grad()
def check_bfloat16_logits(
    adapter: DefaultModelAdapter, model: nn.Module, *, vocab_size: int
) -> None:
    """In bfloat16 a pass over several tokens rounds otherwise than one over each of them, so greedy
    texts may part where two tokens are level. But passes that check drafts come as near to the
    logits of float64 as plain decoding does: their largest error is at most twice as large.

    Args: model: in float64.
    """
    length, known = 33, 9
    tokens = torch.randint(vocab_size, (4, length), generator=torch.Generator().manual_seed(0))
    exact = model(tokens)[:, known - 1 :]
    low = copy.deepcopy(model).bfloat16()
    lengths = torch.full((4,), known)
    cache = adapter.init_cache(low, 4, length)
    plain = [adapter.prefill(low, tokens[:, :known], lengths, cache)[:, None]]
    plain += [adapter.append(low, tokens[:, n : n + 1], cache) for n in range(known, length)]

    def answers(upcoming: Iterator[Tensor]) -> Choose:
        return lambda logits: next(upcoming)

    drafter = _drafter(adapter, low)
    step = drafter.num_drafts + 1
    checked = [drafter.begin(tokens[:, :known], lengths, length + 2 * step)[:, None]]
    for start in range(known, length - step + 1, step):
        upcoming = iter(tokens[:, start + 1 : start + step].unbind(1))
        drafter.draft(tokens[:, start], answers(upcoming))
        checked.append(drafter.check(tokens[:, start : start + step]))
        drafter.keep(torch.full((4,), step))

    def error(pieces: list[Tensor]) -> float:
        found = torch.cat(pieces, 1).double()
        return float((found - exact[:, : found.shape[1]]).abs().max())

    size = float(exact.abs().max())
    # 2^-9 for each of about a hundred roundings in a row, of random sign: 2 percent.
    assert error(plain) <= 0.04 * size
    assert error(checked) <= 2 * error(plain)


@torch.no_grad()
def check_sampled_rows(
    adapter: DefaultModelAdapter, model: nn.Module, settings: SamplingSettings, *, vocab_size: int
) -> Tally:
    """20 000 texts of three tokens behind one prompt, against the probabilities of plain forward
    passes: single tokens and pairs, by chi-square at 0.999."""
    pairs = torch.cartesian_prod(torch.arange(vocab_size), torch.arange(vocab_size))
    prompt = torch.tensor([[1, 2, 3]])
    tokens = torch.cat([prompt.expand(len(pairs), 3), pairs], 1)
    p = probabilities(model(tokens)[:, 2:], settings)
    p = p.reshape(vocab_size, vocab_size, 3, vocab_size)
    exact = p[0, 0, 0][:, None, None] * p[:, 0, 1][:, :, None] * p[:, :, 2]  # (V, V, V)
    tally = Tally()
    found = torch.tensor(
        decoded_rows(
            _drafter(adapter, model),
            prompt.expand(20_000, 3),
            torch.full((20_000,), 3),
            settings,
            max_tokens=3,
            tally=tally,
        )
    )
    for places in ((0,), (1,), (2,), (0, 1), (1, 2)):
        expected = exact.sum([place for place in range(3) if place not in places]).flatten()
        index = torch.zeros(len(found), dtype=torch.int64)
        for place in places:
            index = vocab_size * index + found[:, place]
        assert_follows(torch.bincount(index, minlength=len(expected)), expected)
    return tally


def assert_follows(observed: Tensor, probs: Tensor) -> None:
    """Counts (N,) of draws follow probabilities (N,): their chi-square statistic is below its 0.999
    quantile, by Wilson and Hilferty's approximation. Cells that expect fewer than 5 are taken as
    one, and impossible ones must be empty."""
    expected = probs * observed.sum()
    assert not observed[expected == 0].any()
    rare = expected < 5
    cells = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts = torch.cat([observed[~rare], observed[rare].sum()[None]])
    cells, counts = cells[cells > 0], counts[cells > 0]
    freedom = len(cells) - 1
    if freedom == 0:
        return
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert float(((counts - cells) ** 2 / cells).sum()) < quantile


def _drafter(adapter: DefaultModelAdapter, model: nn.Module) -> Drafter:
    drafter = adapter.drafter(model)
    assert drafter is not None
    return drafter
