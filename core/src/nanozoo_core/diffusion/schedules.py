"""Continuous noise schedules: how much of a token is still known at time t in [0, 1].

`keep(t)` (alpha) falls from 1 to 0, `noise(t)` is 1 - alpha, `sigma(t)` is -log alpha, and
`weight(t)` is -alpha' / (1 - alpha), the weight of the masked cross-entropy in the bound. All are
closed forms: no quotient of quantities that are both tiny or both infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """Elementwise functions of t, in the dtype of t."""

    def keep(self, t: Tensor) -> Tensor: ...

    def noise(self, t: Tensor) -> Tensor: ...

    def weight(self, t: Tensor) -> Tensor: ...

    def time_of_noise(self, noise: Tensor) -> Tensor:
        """The t at which `noise(t)` is `noise`."""
        ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def sigma_rate(self, t: Tensor) -> Tensor:
        """d sigma / d t."""
        ...


class _FromNoise:
    """sigma and its rate, from the functions of alpha."""

    def keep(self, t: Tensor) -> Tensor:
        return 1 - self.noise(t)

    def noise(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def weight(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.log1p(-self.noise(t))

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.weight(t) * self.noise(t) / self.keep(t)


@dataclass(frozen=True)
class Linear(_FromNoise):
    """1 - alpha = (1 - eps) t; linear in alpha, hence called log-linear in sigma.

    With eps > 0 alpha does not reach 0, which costs a bound its prior term: for training only.
    """

    eps: float = 0.0

    def noise(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t

    def weight(self, t: Tensor) -> Tensor:
        return 1 / t

    def time_of_noise(self, noise: Tensor) -> Tensor:
        return noise / (1 - self.eps)


@dataclass(frozen=True)
class Cosine(_FromNoise):
    """alpha = cos(pi t / 2)."""

    def keep(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t)

    def noise(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * t) ** 2

    def weight(self, t: Tensor) -> Tensor:
        return math.pi / 2 / torch.tan(math.pi / 4 * t)

    def time_of_noise(self, noise: Tensor) -> Tensor:
        return 4 / math.pi * torch.asin((noise / 2).sqrt())


@dataclass(frozen=True)
class CosineSquared(_FromNoise):
    """alpha = cos^2(pi t / 2)."""

    def keep(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t) ** 2

    def noise(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t) ** 2

    def weight(self, t: Tensor) -> Tensor:
        return math.pi / torch.tan(math.pi / 2 * t)

    def time_of_noise(self, noise: Tensor) -> Tensor:
        return 2 / math.pi * torch.asin(noise.sqrt())


@dataclass(frozen=True)
class Geometric:
    """sigma = sigma_min^(1-t) sigma_max^t: alpha neither starts at 1 nor ends at 0 exactly."""

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def keep(self, t: Tensor) -> Tensor:
        return torch.exp(-self.sigma(t))

    def noise(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.sigma(t))

    def weight(self, t: Tensor) -> Tensor:
        return self.sigma_rate(t) / torch.expm1(self.sigma(t))

    def time_of_noise(self, noise: Tensor) -> Tensor:
        sigma = -torch.log1p(-noise)
        return torch.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
