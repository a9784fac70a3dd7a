"""What kinds of operations the time of a profiled model goes to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

KINDS = {
    "attention": r"attention",
    "optimiser": r"_fused_|_foreach_|^Optimizer",
    "products": r"^aten::(mm|bmm|addmm|baddbmm|_grouped_mm|addmv|mv|dot)$|mkldnn|gemm|cutlass",
    "softmax and exponentials": r"softmax|logsumexp|::exp|::log",
    "norms and activations": r"norm|gelu|silu|relu|sigmoid|tanh|threshold",
    "copies, casts and fills": r"copy_|::clone|::cat$|fill_|zero_|::empty|Memcpy|Memset",
    "gathers and sums": r"embedding|index|gather|scatter|::sum|::mean|cumsum",
}
"""By name a pattern of torch's names; the first that fits is taken. All else is "the rest"."""
REST = "the rest"
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def kind_of(operation: str) -> str:
    for kind, pattern in _PATTERNS.items():
        if pattern.search(operation):
            return kind
    return REST


def shares(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The share of each kind in the time of all, the largest first.

    Args: times: (operation, its own time without that of what it calls), in any unit.
    """
    found: dict[str, float] = {}
    for operation, time in times:
        found[kind_of(operation)] = found.get(kind_of(operation), 0.0) + time
    total = sum(found.values())
    if total == 0:
        return {}
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {kind: time / total for kind, time in ordered if time > 0}


def told(parts: Mapping[str, float]) -> str:
    """In one line of whole percent."""
    return ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in parts.items())
