"""Everything that changes over a run, as pure functions of its progress: so a resumed run is the
same run. Nothing here imports torch.

A stage is a number 0 .. num_stages - 1; num_stages stands for the time after training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from nanozoo_current_best_gpt.config import CurrentBestConfig

T = TypeVar("T")

# Rotations within the old window: below the first a frequency is slowed by the whole ratio, above
# the second not at all (arXiv 2309.00071, section 3.2).
YARN_SLOW, YARN_FAST = 1, 32


def stage_at(config: CurrentBestConfig, progress: float) -> int:
    """The stage that holds at `progress`."""
    return max(sum(start <= progress for start in config.stage_starts) - 1, 0)


def of_stage(values: Sequence[T], stage: int) -> T:
    """The entry of a stage, in a list with one per stage or one for all."""
    return values[min(stage, len(values) - 1)]


def within_stage(config: CurrentBestConfig, progress: float) -> float:
    """How much of its stage is over at `progress`, 0 .. 1."""
    stage = stage_at(config, progress)
    bounds = [*config.stage_starts, 1.0]
    return (progress - bounds[stage]) / (bounds[stage + 1] - bounds[stage])


def windows(config: CurrentBestConfig, stage: int) -> tuple[int, int]:
    """(short, long) of a stage."""
    short, long = of_stage(config.windows, stage)
    if stage >= config.num_stages and config.eval_window_long is not None:
        long = config.eval_window_long
    return short, long


def mtp_weights(config: CurrentBestConfig, progress: float) -> list[float]:
    """Weights of the next token, the one after it, ...: linear within a stage."""
    start, end = of_stage(config.mtp_weights, stage_at(config, progress))
    share = within_stage(config, progress)
    return [a + (b - a) * share for a, b in zip(start, end, strict=True)]


def prefix_weight(config: CurrentBestConfig, progress: float) -> float:
    """Weight of the prefix token: linear within a stage."""
    start, end = of_stage(config.prefix_weight, stage_at(config, progress))
    return start + (end - start) * within_stage(config, progress)


def lr_peak(config: CurrentBestConfig, progress: float) -> float:
    """The top of the learning-rate schedule."""
    return of_stage(config.lr_peaks, stage_at(config, progress))


def is_tied(config: CurrentBestConfig, progress: float) -> bool:
    """Whether head and embedding are one."""
    return config.untie_at is None or progress < config.untie_at


def rotary_frequencies(config: CurrentBestConfig, stage: int) -> list[float]:
    """Radians per position of each turning pair of channels, from fast to slow."""
    count = config.rotary_dim // 2
    steps = [i / (count - 1) if count > 1 else 0.0 for i in range(count)]
    frequencies = [config.rope_base**-step for step in steps]
    for old, new in _window_changes(config, stage):
        frequencies = [w * _yarn_factor(w, old, new) for w in frequencies]
    return frequencies


def attention_scale(config: CurrentBestConfig, stage: int) -> float:
    """Factor on the scores."""
    scale = config.attn_scale or config.head_dim**-0.5
    for old, new in _window_changes(config, stage):
        scale *= 1 + 0.2 * math.log(new / old)
    return scale


def _window_changes(config: CurrentBestConfig, stage: int) -> list[tuple[int, int]]:
    """(old, new) long windows up to a stage; that of scores after training changes nothing."""
    if not config.yarn:
        return []
    last = min(stage, config.num_stages - 1)
    lengths = [of_stage(config.windows, number)[1] for number in range(last + 1)]
    return [(a, b) for a, b in itertools.pairwise(lengths) if a != b]


def _yarn_factor(frequency: float, old: int, new: int) -> float:
    rotations = old * frequency / (2 * math.pi)
    kept = min(max((rotations - YARN_SLOW) / (YARN_FAST - YARN_SLOW), 0.0), 1.0)
    return old / new + kept * (1 - old / new)
