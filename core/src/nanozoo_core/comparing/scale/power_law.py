"""Sums of a constant and of power laws, L = E + sum_k A_k x_k^-alpha_k, fitted to losses by the
Huber loss of logarithms, many data sets at once.

Shapes: C data sets, S starts, N points, K power laws, P = 1 + 2 K parameters
(log E, log A_1 .. log A_K, log alpha_1 .. log alpha_K).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DELTA = 1e-3  # of the Huber loss, in the logarithm of the score (arXiv 2203.15556, appendix D.3)
LOWEST, HIGHEST = 0.01, 4.0  # exponents beyond which a law is flat, or gone after its first point
LEAST_SHARE = 1e-6  # of the loss: a term below it is none
GRID = {1: 96, 2: 32}  # exponents tried on each axis, by the number of laws
BLOCKS = 4  # of the grid on each axis, from each of which the best exponents are a start
FAR = (0.1, 1.0)  # exponents of the starts that are far from any law of language models
STEPS = 300
SAME = 1e-6  # objectives, relative to the lowest, that count as the same


@dataclass(frozen=True)
class PowerLaw:
    """Fitted laws of C data sets, each the best of its starts."""

    log_e: Array  # (C,)
    log_a: Array  # (C, K)
    alpha: Array  # (C, K)
    objective: Array  # (C,): the sum of the Huber losses
    agreeing: Array  # (C,): the share of starts that reach the same objective
    spread: Array  # (C,): between the largest and the smallest first exponent among those
    has_converged: NDArray[np.bool_]  # (C,)

    def log_loss(self, logs: Array) -> Array:
        """(C, ...) at the logarithms of x, (..., K), the same for all data sets."""
        shape = (-1, *(1,) * (logs.ndim - 1))
        terms = [np.broadcast_to(self.log_e.reshape(shape), (len(self.log_e), *logs.shape[:-1]))]
        for k in range(self.alpha.shape[1]):
            a, alpha = self.log_a[:, k].reshape(shape), self.alpha[:, k].reshape(shape)
            terms.append(a - alpha * logs[..., k])
        return _log_sum_exp(np.stack(terms))

    def __getitem__(self, which: slice) -> PowerLaw:
        return PowerLaw(**{name: value[which] for name, value in vars(self).items()})

    def joined(self, others: PowerLaw) -> PowerLaw:
        """These data sets, and then the others."""
        pairs = {name: (value, vars(others)[name]) for name, value in vars(self).items()}
        return PowerLaw(**{name: np.concatenate(pair) for name, pair in pairs.items()})


def fit(logs: Array, log_losses: Array) -> PowerLaw:
    """The law of each data set from starts all over the exponents.

    The grid of exponents is searched by least squares, for which the other parameters are linear,
    and the best of each of its blocks is refined.

    Args: logs: of x, (N, K). log_losses: (C, N).
    """
    centre = logs.mean(0)
    starts = np.stack([_grid_starts(logs - centre, row) for row in log_losses])
    return _uncentred(_refine(logs - centre, log_losses, starts), centre)


def refit(logs: Array, log_losses: Array, known: PowerLaw) -> PowerLaw:
    """The laws of copies of a data set, from its own law and from two far from it.

    Args: logs: (N, K); log_losses: (C, N); known: the law of the data set itself.
    """
    centre, count = logs.mean(0), len(log_losses)
    laws = logs.shape[1]
    parts = [known.log_e, *(known.log_a + -known.alpha * centre).T, *np.log(known.alpha).T]
    own = np.broadcast_to(np.stack(parts, 1), (count, 1 + 2 * laws))
    far = [np.roll(np.resize(FAR, laws), turn) for turn in range(2)]
    others = [_linear(logs - centre, log_losses, np.asarray(exponents)[None]) for exponents in far]
    starts = np.stack([own, *(found[0][:, 0] for found in others)], 1)
    return _uncentred(_refine(logs - centre, log_losses, starts), centre)


def huber(residuals: Array, delta: float = DELTA) -> Array:
    size = np.abs(residuals)
    return np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2))


def _log_sum_exp(terms: Array) -> Array:
    """Over the first axis."""
    top = terms.max(0)
    return np.asarray(top + np.log(np.exp(terms - top).sum(0)))


def _uncentred(law: PowerLaw, centre: Array) -> PowerLaw:
    return PowerLaw(**vars(law) | {"log_a": law.log_a + law.alpha * centre})


# -- starts: the parameters that are linear once the exponents are given ---------------------------


def _grid_starts(logs: Array, log_losses: Array) -> Array:
    """(S, P): the best exponents of each block of the grid."""
    laws = logs.shape[1]
    axis = np.geomspace(0.05, 2.5, GRID[laws])
    grid = np.stack(np.meshgrid(*[axis] * laws, indexing="ij"), -1)
    found, squares = _linear(logs, log_losses[None], grid.reshape(-1, laws))
    number = np.arange(len(axis)) * BLOCKS // len(axis)
    block = sum(
        number.reshape([-1 if n == k else 1 for n in range(laws)]) * BLOCKS**k for k in range(laws)
    )
    blocks = np.broadcast_to(block, grid.shape[:-1]).ravel()
    best = []
    for which in np.unique(blocks):
        inside = np.flatnonzero(blocks == which)
        best.append(found[0, inside[np.argmin(squares[0, inside])]])
    return np.stack(best)


def _linear(logs: Array, log_losses: Array, exponents: Array) -> tuple[Array, Array]:
    """Parameters (C, G, P) with the given exponents (G, K), whose coefficients minimise the squares
    of relative residuals and are not negative, and the sums of squares (C, G)."""
    laws = logs.shape[1]
    losses = np.exp(log_losses)  # (C, N)
    powers = np.exp(-exponents[:, None, :] * logs[None])  # (G, N, K)
    columns = np.concatenate([np.ones_like(powers[..., :1]), powers], -1)  # (G, N, 1 + K)
    design = columns[None] / losses[:, None, :, None]  # (C, G, N, 1 + K)
    best = np.full((*design.shape[:2], 1 + laws), 0.0)
    lowest = np.full(design.shape[:2], np.inf)
    for size in range(1, 2 + laws):
        for chosen in itertools.combinations(range(1 + laws), size):
            part = design[..., chosen]
            gram = part.swapaxes(-1, -2) @ part
            ridge = 1e-13 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] * np.eye(size)
            coefficients = np.linalg.solve(gram + ridge, part.sum(-2)[..., None])[..., 0]
            residuals = 1 - (part @ coefficients[..., None])[..., 0]
            squares = (residuals**2).sum(-1)
            better = (coefficients >= 0).all(-1) & (squares < lowest)
            lowest = np.where(better, squares, lowest)
            whole = np.zeros_like(best)
            whole[..., list(chosen)] = coefficients
            best = np.where(better[..., None], whole, best)
    least = LEAST_SHARE * losses.min(1)[:, None, None]
    logged = np.log(np.maximum(best, least))
    exponents = np.broadcast_to(np.log(exponents), (*best.shape[:2], laws))
    return np.concatenate([logged, exponents], -1), lowest


# -- refinement ------------------------------------------------------------------------------------


def _refine(logs: Array, log_losses: Array, starts: Array) -> PowerLaw:
    """Levenberg and Marquardt's method from all starts (C, S, P) at once; the best of each set.

    Two steps are tried each time: one by the weights of iterated least squares, which always goes
    downhill, and Newton's on the points within `DELTA`, which ends what the first only approaches.
    """
    count, tries, size = starts.shape
    laws = logs.shape[1]
    data = np.repeat(log_losses, tries, 0)  # (C S, N)
    least = np.log(LEAST_SHARE) + data.min(1)
    low = np.repeat(least[:, None], size, 1)
    low[:, 1 + laws :] = np.log(LOWEST)
    high = np.full((len(data), size), np.inf)
    high[:, 1 + laws :] = np.log(HIGHEST)
    place = np.clip(starts.reshape(-1, size), low, high)
    damping = np.full(len(data), 1e-3)
    value = huber(_values(place, logs)[0] - data).sum(1)
    still = np.arange(len(data))  # that have not come to rest
    for _ in range(STEPS):
        here, target = place[still], data[still]
        predicted, shares = _values(here, logs)
        slope = _jacobian(here, shares, logs)  # (A, N, P)
        residuals = predicted - target
        weight = np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), 1e-300))
        turned = slope.swapaxes(1, 2)
        gradient = (turned @ (weight * residuals)[..., None])[..., 0]
        downhill = (turned * weight[:, None]) @ slope
        near = (turned * (np.abs(residuals) <= DELTA)[:, None]) @ slope
        scale = np.einsum("app->ap", downhill) + 1e-12 * np.einsum("app->a", downhill)[:, None]
        ridge = damping[still, None, None] * scale[:, :, None] * np.eye(size)
        best, lowest = here, value[still]
        for curvature in (downhill, near):
            safe = curvature + ridge + 1e-14 * scale[:, :, None] * np.eye(size)
            step = -np.linalg.solve(safe, gradient[..., None])[..., 0]
            there = np.clip(here + np.clip(step, -2, 2), low[still], high[still])
            reached = huber(_values(there, logs)[0] - target).sum(1)
            better = reached < lowest
            best, lowest = np.where(better[:, None], there, best), np.where(better, reached, lowest)
        gain = value[still] - lowest
        moved = np.abs(best - here).max(1)
        place[still], value[still] = best, lowest
        damping[still] = np.where(gain > 0, damping[still] / 5, damping[still] * 10)
        damping[still] = np.maximum(damping[still], 1e-12)
        small = (gain > 0) & (gain < 1e-11 * value[still]) & (moved < 1e-7)
        still = still[~small & (damping[still] < 1e8)]
        if not len(still):
            break
    at_rest = np.ones(len(data), dtype=bool)
    at_rest[still] = False
    value, place = value.reshape(count, tries), place.reshape(count, tries, size)
    winner = np.argmin(value, 1)
    rows = np.arange(count)
    found, lowest = place[rows, winner], value[rows, winner]
    same = value <= lowest[:, None] * (1 + SAME) + 1e-18
    first = np.exp(place[:, :, 1 + laws])
    spread = np.where(same, first, -np.inf).max(1) - np.where(same, first, np.inf).min(1)
    return PowerLaw(
        log_e=found[:, 0],
        log_a=found[:, 1 : 1 + laws],
        alpha=np.exp(found[:, 1 + laws :]),
        objective=lowest,
        agreeing=same.mean(1),
        spread=spread,
        has_converged=at_rest.reshape(count, tries)[rows, winner],
    )


def _values(place: Array, logs: Array) -> tuple[Array, Array]:
    """Predicted logarithms (A, N), and the share of each term in the loss (1 + K, A, N)."""
    laws = logs.shape[1]
    alpha = np.exp(place[:, 1 + laws :])
    terms = [np.broadcast_to(place[:, :1], (len(place), len(logs)))]
    terms += [place[:, 1 + k, None] - alpha[:, k, None] * logs[None, :, k] for k in range(laws)]
    stacked = np.stack(terms)
    total = _log_sum_exp(stacked)
    return total, np.exp(stacked - total)


def _jacobian(place: Array, shares: Array, logs: Array) -> Array:
    """(A, N, P) of the predicted logarithms."""
    laws = logs.shape[1]
    alpha = np.exp(place[:, 1 + laws :])
    columns = [*shares]
    columns += [-shares[1 + k] * alpha[:, k, None] * logs[None, :, k] for k in range(laws)]
    return np.stack(columns, -1)
