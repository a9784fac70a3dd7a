"""Numbers as people write them in tables."""

from __future__ import annotations


def scaled(value: float | None, unit: str = "") -> str:
    """1234567 as 1.23 M; empty for None."""
    if value is None:
        return ""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()
