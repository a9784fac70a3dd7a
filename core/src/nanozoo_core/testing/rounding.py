"""How far results in bfloat16 may lie apart, from how often a number is rounded on its way.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation import decoding_dtype
from nanozoo_core.generation.decoding_dtype import RoundedWeights

UNIT_ROUNDOFF = 2.0**-8  # of bfloat16: 8 significant bits, rounded to the nearest


def relative_bound(num_roundings: int, unit: float = UNIT_ROUNDOFF) -> float:
    """gamma_n = n u / (1 - n u): the relative error of a number that is rounded n times, each time
    by a factor within 1 +- u.

    Raises: ValueError for so many roundings that nothing is left.
    Reference: Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1.
    """
    if num_roundings * unit >= 1:
        raise ValueError(f"{num_roundings} roundings by {unit} leave no digit")
    return num_roundings * unit / (1 - num_roundings * unit)


@contextmanager
def counted_products() -> Iterator[list[int]]:
    """Counts the products of rounded weights inside it, in the one element of a list."""
    count, real = [0], decoding_dtype.rounded_linear

    def counting(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        count[0] += 1
        return real(x, matrix, bias)

    with mock.patch.object(decoding_dtype, "rounded_linear", counting):
        yield count


@torch.no_grad()
def check_rounded_decoding(
    adapter: DefaultModelAdapter, model: nn.Module, tokens: Tensor, *, vocab_size: int
) -> None:
    """With rounded weights a model reads (1, T) tokens one by one as it reads them at once, and no
    token moves what stands before it.

    The two ways round the same numbers, but in sums of another order. On its way to the logits a
    number is rounded twice by each product, before it and behind it; the weights are rounded the
    same in both. So each way lies within gamma_n of one without these roundings, where every part
    of the model hands on a relative error as it is, as its norms and its residual stream do, and
    the two lie within twice of that. For models whose products all follow each other.
    """
    length = tokens.shape[1]
    with RoundedWeights(model):
        with counted_products() as count:
            whole = model(tokens)[0]  # (T, V)
        bound = 2 * relative_bound(2 * count[0])
        cache = adapter.init_cache(model, 1, length)
        first = adapter.prefill(model, tokens[:, :1], torch.tensor([1]), cache)  # (1, V)
        rest = [adapter.append(model, tokens[:, t : t + 1], cache)[0] for t in range(1, length)]
        assert _apart(torch.cat([first, *rest]), whole).max() <= bound

        middle = length // 2
        changed = tokens.clone()
        changed[:, middle] = (changed[:, middle] + 1) % vocab_size
        apart = _apart(model(changed)[0], whole)  # (T,)
        assert apart[:middle].max() <= bound
        assert apart[middle] > bound, "the bound is too wide to see a token that should not be seen"
    assert count[0] > 0
    assert not torch.equal(model(tokens)[0], whole)


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """(T,): the distance of logits (T, V), relative to their size."""
    return (found - expected).norm(dim=1) / expected.norm(dim=1)
