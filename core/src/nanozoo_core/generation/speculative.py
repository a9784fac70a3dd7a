"""Speculative decoding: a cheap part of the model proposes tokens, the model itself checks several
in one pass, and what is drawn has the distribution of the model alone, whatever was proposed.

B rows, T tokens of a prompt, K drafts per pass, V vocabulary.

Reference: Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nanozoo_core.contract import Drafter, SamplingSettings
from nanozoo_core.ops.sampling import draw, probabilities


class Verdict(NamedTuple):
    """What one pass decides for each row."""

    num_accepted: Tensor  # (B,) 0 .. K: drafts that stand
    next_token: Tensor  # (B,): the token behind them, drawn from the model


def accept_greedy(drafts: Tensor, best: Tensor, limit: Tensor) -> Verdict:
    """Keeps drafts as long as each is what the model would have chosen.

    Args:
        drafts: (B, K).
        best: (B, K + 1) the model's choice in each draft's place, and behind the last.
        limit: (B,) drafts that may be kept at all.
    """
    num_accepted = _leading(drafts == best[:, :-1], limit)
    return Verdict(num_accepted, best.gather(1, num_accepted[:, None])[:, 0])


def accept_sampled(
    drafts: Tensor,
    draft_probs: Tensor,
    model_probs: Tensor,
    limit: Tensor,
    generator: torch.Generator,
) -> Verdict:
    """Keeps a draft x with probability min(1, p(x) / q(x)); in place of the first that falls, draws
    from max(0, p - q), normalised. Every token then has the distribution p.

    Args:
        drafts: (B, K), each drawn from its row of `draft_probs`.
        draft_probs: (B, K, V) q, float64.
        model_probs: (B, K + 1, V) p, float64: given that all drafts before are right.
        limit: (B,) drafts that may be kept at all; those behind count as never proposed.
    """
    if drafts.shape[1] == 0:
        return Verdict(torch.zeros_like(limit), draw(model_probs[:, 0], generator).to(limit.device))
    place, num_drafts = drafts.device, drafts.shape[1]
    drafts, limit = drafts.to(model_probs.device), limit.to(model_probs.device)
    p = model_probs[:, :-1].gather(2, drafts[..., None])[..., 0]  # (B, K)
    q = draft_probs.gather(2, drafts[..., None])[..., 0]
    points = torch.rand(drafts.shape, generator=generator, dtype=torch.float64).to(p.device)
    num_accepted = _leading(points * q < p, limit)

    rows = torch.arange(len(drafts), device=drafts.device)
    left = model_probs[rows, num_accepted]  # (B, V)
    fell = num_accepted < limit.clamp(max=num_drafts)
    proposed = draft_probs[rows, num_accepted.clamp(max=num_drafts - 1)]
    rest = (left - proposed).clamp(min=0)
    # p = q to the last bit but for rounding: nothing falls then, and nothing would be left.
    fell = fell & (rest.sum(1) > 0)
    left = torch.where(fell[:, None], rest, left)
    return Verdict(num_accepted.to(place), draw(left, generator).to(place))


def _leading(stands: Tensor, limit: Tensor) -> Tensor:
    """(B,): how many of `stands` (B, K) hold before the first that does not, up to `limit` (B,)."""
    return torch.minimum(stands.long().cumprod(1).sum(1), limit)


@dataclass
class Tally:
    """What drafts were worth, over any number of decodings."""

    num_passes: int = 0  # passes that checked drafts, of all rows together
    num_tokens: int = 0  # tokens that those passes gave
    proposed: list[int] = field(default_factory=list)  # by place: drafts whose turn came
    accepted: list[int] = field(default_factory=list)  # by place: those that stood

    @property
    def tokens_per_pass(self) -> float:
        """Between 1 and K + 1; plain decoding has 1."""
        return self.num_tokens / max(1, self.num_passes)

    @property
    def acceptance(self) -> float:
        """The share of drafts that stood, of those whose turn came."""
        return sum(self.accepted) / max(1, sum(self.proposed))

    @property
    def acceptance_by_place(self) -> list[float]:
        """The same for the first draft of a pass, the second, ..., given that those before it
        stood."""
        pairs = zip(self.accepted, self.proposed, strict=True)
        return [accepted / max(1, proposed) for accepted, proposed in pairs]

    def count(self, num_accepted: Tensor, limit: Tensor, num_drafts: int) -> None:
        """Adds one pass of rows that kept `num_accepted` (R,) of at most `limit` (R,) drafts."""
        if not self.proposed:
            self.proposed, self.accepted = [0] * num_drafts, [0] * num_drafts
        for kept, most in zip(num_accepted.tolist(), limit.tolist(), strict=True):
            self.num_passes += 1
            self.num_tokens += kept + 1
            for place in range(min(kept + 1, most, num_drafts)):
                self.proposed[place] += 1
                self.accepted[place] += place < kept

    def describe(self) -> str:
        """One line for people."""
        places = ", ".join(f"{100 * share:.0f} %" for share in self.acceptance_by_place)
        return (
            f"{self.num_tokens} tokens in {self.num_passes} passes, {self.tokens_per_pass:.2f} "
            f"per pass; drafts accepted: {places or 'none proposed'}"
        )


class _Chooser:
    """Draws tokens as the settings say, and remembers from which probabilities."""

    def __init__(self, settings: SamplingSettings, generator: torch.Generator) -> None:
        self.settings, self.generator = settings, generator
        self.probs: list[Tensor] = []  # (B, V) float64 of every call

    def __call__(self, logits: Tensor) -> Tensor:
        if self.settings.temperature == 0:
            return logits.argmax(-1)
        self.probs.append(probabilities(logits, self.settings))
        return draw(self.probs[-1], self.generator).to(logits.device)


@torch.no_grad()
def decode(
    drafter: Drafter,
    tokens: Tensor,
    lengths: Tensor,
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    max_tokens: int,
    tally: Tally | None = None,
) -> Iterator[list[list[int]]]:
    """Continues right-padded prompts (B, T) with `lengths` (B,) by `max_tokens` each.

    Yields what each row gained, pass by pass: first one token each, then between 1 and K + 1, and
    nothing once a row is complete. Rows need not keep in step. The text must fit the drafter's
    context: at most `max_context + 1` tokens with what is drawn.
    """
    num_drafts = drafter.num_drafts
    room = int(lengths.max()) + max_tokens
    # Passes also read drafts that cannot be kept any more, behind the end of a complete row.
    logits = drafter.begin(tokens, lengths, room + num_drafts + 1)
    pending = _Chooser(settings, generator)(logits)  # (B,)
    left = torch.full_like(lengths, max_tokens - 1)
    yield [[token] for token in pending.tolist()]
    while bool((left > 0).any()):
        chooser = _Chooser(settings, generator)
        drafts = drafter.draft(pending, chooser)  # (B, K), or fewer
        logits = drafter.check(torch.cat([pending[:, None], drafts], 1))  # (B, K + 1, V)
        limit = (left - 1).clamp(0, drafts.shape[1])
        if settings.temperature == 0:
            verdict = accept_greedy(drafts, logits.argmax(-1), limit)
        else:
            verdict = accept_sampled(
                drafts,
                torch.stack(chooser.probs, 1) if chooser.probs else logits[:, :0],
                probabilities(logits, settings),
                limit,
                generator,
            )
        running = left > 0
        gained = torch.where(running, verdict.num_accepted + 1, 0)
        if tally is not None:
            tally.count(verdict.num_accepted[running], limit[running], num_drafts)
        drafter.keep(gained)
        pending = torch.where(running, verdict.next_token, pending)
        left = left - gained
        yield [
            [*row[: count - 1], token] if count else []
            for row, count, token in zip(
                drafts.tolist(), gained.tolist(), pending.tolist(), strict=True
            )
        ]


def speculative(
    drafter: Drafter,
    prompt: Sequence[int],
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    tally: Tally | None = None,
) -> Iterator[list[int]]:
    """Yields the tokens of each pass after a prompt; greedy ones are those of `autoregressive`,
    past the longest context too, drawn ones have their distribution.

    Raises: ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("the prompt needs at least one token, such as the separator")
    limit, left = drafter.max_context, settings.max_tokens
    window = list(prompt) if limit is None else list(prompt)[-limit:]
    while left > 0:
        tokens = torch.tensor([window], device=drafter.device)
        lengths = torch.tensor([len(window)], device=drafter.device)
        room = left if limit is None else min(left, limit - len(window) + 1)
        passes = decode(drafter, tokens, lengths, settings, generator, max_tokens=room, tally=tally)
        for (new,) in passes:
            yield new
            window += new
            left -= len(new)
        if limit is not None:
            window = window[-(limit // 2 or 1) :]
