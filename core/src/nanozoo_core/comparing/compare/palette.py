"""How the entries of a comparison look in its charts: a hue for each family, a dash for each member
of it, and which of them are drawn in colour at first."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from nanozoo_core.comparing.compare.results import Entry

MOST_IN_COLOUR = 8  # lines that an eye can follow; the others are grey
HUES = (215, 25, 140, 285, 350, 180, 50, 320)  # degrees, far apart for neighbours in the list
DASHES = ("", "7 3", "2 2", "9 3 2 3", "14 3", "2 5")  # lengths of strokes and gaps; "" is solid
LUMINANCE = 0.19  # of every colour: in the middle between a white page and a dark one


@dataclass(frozen=True)
class Look:
    """How one entry is drawn. `dash` is as SVG has it."""

    colour: str
    dash: str
    in_colour: bool
    """Whether it is, before the reader chooses."""


def looks(ranked: Sequence[Entry]) -> dict[str, Look]:
    """The look of each entry by its label.

    Args: ranked: all entries, the best first.
    """
    families = list(dict.fromkeys(entry.family for entry in ranked))
    first = [next(e for e in ranked if e.family == family) for family in families]
    shown = first[:MOST_IN_COLOUR]
    shown += [entry for entry in ranked if entry not in first][: MOST_IN_COLOUR - len(shown)]
    labels = {entry.label for entry in shown}
    found = {}
    for family in families:
        colour = colour_of(_hue(families.index(family)))
        members = [entry for entry in ranked if entry.family == family]
        for number, entry in enumerate(members):
            dash = DASHES[number % len(DASHES)]
            found[entry.label] = Look(colour, dash, entry.label in labels)
    return found


def _hue(number: int) -> float:
    """In turns; where the list ends it begins again, halfway to the next."""
    lap, place = divmod(number, len(HUES))
    return ((HUES[place] + 22.5 * lap) % 360) / 360


def colour_of(hue: float) -> str:
    """#rrggbb of a hue in turns, as light as all others: LUMINANCE is found by halving."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        text = _hex(colorsys.hls_to_rgb(hue, middle, 0.7))
        low, high = (low, middle) if luminance(text) > LUMINANCE else (middle, high)
    return _hex(colorsys.hls_to_rgb(hue, low, 0.7))


def _hex(channels: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def luminance(colour: str) -> float:
    """The relative luminance of #rrggbb, 0 to 1 (WCAG 2.2)."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
