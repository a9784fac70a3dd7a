"""Places for labels in a column, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The places nearest to those wanted, in the sense of least squares, whose neighbours are at
    least `gap` apart; in the order given, equal ones staying in it."""
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    # Blocks of touching labels: [sum of the wanted places of its first label, labels]. Two that
    # overlap become one, which stands at the mean.
    blocks: list[tuple[float, list[int]]] = []
    for n in order:
        total, members = wanted[n], [n]
        while blocks and _end(blocks[-1], gap) > total / len(members):
            before, others = blocks.pop()
            total = before + total - gap * len(others) * len(members)
            members = others + members
        blocks.append((total, members))
    places = [0.0] * len(wanted)
    for total, members in blocks:
        for position, n in enumerate(members):
            places[n] = total / len(members) + gap * position
    return places


def _end(block: tuple[float, list[int]], gap: float) -> float:
    """Where the label behind a block may begin."""
    total, members = block
    return total / len(members) + gap * len(members)
