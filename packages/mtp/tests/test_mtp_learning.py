"""What training achieves on known sources, and what a run says of its drafts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mtp_models import ADAPTER, all_logits, build
from torch import Tensor

from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.multi_token import LENGTH, check_a_run_drafts, check_counting
from nanozoo_core.testing.sources import MarkovSource, batch_of
from nanozoo_core.testing.training import train_on_batches
from nanozoo_mtp.losses import token_losses


@pytest.mark.parametrize("head_type", ["block", "linear"])
def test_every_head_counts_its_own_distance(head_type: str) -> None:
    """x_{t+1} = x_t + 1 mod V: head i at t says x_t + i."""
    model = build(moved=0, vocab_size=12, num_mtp_tokens=3, head_type=head_type)
    check_counting(ADAPTER, model, lambda batch: all_logits(model, batch.inputs))


def test_each_head_learns_the_chain_of_its_own_distance() -> None:
    """Head i of a Markov chain M comes within 2 percent of the entropy of M^i, and not below it."""
    source = MarkovSource(6)
    model = build(moved=0, vocab_size=6, num_layers=4, num_mtp_tokens=3)
    train_on_batches(ADAPTER, model, [batch_of(source.sample(32, LENGTH + 3, seed), lookahead=3)
                  for seed in range(250)])  # fmt: skip
    tokens = source.sample(64, LENGTH, 10_000)
    power = torch.eye(6, dtype=torch.float64)
    entropies = []
    with torch.no_grad():
        for logits in all_logits(model, tokens):
            power = power @ source.transitions
            p = power[tokens]  # (B, T, V)
            entropy = float(torch.special.entr(p).sum(-1).mean())
            reached = float(-(p * logits.double().log_softmax(-1)).sum(-1).mean())
            assert entropy <= reached < 1.02 * entropy
            entropies.append(entropy)
    assert entropies[0] < entropies[1] < entropies[2]


def test_of_noise_every_head_learns_the_frequencies_alone() -> None:
    frequencies = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    model = build(moved=0, vocab_size=4, num_layers=3, num_mtp_tokens=2)

    def noise(seed: int) -> Tensor:
        generator = seeded_generator(seed)
        draws = torch.multinomial(
            frequencies, 16 * (LENGTH + 2), replacement=True, generator=generator
        )
        return draws.reshape(16, LENGTH + 2)

    train_on_batches(ADAPTER, model, [batch_of(noise(seed), lookahead=2) for seed in range(150)])
    entropy = float(torch.special.entr(frequencies).sum())
    with torch.no_grad():
        log_p = all_logits(model, noise(1000)[:, :LENGTH]).double().log_softmax(-1)
    for reached in (-(frequencies * log_p).sum(-1)).mean((1, 2)).tolist():
        assert entropy <= reached < 1.02 * entropy


# -- a run -------------------------------------------------------------------------------------


def test_inspection_adds_up() -> None:
    model = build().eval()
    generator = torch.Generator().manual_seed(0)
    batches = [
        batch_of(torch.randint(31, (4, 24 + 3), generator=generator), lookahead=3) for _ in range(2)
    ]
    found = ADAPTER.inspect(model, batches, ToyVocabulary(31))
    with torch.no_grad():
        losses = [token_losses(model, batch) for batch in batches]
    means = [float(torch.cat([row[i] for row in losses]).mean()) for i in range(3)]
    names = ["nll", "nll_ahead2", "nll_ahead3"]
    assert [found.metrics[name] for name in names] == pytest.approx(means, rel=1e-5)
    blocks = torch.stack([torch.cat([row[i] for row in losses])[:, ::3] for i in range(3)])
    assert found.metrics["diag/block_nll"] == pytest.approx(float(blocks.mean()), rel=1e-5)
    assert [x for x, _ in found.pictures[0].series["nll"]] == [1, 2, 3]
    assert len(found.pictures) == 2
    assert 1 <= found.metrics["tokens_per_pass_greedy"] <= 3
    assert 0 <= found.metrics["acceptance_sampled"] <= 1


def test_a_run_tells_of_its_drafts_and_generates_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_a_run_drafts("mtp", "nll_ahead2", tmp_path, monkeypatch, capsys)
