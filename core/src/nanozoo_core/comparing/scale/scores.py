"""The scores of one model's runs as arrays, and the noise in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanozoo_core.comparing.scale.power_law import Array
from nanozoo_core.comparing.scale.repetition import effective

AXES = ("flops", "seconds", "bytes")


@dataclass(frozen=True)
class Scores:
    """N decayed end points of a model: no score of a run at its full rate is among them."""

    model: str
    rung: tuple[str, ...]
    """Of each point, the smallest first where they are sorted by `n`."""
    budget: tuple[float, ...]
    """Of each point, as a share of the rung's whole budget."""
    seed: tuple[int, ...]
    n: Array
    """Weights that multiply a token."""
    tokens: Array
    unique: float
    """Tokens of the training text."""
    flops: Array
    seconds: Array
    bytes: Array
    loss: Array
    """Bits per byte."""
    branched: bool = False
    """Whether the points of a rung and a seed are branches of one trunk, and share its luck."""
    is_bound: bool = False
    """Whether the scores are upper bounds."""

    @property
    def log_loss(self) -> Array:
        return np.log(self.loss)

    @property
    def logs(self) -> Array:
        """(N, 2): log n and log D'."""
        return np.log(np.stack([self.n, effective(self.tokens, self.unique)], 1))

    @property
    def rungs(self) -> list[str]:
        """From the smallest."""
        smallest = {rung: float(self.n[at]) for at, rung in enumerate(self.rung)}
        return sorted(smallest, key=lambda rung: smallest[rung])

    @property
    def cells(self) -> list[tuple[str, float]]:
        """(rung, budget) of each point, without the seed."""
        return list(zip(self.rung, self.budget, strict=True))

    def of(self, rung: str) -> np.ndarray:
        """The places of a rung's points."""
        return np.flatnonzero(np.asarray([one == rung for one in self.rung]))

    def cost(self, axis: str) -> Array:
        return np.asarray(getattr(self, axis), dtype=np.float64)

    def per_token(self, axis: str, rung: str) -> float:
        """The mean cost of a token at a rung."""
        places = self.of(rung)
        return float(self.cost(axis)[places].sum() / self.tokens[places].sum())

    def size(self, rung: str) -> float:
        return float(self.n[self.of(rung)[0]])

    def without(self, rung: str) -> Scores:
        """The points of all other rungs."""
        keep = [at for at, one in enumerate(self.rung) if one != rung]
        values = dict(vars(self))
        for name in ("rung", "budget", "seed"):
            values[name] = tuple(values[name][at] for at in keep)
        for name in ("n", "tokens", "loss", *AXES):
            values[name] = values[name][keep]
        return Scores(**values)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log L between seeds, pooled over models and rungs."""

    trunk: float
    branch: float
    freedom: int
    """Degrees of freedom behind them."""

    def draw(self, scores: Scores, copies: int, generator: np.random.Generator) -> Array:
        """(copies, N) deviations. Points of one trunk share its part."""
        trunks = list(zip(scores.rung, scores.seed, strict=True))
        if not scores.branched:  # each point has a trunk of its own
            trunks = [(f"{rung}/{n}", n) for n, rung in enumerate(scores.rung)]
        order = {trunk: n for n, trunk in enumerate(dict.fromkeys(trunks))}
        of_trunks = generator.standard_normal((copies, len(order))) * self.trunk
        own = generator.standard_normal((copies, len(trunks))) * self.branch
        return of_trunks[:, [order[trunk] for trunk in trunks]] + own


def pooled_noise(models: Sequence[Scores]) -> Noise | None:
    """The noise that the seeds show; None where no point has two seeds.

    The deviations from the mean over seeds are split into what the branches of a trunk share and
    what each has of its own, as in an analysis of variance; runs without a trunk tell of the sum.
    """
    shared = own = single = 0.0
    shared_freedom = own_freedom = single_freedom = 0
    branches: list[int] = []
    for scores in models:
        for rung in scores.rungs:
            table = _seeds_by_budget(scores, rung)  # (seeds, budgets)
            seeds, budgets = table.shape
            if seeds < 2:
                continue
            away = table - table.mean(0)
            if not scores.branched or budgets < 2:
                single += float((away**2).sum())
                single_freedom += (seeds - 1) * budgets
                continue
            common = away.mean(1, keepdims=True)
            shared += float((common**2).sum()) * budgets
            own += float(((away - common) ** 2).sum())
            shared_freedom += seeds - 1
            own_freedom += (seeds - 1) * (budgets - 1)
            branches.append(budgets)
    if own_freedom:
        branch = own / own_freedom
        mean_branches = sum(branches) / len(branches)
        trunk = max(0.0, (shared / shared_freedom - branch) / mean_branches)
        return Noise(math.sqrt(trunk), math.sqrt(branch), shared_freedom + own_freedom)
    if single_freedom:
        return Noise(0.0, math.sqrt(single / single_freedom), single_freedom)
    return None


def _seeds_by_budget(scores: Scores, rung: str) -> Array:
    """log L of the budgets that every seed has."""
    found: dict[int, dict[float, float]] = {}
    for at in scores.of(rung):
        found.setdefault(scores.seed[at], {})[scores.budget[at]] = float(scores.log_loss[at])
    rows: Sequence[Mapping[float, float]] = list(found.values())
    common = sorted(set(rows[0]).intersection(*rows[1:]))
    return np.array([[row[budget] for budget in common] for row in rows])
