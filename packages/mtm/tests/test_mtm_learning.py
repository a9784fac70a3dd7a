"""What training achieves on known sources, and what a run says of its modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mtm_models import ADAPTER, all_logits, build
from torch import Tensor

from nanozoo_core.contract import Batch
from nanozoo_core.multi_token_adapter import targets_of
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.multi_token import (
    LENGTH,
    check_a_run_drafts,
    check_counting,
    random_batch,
)
from nanozoo_core.testing.sources import MarkovSource, batch_of
from nanozoo_core.testing.training import train_on_batches


@pytest.mark.parametrize("block", ["base", "mlp"])
def test_every_depth_counts_on(block: str) -> None:
    """x_{t+1} = x_t + 1 mod V: depth k at i says x_i + k + 1, and all drafts stand."""
    model = build(
        moved=0, vocab_size=12, num_mtp_modules=2, spec_draft_tokens=2, mtp_block=block,
        mtp_lambda=1.0, mtp_lambda_final=1.0,
    )  # fmt: skip
    check_counting(ADAPTER, model, lambda batch: all_logits(model, batch))


def test_a_module_reads_the_token_that_comes_next() -> None:
    """Every other token is random and the next a function f of it. At an odd position i module 1 is
    asked for f(x_{i+1}), which only E[x_{i+1}] tells; the main model cannot know x_{i+1}."""
    permutation = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    model = build(moved=0, vocab_size=16, num_mtp_modules=1, mtp_lambda=1.0, mtp_lambda_final=1.0)

    def pairs(seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        random = torch.randint(8, (16, LENGTH // 2 + 1), generator=generator)
        tokens = torch.stack([random, 8 + permutation[random]], -1).flatten(1)
        return batch_of(tokens, lookahead=2)

    train_on_batches(ADAPTER, model, [pairs(seed) for seed in range(150)])
    batch = pairs(1000)
    with torch.no_grad():
        logits = all_logits(model, batch)
    losses = [
        torch.nn.functional.cross_entropy(
            found.transpose(1, 2), targets_of(model, batch, depth + 1)[0], reduction="none"
        ).mean(0)
        for depth, found in enumerate(logits)
    ]
    entropy = float(torch.tensor(8.0).log())
    assert float(losses[0][1::2].mean()) > 0.95 * entropy
    assert float(losses[0][0::2].mean()) < 0.05
    assert float(losses[1][1::2].mean()) < 0.05
    assert float(losses[1][0::2].mean()) > 0.95 * entropy


def expected_nats(model, tokens: Tensor, p_next: Tensor) -> list[tuple[float, float]]:
    """For each depth, the entropy of the source given the token before, and what is reached."""
    batch = batch_of(tokens, lookahead=3)
    with torch.no_grad():
        logits = all_logits(model, batch).double()
    found = []
    for depth, each in enumerate(logits):
        last = batch.tokens[:, depth : depth + batch.inputs.shape[1]]  # x_{i+k}
        p = p_next[last]
        entropy = float(torch.special.entr(p).sum(-1).mean())
        reached = float(-(p * each.log_softmax(-1)).sum(-1).mean())
        found.append((entropy, reached))
    return found


@pytest.mark.parametrize("source", ["chain", "noise"])
def test_each_depth_learns_the_next_token_not_the_one_far_ahead(source: str) -> None:
    """A module sees the tokens up to the one that it predicts, so every depth comes within 2
    percent of the source's entropy per token."""
    markov = MarkovSource(6, sharpness=2.0 if source == "chain" else 0.0)
    model = build(moved=0, vocab_size=6, mtp_lambda=1.0, mtp_lambda_final=1.0)
    train_on_batches(ADAPTER, model, [batch_of(markov.sample(32, LENGTH + 3, seed), lookahead=3)
                  for seed in range(250 if source == "chain" else 60)])  # fmt: skip
    for entropy, reached in expected_nats(
        model, markov.sample(64, LENGTH + 3, 10_000), markov.transitions
    ):
        assert entropy <= reached < 1.02 * entropy


# -- a run -------------------------------------------------------------------------------------


def test_inspection_compares_each_module_with_the_main_model() -> None:
    model = build(num_mtp_modules=1).eval()
    batch = random_batch(3, 24, lookahead=2)
    found = ADAPTER.inspect(model, [batch], ToyVocabulary(31))
    assert found is not None
    with torch.no_grad():
        main, module = all_logits(model, batch)
    p, q = main[:, 1:].softmax(-1), module[:, :-1].softmax(-1)
    same = (p.argmax(-1) == q.argmax(-1)).double().mean()
    assert found.metrics["agreement_module1"] == pytest.approx(float(same))
    overlap = torch.minimum(p, q).sum(-1).mean()
    assert found.metrics["overlap_module1"] == pytest.approx(float(overlap), rel=1e-4)
    targets, _ = targets_of(model, batch, 2)
    nll = torch.nn.functional.cross_entropy(module.transpose(1, 2), targets, reduction="none")
    assert found.metrics["nll_module1"] == pytest.approx(float(nll[:, :-1].mean()), rel=1e-4)
    assert len(found.pictures) == 2
    assert 1 <= found.metrics["tokens_per_pass_greedy"] <= 2


def test_without_modules_there_is_nothing_to_inspect() -> None:
    model = build(num_mtp_modules=0, spec_draft_tokens=0).eval()
    assert ADAPTER.inspect(model, [random_batch()], ToyVocabulary(31)) is None


def test_a_run_tells_of_its_module_and_generates_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, generate = check_a_run_drafts("mtm", "nll_module1", tmp_path, monkeypatch, capsys)
    with pytest.warns(UserWarning, match="run again on its own output"):
        again = generate("--speculative", "model_cfg.spec_draft_tokens=3")
    assert again[0] == plain
