"""Speculative decoding gives what plain decoding gives, whatever is proposed.

V vocabulary, K drafts per pass.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.contract import Choose, SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.autoregressive import autoregressive
from nanozoo_core.generation.draft_acceptance import inspect_drafts, measure
from nanozoo_core.generation.draft_run import ModelDrafter
from nanozoo_core.generation.speculative import Tally, accept_greedy, accept_sampled, speculative
from nanozoo_core.generation.text import generate_tokens
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.ops.sampling import probabilities
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.speculation import GREEDY, assert_follows, decoded_rows

VOCAB = 4
CUT = SamplingSettings(temperature=0.7, top_k=3, top_p=0.9)


class Tables:
    """A model whose logits are a table of the last two tokens; drafts come from another table of
    the last one. The state is the text itself, so a pass that keeps too much or too little
    shows."""

    max_context = None
    device = torch.device("cpu")

    def __init__(self, num_drafts: int, *, drafts: str = "other") -> None:
        self.num_drafts = num_drafts
        generator = torch.Generator().manual_seed(0)
        self.table = 2 * torch.randn(VOCAB, VOCAB, VOCAB, generator=generator)
        self.is_perfect = drafts == "perfect"
        self.draft_table = 2 * torch.randn(VOCAB, VOCAB, generator=generator)
        if drafts == "certain":  # proposes token 0, whatever comes before
            self.draft_table = torch.tensor([50.0, 0, 0, 0]).expand(VOCAB, VOCAB)

    def begin(self, tokens: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        rows, width = tokens.shape
        self.text = torch.zeros(rows, max_length, dtype=torch.int64)
        self.text[:, :width] = tokens
        self.lengths = lengths.clone()
        return self.logits(self.lengths)

    def last(self, lengths: Tensor, back: int) -> Tensor:
        return self.text.gather(1, (lengths - back).clamp(min=0)[:, None])[:, 0]

    def logits(self, lengths: Tensor) -> Tensor:
        return self.table[self.last(lengths, 2), self.last(lengths, 1)]

    def draft(self, token: Tensor, choose: Choose) -> Tensor:
        found, before = [], self.last(self.lengths, 1)
        for _ in range(self.num_drafts):
            logits = self.table[before, token] if self.is_perfect else self.draft_table[token]
            before, token = token, choose(logits)
            found.append(token)
        return torch.stack(found, 1)

    def check(self, tokens: Tensor) -> Tensor:
        found = []
        for place in range(tokens.shape[1]):
            self.text.scatter_(1, (self.lengths + place)[:, None], tokens[:, place, None])
            found.append(self.logits(self.lengths + place + 1))
        return torch.stack(found, 1)

    def keep(self, counts: Tensor) -> None:
        self.lengths = self.lengths + counts


# -- one decision ------------------------------------------------------------------------------


def test_greedy_drafts_stand_up_to_the_first_that_is_wrong() -> None:
    drafts = torch.tensor([[1, 2, 3], [1, 0, 3], [0, 2, 3], [1, 2, 3]])
    best = torch.tensor([[1, 2, 3, 0]]).expand(4, 4)
    verdict = accept_greedy(drafts, best, torch.tensor([3, 3, 3, 1]))
    assert verdict.num_accepted.tolist() == [3, 1, 0, 1]
    assert verdict.next_token.tolist() == [0, 2, 1, 2]


PROPOSALS = {
    "other": [0.1, 0.2, 0.3, 0.4],
    "same": [0.4, 0.3, 0.2, 0.1],
    "certain": [0.0, 0.0, 1.0, 0.0],
    "impossible": [0.0, 0.0, 0.0, 1.0],
}


@pytest.mark.parametrize("proposal", PROPOSALS.values(), ids=PROPOSALS)
def test_one_draft_changes_no_distribution(proposal: list[float]) -> None:
    """The first token is drawn from p, and the one behind an accepted draft from its own p."""
    count = 20_000
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    if proposal == PROPOSALS["impossible"]:
        p[0] = torch.tensor([0.5, 0.3, 0.2, 0.0])
    q = torch.tensor([[proposal]], dtype=torch.float64).expand(count, 1, VOCAB)
    generator = seeded_generator(0)
    drafts = torch.multinomial(q[:, 0], 1, generator=generator)
    verdict = accept_sampled(
        drafts, q, p.expand(count, 2, VOCAB), torch.full((count,), 1), generator
    )
    stands = verdict.num_accepted == 1
    first = torch.where(stands, drafts[:, 0], verdict.next_token)
    assert_follows(torch.bincount(first, minlength=VOCAB), p[0])
    share = float(torch.minimum(p[0], q[0, 0]).sum())
    deviation = (share * (1 - share) / count) ** 0.5
    assert abs(float(stands.double().mean()) - share) <= 4 * deviation
    if stands.any():
        assert_follows(torch.bincount(verdict.next_token[stands], minlength=VOCAB), p[1])


def test_a_draft_that_may_not_be_kept_counts_as_never_proposed() -> None:
    count = 20_000
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).expand(count, 2, VOCAB)
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).expand(count, 1, VOCAB)
    generator = seeded_generator(0)
    drafts = torch.multinomial(q[:, 0], 1, generator=generator)
    none = torch.zeros(count, dtype=torch.int64)
    verdict = accept_sampled(drafts, q, p, none, generator)
    assert not verdict.num_accepted.any()
    assert_follows(torch.bincount(verdict.next_token, minlength=VOCAB), p[0, 0])


# -- whole texts -------------------------------------------------------------------------------


@pytest.mark.parametrize("drafts", ["other", "perfect", "certain"])
@pytest.mark.parametrize("num_drafts", [1, 3])
def test_greedy_texts_of_uneven_rows_are_the_plain_ones(drafts: str, num_drafts: int) -> None:
    tables = Tables(num_drafts, drafts=drafts)
    prompts = torch.tensor(list(itertools.product(range(VOCAB), repeat=2)))
    lengths = 1 + torch.arange(len(prompts)) % 2
    tally = Tally()
    found = decoded_rows(tables, prompts, lengths, GREEDY, max_tokens=12, tally=tally)
    for prompt, length, row in zip(prompts.tolist(), lengths.tolist(), found, strict=True):
        text = prompt[:length]
        for _ in range(12):
            text.append(int(tables.table[text[max(0, len(text) - 2)], text[-1]].argmax()))
        assert row == text[length:]
    if drafts == "perfect":
        assert tally.acceptance == 1
        assert tally.num_passes == len(prompts) * -(-11 // (num_drafts + 1))


@pytest.mark.parametrize("settings", [SamplingSettings(), CUT], ids=["whole", "cut"])
@pytest.mark.parametrize(("drafts", "num_drafts"), [("other", 2), ("certain", 1), ("perfect", 3)])
def test_sampled_texts_have_the_model_s_distribution(
    settings: SamplingSettings, drafts: str, num_drafts: int
) -> None:
    """All three-token continuations of one prompt, against their exact probabilities."""
    count = 20_000
    tables = Tables(num_drafts, drafts=drafts)
    prompts = torch.tensor([[1, 2]]).expand(count, 2)
    tally = Tally()
    lengths = torch.full((count,), 2)
    rows = decoded_rows(tables, prompts, lengths, settings, max_tokens=3, tally=tally)
    p = probabilities(tables.table, settings)
    exact = (p[1, 2][:, None, None] * p[2][:, :, None] * p).flatten()
    index = torch.tensor(rows) @ torch.tensor([VOCAB**2, VOCAB, 1])
    assert_follows(torch.bincount(index, minlength=VOCAB**3), exact)
    assert (tally.acceptance == 1) == (drafts == "perfect")


def test_a_tally_counts_turns_and_tokens() -> None:
    tally = Tally()
    tally.count(torch.tensor([2, 0, 1]), torch.tensor([2, 2, 1]), 2)
    assert (tally.num_passes, tally.num_tokens) == (3, 6)
    assert (tally.proposed, tally.accepted) == ([3, 1], [2, 1])
    assert tally.tokens_per_pass == 2
    assert tally.acceptance == 0.75
    assert tally.acceptance_by_place == [2 / 3, 1]
    assert "6 tokens in 3 passes, 2.00 per pass; drafts accepted: 67 %, 100 %" in tally.describe()


# -- with real caches --------------------------------------------------------------------------


class Adapter(DefaultModelAdapter):
    def __init__(self, small: ControlModel) -> None:
        super().__init__(type(None), ControlModel)
        self.small = small

    def drafter(self, model: Any) -> ModelDrafter:
        return ModelDrafter(self, model, self, self.small, num_drafts=3)


def controls(max_context: int | None) -> list[ControlModel]:
    torch.manual_seed(0)
    models = []
    for num_layers in (2, 1):
        model = ControlModel(
            ControlConfig(8, 32, num_layers, 16, num_heads=2, mlp_ratio=4)
        ).double()
        model.max_context = max_context
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        models.append(model.eval())
    return models


@pytest.mark.parametrize("max_context", [None, 11, 1], ids=["endless", "context", "one-token"])
@pytest.mark.parametrize("prompt", [[1], [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4]], ids=len)
def test_a_greedy_text_is_the_plain_one_past_the_context_too(
    max_context: int | None, prompt: list[int]
) -> None:
    model, small = controls(max_context)
    adapter = Adapter(small)
    settings = SamplingSettings(temperature=0, max_tokens=50)
    plain = autoregressive(adapter, model, prompt, settings, seeded_generator(0))
    drafted = speculative(adapter.drafter(model), prompt, settings, seeded_generator(0))
    assert [t for new in drafted for t in new] == [t for new in plain for t in new]


@torch.no_grad()
def test_a_small_model_drafts_what_it_would_write_itself() -> None:
    """As many drafts stand as when both models read the whole text anew for every token."""
    model, small = controls(None)
    small.load_state_dict(model.state_dict(), strict=False)  # its first layer: some drafts stand
    text, expected = [1, 2], Tally()

    def best(network: ControlModel, tokens: list[int]) -> int:
        return int(network(torch.tensor([tokens]))[0, -1].argmax())

    text.append(best(model, text))
    while len(text) < 32:
        drafts, kept = list(text), 0
        for _ in range(3):
            drafts.append(best(small, drafts))
        limit = min(3, 32 - len(text) - 1)
        while kept < limit and drafts[len(text)] == best(model, text):
            text.append(drafts[len(text)])
            kept += 1
        text.append(best(model, text))
        expected.count(torch.tensor([kept]), torch.tensor([limit]), 3)
    tally = Tally()
    settings = SamplingSettings(temperature=0, max_tokens=30)
    drafter = Adapter(small).drafter(model)
    passes = speculative(drafter, [1, 2], settings, seeded_generator(0), tally=tally)
    assert [token for new in passes for token in new] == text[2:]
    assert tally == expected
    assert 0 < tally.acceptance < 1
    alone = Tally()
    list(
        speculative(Adapter(model).drafter(model), [1], settings, seeded_generator(0), tally=alone)
    )
    assert alone.acceptance == 1


@torch.no_grad()
def test_drafts_come_from_the_whole_text() -> None:
    """To the last digit, however many of the drafts before stood."""
    model, small = controls(None)
    drafter = Adapter(small).drafter(model)
    text, unread = [1, 2, 5], 3
    drafter.begin(torch.tensor([text]), torch.tensor([3]), 40)
    for count in (1, 4, 2, 4, 3):
        read = [*text, unread]

        def choose(logits: Tensor, read: list[int] = read) -> Tensor:
            expected = small(torch.tensor([read]))[:, -1]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
            read.append((read[-1] * 3 + len(read)) % 8)
            return torch.tensor([read[-1]])

        drafts = drafter.draft(torch.tensor([unread]), choose)
        drafter.check(torch.cat([torch.tensor([[unread]]), drafts], 1))
        drafter.keep(torch.tensor([count]))
        text, unread = read[: len(text) + count], (count + len(text)) % 8


def test_uneven_rows_are_each_row_alone() -> None:
    model, small = controls(None)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(8, (6, 7), generator=generator)
    lengths = torch.tensor([7, 1, 4, 2, 7, 5])
    adapter = Adapter(small)
    tally = Tally()
    drafter = adapter.drafter(model)
    rows = decoded_rows(drafter, prompts, lengths, GREEDY, max_tokens=30, tally=tally)
    assert 0 < tally.acceptance < 1
    settings = SamplingSettings(temperature=0, max_tokens=30)
    for prompt, length, row in zip(prompts.tolist(), lengths.tolist(), rows, strict=True):
        alone = speculative(adapter.drafter(model), prompt[:length], settings, seeded_generator(0))
        assert row == [t for new in alone for t in new]


def test_a_drafter_is_asked_and_its_worth_is_counted() -> None:
    model, small = controls(None)
    settings = SamplingSettings(temperature=0, max_tokens=20)
    vocabulary = ToyVocabulary(9)  # token 8, the ninth, is never drawn
    vocabulary.separator = 8
    vocabulary.encode = lambda text: [1]  # type: ignore[method-assign]
    adapter = Adapter(small)

    def text(**options: Any) -> list[int]:
        pieces = generate_tokens(adapter, model, vocabulary, "", settings, **options)
        return [token for new in pieces for token in new]

    model.embedding = torch.nn.Embedding(9, 16).double()
    small.embedding = torch.nn.Embedding(9, 16).double()
    tally = Tally()
    assert text(drafter=adapter.drafter(model), tally=tally) == text()
    assert tally.num_tokens == 19


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        next(speculative(Tables(1), [], GREEDY, seeded_generator(0)))


# -- what drafts are worth ---------------------------------------------------------------------


def test_a_report_measures_drafts_behind_the_first_halves_of_windows() -> None:
    model, small = controls(20)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, (3, 21), generator=generator)
    found = inspect_drafts(Adapter(small), model, [batch_of(tokens)])
    # Behind 10 tokens of a context of 20 there is room for 11.
    tally = measure(Adapter(small), model, tokens[:, :10], GREEDY, max_tokens=11)
    assert tally.num_tokens == 3 * 10
    assert found.metrics["acceptance_greedy"] == tally.acceptance
    assert found.metrics["tokens_per_pass_greedy"] == tally.tokens_per_pass
    assert set(found.metrics) == {
        f"{name}_{way}"
        for name in ("acceptance", "tokens_per_pass")
        for way in ("greedy", "sampled")
    }
    (picture,) = found.pictures
    assert picture.series["greedy"] == list(enumerate(tally.acceptance_by_place, start=1))


def test_a_model_without_drafts_has_nothing_to_report() -> None:
    model, _ = controls(20)
    adapter = DefaultModelAdapter(type(None), ControlModel)
    found = inspect_drafts(adapter, model, [batch_of(torch.zeros(1, 9, dtype=torch.int64))])
    assert (found.metrics, found.pictures) == ({}, ())
