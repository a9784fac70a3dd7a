"""The corruption processes q(x_t | x_{t-1}): Q_t, its product Qb_t = Q_1 ... Q_t, and their uses.

Row-vector convention: x_t ~ Qb_t[x_0, :]. Every token is corrupted independently. No V x V matrix
is formed per step. Schedules are float64; probabilities take the dtype asked for.

B windows, L tokens, V data tokens, K states of the process (data tokens, padding, or the mask of
the absorbing process), T timesteps, C cluster size.

Reference: arXiv 2107.03006, section 3.1 and appendix A.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.diffusion.bounds import DiscreteCounts
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.precision import finest_dtype
from nanozoo_core.ops.categorical import draw_categorical
from nanozoo_d3pm import schedules

MAX_PRIOR_KL = 0.05  # nats per token


class Transition(nn.Module, ABC):
    """One corruption process.

    Times t and s are (B,) int64 on the CPU, tokens (B, L). `mask_id` is the id of the mask, or
    None; with `terminal_mask` step T turns every token into it, whatever came before.

    Tables in float64 stay on the CPU where the model moves to a device that has none.
    """

    def __init__(
        self, vocab_size: int, num_states: int, num_timesteps: int, *, terminal_mask: bool = False
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.num_states = num_states
        self.num_timesteps = num_timesteps
        self.terminal_mask = terminal_mask
        self.mask_id = num_states if terminal_mask else None
        self.num_input_ids = num_states + terminal_mask

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` and the like do to the buffers."""
        place = fn(torch.empty(0, device="cpu")).device
        if finest_dtype(place) == torch.float64:
            return super()._apply(fn, recurse)
        return super()._apply(lambda x: x if x.dtype == torch.float64 else fn(x), recurse)

    def fit(self, unigram: Tensor, vectors: Tensor | None) -> None:
        """Takes what depends on the data: token frequencies (V,) and, for graphs, unit vectors
        (V, d); both float64 on the CPU. Raises: ConfigError when the process does not mix."""

    @property
    def needs_data(self) -> bool:
        """Whether `fit` must be called."""
        return False

    def corrupt(self, tokens: Tensor, t: Tensor, uniforms: Tensor) -> Tensor:
        """x_t ~ Qb_t[x_0, :] from one float64 uniform per token, (B, L) on the CPU."""
        # Products in bfloat16 would draw from another process than the one that the bound assumes.
        with torch.autocast(tokens.device.type, enabled=False):
            corrupted = self._corrupt(tokens, t, uniforms)
        if not self.terminal_mask:
            return corrupted
        is_last = (t == self.num_timesteps)[:, None].to(tokens.device)
        return torch.where(is_last, self.num_states, corrupted)

    def column(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Qb_t[:V, x]: how likely each data token has become x, (B, L, V)."""
        column = self._column(x.clamp(max=self.num_states - 1), t, dtype)
        return self._unless_masked(x, column)

    def step_column(self, x: Tensor, s: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        """(Q_{s+1} ... Q_t)[:, x]: how likely each state at s turns into x at t, (B, L, K)."""
        column = self._step_column(x.clamp(max=self.num_states - 1), s, t, dtype)
        return self._unless_masked(x, column)

    def _unless_masked(self, x: Tensor, column: Tensor) -> Tensor:
        """Every state becomes the mask at T with probability 1."""
        return torch.where((x == self.num_states)[..., None], 1.0, column)

    def log_reverse(self, log_probs: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """log p(x_s = j | x_t = x), (B, L, K): Q_{s->t}[j, x] m_j, normalised, with m = p Qb_s.

        Args: log_probs: (B, L, V), the network's prediction of x_0 from the *other* tokens.
        """
        with torch.autocast(x.device.type, enabled=False):
            log_m = self.log_mix(log_probs, s)
            scores = self.step_column(x, s, t, log_probs.dtype).log() + log_m
        # A p with zeros (a cut or greedy one) can make x_t itself impossible: then it is ignored.
        impossible = scores.amax(-1, keepdim=True) == -math.inf
        return torch.where(impossible, log_m, scores).log_softmax(-1)

    def prior_kl(self, tokens: Tensor) -> Tensor:
        """KL(Qb_T[x_0, :] || where sampling starts), (B, L) float64 nats."""
        return torch.zeros(tokens.shape, dtype=torch.float64)

    def start(self, uniforms: Tensor) -> Tensor:
        """x_T ~ the stationary distribution, in the shape of `uniforms` (CPU)."""
        if self.mask_id is not None:
            return torch.full(uniforms.shape, self.mask_id)
        return (uniforms * self.num_states).long()

    @abstractmethod
    def row(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Qb_t[x, :] (B, L, K) for states x; with a terminal mask, for t < T."""

    @abstractmethod
    def log_mix(self, log_probs: Tensor, t: Tensor) -> Tensor:
        """log (p Qb_t) (B, L, K) for log p (B, L, V); differentiable."""

    @abstractmethod
    def _corrupt(self, tokens: Tensor, t: Tensor, uniforms: Tensor) -> Tensor: ...

    @abstractmethod
    def _column(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor: ...

    @abstractmethod
    def _step_column(self, x: Tensor, s: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor: ...


def per_window(values: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """(B,) float64 -> (B, 1, 1) beside `like`."""
    return values.to(like.device, dtype)[:, None, None]


def one_hot(x: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    return F.one_hot(x, num_classes).to(dtype)


def require_small_prior(nats: float) -> None:
    if nats > MAX_PRIOR_KL:
        raise ConfigError(
            f"the process keeps {nats:.3f} nats per token of x_0 at its last step, which the bound "
            f"would have to pay for (at most {MAX_PRIOR_KL} is allowed); use more "
            "model_cfg.num_timesteps, another model_cfg.noise_schedule or "
            "model_cfg.terminal_mask=auto"
        )


def log_product(log_probs: Tensor, mix: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """log mix(exp log_probs), and log_probs itself at t = 0; clamped where rounding falls below 0.

    Any positive m makes a valid bound, as its normaliser is computed from the same m.
    """
    mixed = mix(log_probs.exp()).clamp(min=1e-30).log()
    return torch.where((t == 0)[:, None, None].to(log_probs.device), log_probs, mixed)


class Uniform(Transition):
    """Q_t = (1 - beta) I + beta 11^T / V."""

    log_keep: Tensor

    def __init__(self, vocab_size: int, num_timesteps: int, noise_schedule: str) -> None:
        super().__init__(vocab_size, vocab_size, num_timesteps)
        self.by_information = noise_schedule == "mutual_info"
        if self.by_information:
            even = torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64, device="cpu")
            self.register_buffer("log_keep", self._information_log_keep(even))
        else:
            table = {"cosine": schedules.cosine_log_keep, "linear": schedules.linear_log_keep}
            self.log_keep = table[noise_schedule](num_timesteps)
        require_small_prior(float(self.prior_kl_per_token))

    @property
    def needs_data(self) -> bool:
        return self.by_information

    def fit(self, unigram: Tensor, vectors: Tensor | None) -> None:
        if self.by_information:
            self.log_keep.copy_(self._information_log_keep(unigram))

    def _information_log_keep(self, unigram: Tensor) -> Tensor:
        noise = schedules.invert_information(
            lambda amounts: schedules.uniform_information(unigram, -amounts),
            schedules.log_grid(1e-6, 50.0),
            self.num_timesteps,
        )
        log_keep = -noise
        log_keep[-1] = -math.inf  # no information is left at T
        return log_keep

    @property
    def prior_kl_per_token(self) -> Tensor:
        last = self.log_keep[-1]
        other = -torch.expm1(last) / self.vocab_size
        same = last.exp() + other
        negative_entropy = torch.xlogy(same, same) + (self.vocab_size - 1) * torch.xlogy(
            other, other
        )
        return (math.log(self.vocab_size) + negative_entropy).clamp(min=0)

    def prior_kl(self, tokens: Tensor) -> Tensor:
        return self.prior_kl_per_token.cpu().expand(tokens.shape)

    def log_keep_at(self, t: Tensor) -> Tensor:
        """log of the kept share, (B,) float64 on the CPU."""
        return self.log_keep[t.to(self.log_keep.device)].cpu()

    def _corrupt(self, tokens: Tensor, t: Tensor, uniforms: Tensor) -> Tensor:
        keep = self.log_keep_at(t).exp()[:, None]
        share = (uniforms - keep) / (1 - keep).clamp(min=1e-300)
        redrawn = (share * self.vocab_size).long().clamp(0, self.vocab_size - 1)
        kept = (uniforms < keep).to(tokens.device)
        return torch.where(kept, tokens, redrawn.to(tokens.device))

    def _resample(self, x: Tensor, log_keep: Tensor, dtype: torch.dtype) -> Tensor:
        keep = per_window(log_keep.exp(), x, dtype)
        noise = per_window(-torch.expm1(log_keep), x, dtype)
        return keep * one_hot(x, self.vocab_size, dtype) + noise / self.vocab_size

    def row(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self._resample(x, self.log_keep_at(t), dtype)

    def _column(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.row(x, t, dtype)

    def _step_column(self, x: Tensor, s: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self._resample(x, self.log_keep_at(t) - self.log_keep_at(s), dtype)

    def log_mix(self, log_probs: Tensor, t: Tensor) -> Tensor:
        log_keep = self.log_keep_at(t)
        floor = -torch.expm1(log_keep) / self.vocab_size
        dtype = log_probs.dtype
        return torch.logaddexp(
            per_window(log_keep, log_probs, dtype) + log_probs,
            per_window(floor, log_probs, dtype).log(),
        )


class Absorbing(Transition):
    """Q_t = (1 - beta) I + beta 1 e_m^T: a token stays, or becomes the mask; keep_T = 0."""

    def __init__(self, vocab_size: int, num_timesteps: int, noise_schedule: str) -> None:
        super().__init__(vocab_size, vocab_size + 1, num_timesteps)
        self.mask_id = vocab_size
        cosine = noise_schedule == "cosine"
        table = schedules.cosine_log_keep if cosine else schedules.linear_log_keep
        log_keep = table(num_timesteps)
        log_keep[-1] = -math.inf
        self.log_keep = log_keep
        self._count_laws: dict[int, DiscreteCounts] = {}

    def count_law(self, length: int) -> DiscreteCounts:
        """How many of `length` tokens are masked, and when, for an evenly weighted bound."""
        if length not in self._count_laws:
            self._count_laws[length] = DiscreteCounts(self.log_keep.exp(), length)
        return self._count_laws[length]

    def weight(self, t: Tensor) -> Tensor:
        """KL_t over the cross-entropy of a masked token: (keep_{t-1} - keep_t) / (1 - keep_t)."""
        keep = self.log_keep.exp()
        return (keep[t - 1] - keep[t]) / -torch.expm1(self.log_keep[t])

    def _corrupt(self, tokens: Tensor, t: Tensor, uniforms: Tensor) -> Tensor:
        masked = uniforms >= self.log_keep[t].exp()[:, None]
        return tokens.masked_fill(masked.to(tokens.device), self.vocab_size)

    def row(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        keep = per_window(self.log_keep[t].exp(), x, dtype)
        to_mask = (1 - keep) * one_hot(x.new_tensor(self.vocab_size), self.num_states, dtype)
        return keep * one_hot(x, self.num_states, dtype) + to_mask

    def _from_states(
        self, x: Tensor, log_keep: Tensor, num_rows: int, dtype: torch.dtype
    ) -> Tensor:
        """Column x of keep I + (1 - keep) 1 e_m^T, its first `num_rows` entries."""
        keep = per_window(log_keep.exp(), x, dtype)
        column = keep * one_hot(x, self.num_states, dtype)[..., :num_rows]
        return column + (1 - keep) * (x == self.vocab_size)[..., None]

    def _column(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self._from_states(x, self.log_keep[t], self.vocab_size, dtype)

    def _step_column(self, x: Tensor, s: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self._from_states(x, self.log_keep[t] - self.log_keep[s], self.num_states, dtype)

    def log_mix(self, log_probs: Tensor, t: Tensor) -> Tensor:
        log_keep = self.log_keep[t]
        mask = per_window(-torch.expm1(log_keep), log_probs, log_probs.dtype).log()
        kept = per_window(log_keep, log_probs, log_probs.dtype) + log_probs
        return torch.cat([kept, mask.expand(*log_probs.shape[:-1], 1)], dim=-1)


class ByDistance(Transition):
    """Jumps between ids with probabilities that depend on their distance alone; symmetric, so that
    rows and columns sum to one and the end is uniform.

    Args: jumps: (T, V) float64, of every distance at t = 1 .. T; a token stays with what its jumps
        leave. dtype: of the stored products, (T + 1, V, V), which are built in float64.
    """

    steps: Tensor
    products: Tensor

    def __init__(
        self,
        jumps: Tensor,
        *,
        terminal_mask: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        num_timesteps, vocab_size = jumps.shape
        super().__init__(vocab_size, vocab_size, num_timesteps, terminal_mask=terminal_mask)
        distance = torch.arange(vocab_size, dtype=torch.float64, device="cpu")
        gaps = (distance[:, None] - distance).abs().long()  # (V, V)
        products = [torch.eye(vocab_size, dtype=torch.float64, device="cpu")]
        steps = [products[0]]
        for jump in jumps:
            step = jump[gaps].fill_diagonal_(0)
            step.diagonal().copy_(1 - step.sum(1))
            steps.append(step)
            products.append(products[-1] @ step)
        self.register_buffer("steps", torch.stack(steps).to(dtype), persistent=False)
        self.register_buffer("products", torch.stack(products).to(dtype), persistent=False)
        self._skips: dict[tuple[int, int], Tensor] = {}
        if not terminal_mask:
            last = products[-1]
            self.prior = math.log(vocab_size) - schedules.entropy(last)  # (V,)
            require_small_prior(float(self.prior.max()))

    def prior_kl(self, tokens: Tensor) -> Tensor:
        return super().prior_kl(tokens) if self.terminal_mask else self.prior[tokens.cpu()]

    def _corrupt(self, tokens: Tensor, t: Tensor, uniforms: Tensor) -> Tensor:
        return draw_categorical(self.row(tokens, t, self.products.dtype), uniforms)

    def row(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.products[t.to(x.device)[:, None], x].to(dtype)

    def _column(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.products[t.to(x.device)[:, None], :, x].to(dtype)

    def _step_column(self, x: Tensor, s: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
        if bool((t - s == 1).all()):
            return self.steps[t.to(x.device)[:, None], x].to(dtype)  # symmetric
        (pair,) = {(int(a), int(b)) for a, b in zip(s, t, strict=True)}  # samplers move together
        return self._skip(*pair)[:, x].movedim(0, -1).to(dtype)

    def _skip(self, s: int, t: int) -> Tensor:
        """Q_{s+1} ... Q_t (V, V), kept for the next window."""
        if (s, t) not in self._skips:
            product = self.steps[s + 1]
            for step in self.steps[s + 2 : t + 1]:
                product = product @ step
            self._skips[s, t] = product
        return self._skips[s, t]

    def log_mix(self, log_probs: Tensor, t: Tensor) -> Tensor:
        matrices = self.products[t.to(log_probs.device)].to(log_probs.dtype)  # (B, V, V)
        return log_product(log_probs, lambda p: p @ matrices, t)


class Gaussian(ByDistance):
    """Jumps whose probability falls like a Gaussian in their distance."""

    def __init__(
        self,
        vocab_size: int,
        num_timesteps: int,
        *,
        beta_min: float,
        beta_max: float,
        terminal_mask: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        betas = schedules.gaussian_betas(num_timesteps, beta_min, beta_max)
        distance = torch.arange(vocab_size, dtype=torch.float64, device="cpu")
        exponent = -4 * distance**2 / ((vocab_size - 1) ** 2 * betas[1:, None])  # (T, V)
        jumps = exponent.exp()
        jumps = jumps / (2 * jumps.sum(1, keepdim=True) - 1)  # over distances of both signs
        super().__init__(jumps, terminal_mask=terminal_mask, dtype=dtype)


class Band(ByDistance):
    """Jumps of probability beta / V to each of the `width` ids above and below, and to no other; of
    width V - 1 it is `Uniform`.

    Reference: arXiv 2107.03006, appendix A.2, the band-diagonal matrices.
    """

    def __init__(
        self,
        vocab_size: int,
        num_timesteps: int,
        *,
        width: int,
        noise_schedule: str,
        terminal_mask: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        table = {"cosine": schedules.cosine_log_keep, "linear": schedules.linear_log_keep}
        beta = -torch.expm1(table[noise_schedule](num_timesteps).diff())  # (T,)
        is_near = torch.arange(vocab_size, device="cpu") <= width
        jumps = beta[:, None] / vocab_size * is_near
        super().__init__(jumps, terminal_mask=terminal_mask, dtype=dtype)
