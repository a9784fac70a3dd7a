"""The rungs of a ladder, and each model at each of them.

A rung is a plain decoder of some depth and width, with heads of 32 channels; it is named by the
weights of its body in millions. Other models take its depth where they have one, and the width at
which they count as much.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nanozoo_core.comparing.compare.width import width_overrides
from nanozoo_core.comparing.scale import counting
from nanozoo_core.config import ResolvedConfig
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError

HEAD_SIZE = 32
NARROWEST, WIDEST = 24, 34  # channels for each layer
MOST_LAYERS = 64
SIZES = {"body": counting.body, "flops": counting.flops}
UNITS = {"body": "weights in its body", "flops": "FLOPs for each token"}

Resolve = Callable[[Sequence[str]], ResolvedConfig]


@dataclass(frozen=True)
class Rung:
    """A size: its name as it was asked for, and the plain decoder that stands for it."""

    name: str
    num_layers: int
    model_dim: int

    @property
    def body(self) -> int:
        """Of four attention matrices and a feed-forward layer of four times the width."""
        return 12 * self.num_layers * self.model_dim**2


@dataclass(frozen=True)
class Size:
    """A model at a rung."""

    rung: Rung
    overrides: tuple[str, ...]
    config: ResolvedConfig
    counts: counting.Counts


def rung_of(name: str) -> Rung:
    """The decoder nearest to so many million weights whose shape is neither tall nor flat."""
    wanted = float(name) * 1e6
    shapes = [
        Rung(name, layers, HEAD_SIZE * heads)
        for layers in range(1, MOST_LAYERS + 1)
        for heads in range(1, MOST_LAYERS * WIDEST // HEAD_SIZE)
        if NARROWEST <= HEAD_SIZE * heads / layers <= WIDEST
    ]
    return min(shapes, key=lambda shape: abs(math.log(shape.body / wanted)))


def at_rung(resolve: Resolve, rung: Rung, *, match: str, target: float) -> Size:
    """The model with the overrides that bring it to `target`.

    The rung's own depth, width and head size are tried first, then depths beside it and the
    model's own.

    Args: resolve: of the model, with more overrides behind its own. match: body or flops.

    Raises: ConfigError where no width is within 5 percent.
    """
    problem: ConfigError | None = None
    for shape in _shapes(resolve([]), rung):
        words = _words(shape)
        try:
            more = width_overrides(resolve(words), target, size=SIZES[match], unit=UNITS[match])
        except ConfigError as error:
            problem = problem or error
            continue
        keys = {word.partition("=")[0] for word in more}
        whole = (*(word for word in words if word.partition("=")[0] not in keys), *more)
        config = resolve(whole)
        return Size(rung, whole, config, counting.count_at(config))
    assert problem is not None
    raise problem


def _shapes(config: ResolvedConfig, rung: Rung) -> Iterator[dict[str, object]]:
    """Changes of depth, heads and width, those nearest to the rung first; the width is only where
    the search begins."""
    adapter, model_cfg = load_adapter(config.training.model), config.model_cfg
    near = (rung.num_layers, rung.num_layers + 1, max(1, rung.num_layers - 1))
    depths = [adapter.at_depth(model_cfg, num_layers) for num_layers in near]
    widths: list[dict[str, object]] = []
    if isinstance(getattr(model_cfg, "model_dim", None), int):
        widths.append({"model_dim": rung.model_dim})
        if isinstance(getattr(model_cfg, "num_heads", None), int):
            widths.insert(0, widths[0] | {"num_heads": rung.model_dim // HEAD_SIZE})
    seen: list[dict[str, object]] = []
    for changes in (depth | width for depth in (*depths, {}) for width in (*widths, {})):
        if changes not in seen:
            seen.append(changes)
            yield changes


def _words(changes: dict[str, object]) -> list[str]:
    return [f"model_cfg.{key}={json.dumps(value)}" for key, value in changes.items()]
