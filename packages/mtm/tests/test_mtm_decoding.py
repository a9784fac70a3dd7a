"""Drafting module by module, and speculative decoding: it gives what the main model alone gives."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from mtm_models import ADAPTER, SMALL, all_logits, build
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.testing.multi_token import VOCAB, random_tokens
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.speculation import (
    check_bfloat16_logits,
    check_greedy_rows,
    check_greedy_text,
    check_sampled_rows,
)
from nanozoo_mtm.drafter import ChainDrafter
from nanozoo_mtm.model import MTM

WAYS: dict[str, dict[str, Any]] = {
    "one-module": {"num_mtp_modules": 1, "spec_draft_tokens": 1},
    "two-modules": {"num_mtp_modules": 2, "spec_draft_tokens": 2},
    "one-of-two": {"num_mtp_modules": 2, "spec_draft_tokens": 1},
    "again": {"num_mtp_modules": 2, "spec_draft_tokens": 4},
    "mlp": {"num_mtp_modules": 2, "spec_draft_tokens": 3, "mtp_block": "mlp"},
    "three-modules": {"num_mtp_modules": 3, "spec_draft_tokens": 3},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def build_exact(**settings: Any) -> MTM:
    """In float64, where no rounding decides between tokens. Main model and modules lean towards
    the same tokens, whatever they read, so that some drafts stand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of drafts beyond the modules
        model = build(dtype=torch.float64, **settings).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.down.weight.mul_(0.3)
        for module in model.modules_ahead:
            module.fuse.weight.mul_(0.3)
            dim = model.config.model_dim
            # The embedding passes through: what follows a token depends on it most of all.
            module.fuse.weight[:, dim:] += torch.eye(dim, dtype=torch.float64)
            module.block.mlp.down.weight.mul_(0.3)
    return model


class Recorder:
    """Stands in for drawing: notes the logits and answers with the tokens given, one at a time."""

    def __init__(self, answers: Tensor) -> None:
        self.answers = answers  # (B, K)
        self.logits: list[Tensor] = []

    def __call__(self, logits: Tensor) -> Tensor:
        self.logits.append(logits)
        return self.answers[:, len(self.logits) - 1]


def at(tokens: Tensor, places: Tensor, count: int) -> Tensor:
    """(B, count): the tokens of each row from its place on."""
    return tokens.gather(1, places[:, None] + torch.arange(count))


# -- drafting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_mtp_modules": 3}, {"mtp_block": "mlp"}, {"concat_order": "embed_first"}],
    ids=["two", "three", "mlp", "embed-first"],
)
@torch.no_grad()
def test_drafting_step_by_step_is_the_parallel_form(settings: dict[str, Any]) -> None:
    """With the true tokens as drafts, rows of unequal length, one to all drafts kept per pass."""
    count = settings.get("num_mtp_modules", 2)
    model = build_exact(spec_draft_tokens=count, **settings)
    tokens = random_tokens(3, 40)
    expected = all_logits(model, batch_of(tokens[:, :37], lookahead=1))
    drafter, rows = ChainDrafter(model), torch.arange(3)
    lengths = torch.tensor([1, 9, 4])
    drafter.begin(tokens[:, :9], lengths, 40)
    for step in range(8):
        recorder = Recorder(at(tokens, lengths + 1, count))
        drafts = drafter.draft(tokens[rows, lengths], recorder)
        for depth, logits in enumerate(recorder.logits, start=1):
            torch.testing.assert_close(
                logits, expected[depth][rows, lengths - 1], rtol=0, atol=1e-10
            )
        read = torch.cat([tokens[rows, lengths][:, None], drafts], 1)
        checked = drafter.check(read)
        kept = 1 + (step + rows) % (count + 1)
        for place in range(count + 1):
            torch.testing.assert_close(
                checked[:, place], expected[0][rows, lengths + place], rtol=0, atol=1e-10
            )
        drafter.keep(kept)
        lengths = lengths + kept


@torch.no_grad()
def test_a_draft_beyond_the_modules_reads_the_one_before() -> None:
    model, tokens = build_exact(num_mtp_modules=1, spec_draft_tokens=3), random_tokens(1, 12)
    found = []
    for second in (4, 5):
        drafter = ChainDrafter(model)
        drafter.begin(tokens[:, :9], torch.tensor([9]), 20)
        recorder = Recorder(torch.tensor([[3, second, 6]]))
        drafter.draft(tokens[:, 9], recorder)
        found.append(recorder.logits)
    assert [torch.equal(a, b) for a, b in zip(*found, strict=True)] == [True, True, False]


