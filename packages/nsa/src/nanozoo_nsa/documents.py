"""Reading the documents of a window one by one.

B batch, L sequence, N documents of about equal length, M the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Attend = Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor]]


def by_document(attend: Attend, x: Tensor, documents: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Runs `attend` on every document alone, as rows that begin at position 0.

    Documents whose lengths lie between the same powers of two share a batch, right-padded: that at
    most doubles the work, whatever the lengths.

    Args:
        attend: (N, M, D) -> some (N, M, ...) and one (N, heads, M, ...).
        x: (B, L, D); documents: (B, L) numbers, of which each run of equal ones is a document.

    Returns: the same for x, (B, L, ...) and (B, heads, L, ...).
    """
    batch, length = documents.shape
    changes = torch.ones_like(documents, dtype=torch.bool)
    changes[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = changes.flatten().nonzero()[:, 0]
    ends = torch.cat([starts[1:], starts.new_tensor([batch * length])])
    sizes = ends - starts
    flat = x.flatten(0, 1)
    places: list[Tensor] = []
    results: list[tuple[Tensor, ...]] = []
    for bucket in range(int(sizes.max()).bit_length()):
        members = ((sizes >= 1 << bucket) & (sizes < 2 << bucket)).nonzero()[:, 0]
        if len(members) == 0:
            continue
        steps = torch.arange(int(sizes[members].max()), device=x.device)
        is_real = steps < sizes[members, None]  # (N, M)
        index = (starts[members, None] + steps).clamp(max=batch * length - 1)
        found, routed = attend(flat[index])
        places.append(index[is_real])
        results.append(tuple(part[is_real] for part in (*found, routed.transpose(1, 2))))
    order = torch.cat(places).argsort()
    *joined, routed = (
        torch.cat(parts)[order].unflatten(0, (batch, length))
        for parts in zip(*results, strict=True)
    )
    return tuple(joined), routed.transpose(1, 2)
