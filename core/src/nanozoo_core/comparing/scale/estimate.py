"""What the points of one model say: its surface L(N, D), its law L(C), and copies of both that
carry the noise between seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, reduce

import numpy as np

from nanozoo_core.comparing.scale import frontier, power_law
from nanozoo_core.comparing.scale.frontier import Frontier
from nanozoo_core.comparing.scale.power_law import Array, PowerLaw
from nanozoo_core.comparing.scale.repetition import MOST_EPOCHS
from nanozoo_core.comparing.scale.scores import Noise, Scores
from nanozoo_core.randomness import hash_integers

COPIES = 1000
MIN_RUNGS, MIN_BUDGETS = 3, 3  # for the exponents of a surface
MIN_FRONTIER = 4  # points for the three parameters of L(C)
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Estimate:
    """Row 0 of every array is the estimate from the points themselves, and the others are copies:
    the fitted scores with fresh noise, each fitted anew. Without a second seed there are none."""

    scores: Scores
    noise: Noise | None
    copies: int = COPIES
    seed: int = 0
    _frontiers: dict[tuple[str, str], Frontier] = field(default_factory=dict, compare=False)

    @cached_property
    def lack(self) -> str | None:
        """What the points lack for a surface; None where they carry one."""
        rungs, budgets = len(self.scores.rungs), len(set(self.scores.cells))
        per_rung = budgets / max(1, rungs)
        if rungs >= MIN_RUNGS and per_rung >= MIN_BUDGETS:
            return None
        return (
            f"{self.scores.model} has {rungs} rungs with {per_rung:g} budgets each, and a surface "
            f"L(N, D) needs at least {MIN_RUNGS} rungs with {MIN_BUDGETS} budgets"
        )

    @cached_property
    def deviations(self) -> Array:
        """(copies, N), none without a measured noise. The model's name and the seed decide them."""
        if self.noise is None:
            return np.zeros((0, len(self.scores.loss)))
        generator = np.random.default_rng(hash_integers(self.seed, *self.scores.model.encode()))
        return self.noise.draw(self.scores, self.copies, generator)

    @cached_property
    def surface(self) -> PowerLaw:
        """L(N, D) of the points and of the copies."""
        logs = self.scores.logs
        own = power_law.fit(logs, self.scores.log_loss[None])
        if not len(self.deviations):
            return own
        again = power_law.refit(logs, own.log_loss(logs) + self.deviations, own)
        return own.joined(again)

    @cached_property
    def copied_losses(self) -> Array:
        """(1 + copies, N): log losses around the mean of each point's seeds."""
        cells = self.scores.cells
        means = {
            cell: np.mean(
                [v for c, v in zip(cells, self.scores.log_loss, strict=True) if c == cell]
            )
            for cell in set(cells)
        }
        centre = np.array([means[cell] for cell in cells])
        return np.concatenate([centre[None], centre + self.deviations])

    def frontier(self, axis: str, kind: str) -> Frontier:
        """The least loss over a cost. Args: kind: surface or hull."""
        if (axis, kind) not in self._frontiers:
            found = (
                frontier.of_surface(self.surface, self.scores, axis)
                if kind == "surface"
                else frontier.of_points(self.scores, self.copied_losses, axis)
            )
            self._frontiers[axis, kind] = found
        return self._frontiers[axis, kind]

    @cached_property
    def refits(self) -> PowerLaw | None:
        """The surface without each of the rungs in turn, a row for each; None where too few would
        be left."""
        if self.lack is not None or len(self.scores.rungs) <= MIN_RUNGS:
            return None
        less = [self.scores.without(rung) for rung in self.scores.rungs]
        return reduce(
            PowerLaw.joined, [power_law.fit(one.logs, one.log_loss[None]) for one in less]
        )

    def beyond(self, factor: float) -> Frontier | None:
        """The least loss in FLOPs from the dearest point to `factor` times its cost, with sizes up
        to `factor` times the largest; None without a surface. Nothing was measured there."""
        if self.lack is not None:
            return None
        return frontier.of_surface(self.surface, self.scores, "flops", beyond=factor)

    @cached_property
    def compute_law(self) -> PowerLaw | None:
        """L(C) = E + A C^-gamma of the corners of the points' frontier; None where they are too
        few."""
        edge, corners = self.frontier("flops", "hull"), self._corner_costs()
        if len(corners) < MIN_FRONTIER:
            return None
        losses = np.stack([edge.at(cost) for cost in corners], 1)  # (1 + copies, corners)
        logs = corners[:, None]
        own = power_law.fit(logs, losses[:1])
        return own.joined(power_law.refit(logs, losses[1:], own)) if len(losses) > 1 else own

    def _corner_costs(self) -> Array:
        """Log FLOPs of the points that no cheaper one beats."""
        cost = np.log(self.scores.flops)
        order = np.argsort(cost)
        best = np.minimum.accumulate(self.copied_losses[0][order])
        is_new = np.concatenate([[True], best[1:] < best[:-1]])
        return np.unique(cost[order][is_new])

    def local_slope(self, log_flops: float) -> Array | None:
        """(1 + copies,): d log L / d log C of the law at a compute."""
        law = self.compute_law
        if law is None:
            return None
        share = np.exp(law.log_a[:, 0] - law.alpha[:, 0] * log_flops - law.log_loss(
            np.array([[log_flops]]))[:, 0])  # fmt: skip
        return -law.alpha[:, 0] * share

    def residuals(self) -> Array:
        """(N,): log of the measured loss over the surface's."""
        logs = self.scores.logs
        return np.asarray(self.scores.log_loss - self.surface[:1].log_loss(logs)[0])


def usable(scores: Scores) -> tuple[Scores, list[str]]:
    """The points that a fit may use, and a sentence on those that were read too often."""
    epochs = scores.tokens / scores.unique
    keep = np.flatnonzero(epochs <= MOST_EPOCHS)
    if len(keep) == len(epochs):
        return scores, []
    values = dict(vars(scores))
    for name, value in values.items():
        if isinstance(value, tuple):
            values[name] = tuple(value[at] for at in keep)
        elif isinstance(value, np.ndarray):
            values[name] = value[keep]
    dropped = len(epochs) - len(keep)
    return Scores(**values), [
        f"{dropped} points of {scores.model} have read the text more than {MOST_EPOCHS:g} times "
        f"and are in no fit"
    ]


def interval(values: Array) -> tuple[float, float] | None:
    """The 95 percent interval of copies; None without copies."""
    if not len(values):
        return None
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)