@ways
@torch.no_grad()
def test_after_rejections_the_state_is_that_of_a_fresh_reading(way: dict[str, Any]) -> None:
    model, tokens = build_exact(**way), random_tokens(3, 40)
    count = model.config.spec_draft_tokens
    drafter, rows = ChainDrafter(model), torch.arange(3)
    lengths = torch.tensor([1, 9, 4])
    drafter.begin(tokens[:, :9], lengths, 48)
    for step in range(6):
        kept = torch.tensor([(step + row) % (count + 2) for row in range(3)])  # 0 .. K + 1
        pending = tokens[rows, lengths]
        true = at(tokens, lengths + 1, count)
        wrong = (true + 1) % 31
        drafts = torch.where(torch.arange(1, count + 1) < kept[:, None], true, wrong)
        drafter.draft(pending, Recorder(drafts))
        checked = drafter.check(torch.cat([pending[:, None], drafts], 1))
        drafter.keep(kept)
        lengths = lengths + kept
        fresh = ChainDrafter(model)
        logits = fresh.begin(tokens[:, : int(lengths.max())], lengths, 48)
        for row, number in enumerate(kept.tolist()):
            if number:
                torch.testing.assert_close(checked[row, number - 1], logits[row],
                                           rtol=0, atol=1e-10)  # fmt: skip
        recorders = (
            Recorder(at(tokens, lengths + 1, count)),
            Recorder(at(tokens, lengths + 1, count)),
        )
        for each, recorder in zip((drafter, fresh), recorders, strict=True):
            each.draft(tokens[rows, lengths], recorder)
        for ours, theirs in zip(*(recorder.logits for recorder in recorders), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        for ours, theirs in zip(drafter.caches, fresh.caches, strict=True):
            assert torch.equal(ours.lengths, theirs.lengths)
            for row, length in enumerate(ours.lengths.tolist()):
                mine, other = (each.keys[:, row, :, :length] for each in (ours, theirs))
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


@torch.no_grad()
def test_cached_decoding_of_the_main_model_is_the_parallel_form() -> None:
    model, tokens = build_exact(), random_tokens(3, 40)
    full = model(tokens)
    cache = ADAPTER.init_cache(model, 3, 40)
    pieces = [model(tokens[:, a:b], cache) for a, b in ((0, 9), (9, 10), (10, 14), (14, 40))]
    torch.testing.assert_close(torch.cat(pieces, 1), full, rtol=0, atol=1e-10)
    assert cache.keys.shape[0] == 2  # modules keep nothing there


# -- exactness ---------------------------------------------------------------------------------


@ways
def test_greedy_drafts_change_nothing(way: dict[str, Any]) -> None:
    tally = check_greedy_rows(ADAPTER, build_exact(seq_len=160, **way), vocab_size=VOCAB)
    assert 0.02 < tally.acceptance < 0.99


def test_a_module_of_random_weights_changes_nothing_either() -> None:
    model = build_exact(num_mtp_modules=1)
    with torch.no_grad():
        for parameter in model.modules_ahead.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    assert check_greedy_text(ADAPTER, model, max_tokens=40).acceptance < 0.5


@ways
def test_greedy_text_past_the_context_is_the_plain_one(way: dict[str, Any]) -> None:
    check_greedy_text(ADAPTER, build_exact(**way), max_tokens=2 * SMALL["seq_len"])


@ways
def test_greedy_text_in_float32_is_the_plain_one(way: dict[str, Any]) -> None:
    check_greedy_text(ADAPTER, build_exact(**way).float(), max_tokens=40)


@ways
def test_bfloat16_rounds_checked_drafts_as_plain_decoding(way: dict[str, Any]) -> None:
    check_bfloat16_logits(ADAPTER, build_exact(**way), vocab_size=VOCAB)


@pytest.mark.parametrize(
    ("way", "cuts"),
    [
        ("one-module", {}),
        ("two-modules", {"temperature": 0.7, "top_k": 5, "top_p": 0.9}),
        ("again", {}),
    ],
    ids=["one", "cut", "again"],
)
def test_sampled_drafts_change_no_distribution(way: str, cuts: dict[str, Any]) -> None:
    model = build_exact(vocab_size=8, **WAYS[way]).float()
    tally = check_sampled_rows(ADAPTER, model, SamplingSettings(**cuts), vocab_size=8)
    assert 0.05 < tally.acceptance < 0.995
