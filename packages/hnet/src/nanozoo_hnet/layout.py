"""Layout strings: which layers each network of the hierarchy has, e.g. ["m4", ["T12"], "m4"].

A layout is a nested list [encoder, inner, decoder] with a one-element list at the bottom. A network
is a run of letter + count: m is a Mamba-2 mixer, t an attention mixer, both without an MLP; a
capital adds one. Configs say which letters exist.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_RUN = re.compile(r"([A-Za-z])(\d+)")


@dataclass(frozen=True)
class Layer:
    """One block: the lower-case letter of its mixer, and whether an MLP follows."""

    letter: str
    has_mlp: bool


@dataclass(frozen=True)
class StageLayout:
    """The networks of one stage: encoder and decoder around the next stage, or the main network."""

    encoder: tuple[Layer, ...] = ()
    decoder: tuple[Layer, ...] = ()
    main: tuple[Layer, ...] = ()

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.encoder + self.decoder + self.main

    @property
    def height(self) -> int:
        """Residual additions in this stage."""
        return sum(2 if layer.has_mlp else 1 for layer in self.layers)


def parse_network(text: str, letters: Collection[str]) -> tuple[Layer, ...]:
    """The layers of one network, "T1m3" -> (T, m, m, m).

    Raises: ValueError when the string is not ([letter][count >= 1])+ over `letters` and capitals.
    """
    runs = _RUN.findall(text)
    if not text or "".join(letter + count for letter, count in runs) != text:
        raise ValueError(f"'{text}' must be letters with counts, such as m4 or T1m3")
    layers: list[Layer] = []
    for letter, count in runs:
        if letter.lower() not in letters:
            known = " ".join(f"{x} {x.upper()}" for x in letters)
            raise ValueError(f"'{text}' has the unknown letter '{letter}'; there are {known}")
        if int(count) < 1:
            raise ValueError(f"'{text}' has the count {count}; counts start at 1")
        layers += [Layer(letter.lower(), has_mlp=letter.isupper())] * int(count)
    return tuple(layers)


def parse_layout(layout: object, letters: Collection[str]) -> list[StageLayout]:
    """The stages of a nested layout, outermost first.

    Raises: ValueError when the nesting or a network's string is wrong.
    """
    shape = "must be [encoder, inner, decoder] around an inner list, or [main] at the bottom"
    if not isinstance(layout, list | tuple) or len(layout) not in (1, 3):
        raise ValueError(f"{layout} {shape}")
    names = layout if len(layout) == 1 else (layout[0], layout[2])
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{layout} {shape}")
    networks = [parse_network(name, letters) for name in names]
    if len(layout) == 1:
        return [StageLayout(main=networks[0])]
    outer = StageLayout(encoder=networks[0], decoder=networks[1])
    return [outer, *parse_layout(layout[1], letters)]
