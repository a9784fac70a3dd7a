"""Block diffusion: one pass over all blocks, its bound, and what generation keeps.

B windows, L scored tokens, S = L + 1 positions, C tokens of a block.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from block_cases import spans, states
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.contract import Draw, Step
from nanozoo_core.diffusion.bounds import draw_by_count, draw_nats, network_draw_sum, network_loss
from nanozoo_core.diffusion.sampling import draw_noise
from nanozoo_core.errors import ConfigError
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.diffusion.models import SmallModels, watch
from nanozoo_mdl.blocks import BlockNetwork, Blocks, Memory
from nanozoo_mdl.generate import read_block, remember
from nanozoo_mdl.model import MDLM

TIMED = {"time_conditioning": True, "cond_dim": 8}
MODELS = SmallModels("mdl", {"plain": {}, "timed": TIMED}, {}, scale=0.3)
VOCAB, LENGTH = MODELS.vocab_size, MODELS.seq_len
ADAPTER = MODELS.adapter
SIZES = (1, 4, 10)


def make(size: int | None, variant: str = "plain", **changes: object) -> MDLM:
    return MODELS.make(variant, block_size=size, **changes).double()


def block_by_block(model: MDLM, window: Tensor, noised: Tensor, time: Tensor) -> Tensor:
    """Logits (B, S, V) of noised windows at time (B, N), by a pass for each block: of itself behind
    the clean text before it."""
    parts = []
    length = window.shape[1] - 1
    for number, (start, end) in enumerate(spans(length, model.blocks.size)):
        tokens = torch.cat([window[:, :start], noised[:, start:end]], dim=1)
        by_token = torch.zeros(tokens.shape)
        by_token[:, start:] = time[:, number, None]
        parts.append(model(tokens, by_token)[:, start:])
    return torch.cat(parts, dim=1)


# -- reading --------------------------------------------------------------------------------------

# Six positions: the context and two tokens, two, and one, first noised and then clean but the last.
SEEN = """
    111000 00000
    111000 00000
    111000 00000
    000110 11100
    000110 11100
    000001 11111

    11100
    11100
    11100
    11111
    11111
"""


def test_masks_of_training_are_those_of_the_paper():
    noised, clean = (
        torch.tensor([[c == "1" for c in row.replace(" ", "")] for row in part.split("\n")])
        for part in SEEN.replace("    ", "").strip().split("\n\n")
    )
    view = Blocks(2).training_view(6, torch.device("cpu"))
    assert view.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    for bias, seen in ((view.noised_bias, noised), (view.clean_bias, clean)):
        assert torch.equal(bias, torch.zeros(seen.shape).masked_fill(~seen, -torch.inf))


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 256])
@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_blocks_cover_the_window_once(size, length):
    blocks = Blocks(size)
    expected = [number for number, span in enumerate(spans(length, size)) for _ in range(*span)]
    assert blocks.of(torch.arange(length + 1)).tolist() == expected
    assert blocks.number(length) == 1 + expected[-1]
    assert [blocks.span(n)[0] for n in range(blocks.number(length))] == [
        start for start, _ in spans(length, size)
    ]


def test_a_block_sees_itself_and_the_clean_text_before_it():
    """A change in the middle block: noised, it reaches itself alone; clean, all noised blocks
    behind it."""
    model = make(3)
    window, noised = MODELS.windows(1).tokens, MODELS.windows(1, seed=5).tokens
    network = BlockNetwork(model.net, model.blocks, window)
    before = network.features(noised, torch.zeros(1, 4))

    def moved(network: BlockNetwork, tokens: Tensor) -> list[bool]:
        difference = network.features(tokens, torch.zeros(1, 4)) - before
        return (difference.abs().amax((0, 2)) > 1e-9).tolist()

    for place in (4, 5, 6):
        changed = noised.clone()
        changed[0, place] = VOCAB
        assert moved(network, changed) == [4 <= i <= 6 for i in range(11)]
        clean = window.clone()
        clean[0, place] = (clean[0, place] + 1) % VOCAB
        other = BlockNetwork(model.net, model.blocks, clean)
        assert moved(other, noised) == [i >= 7 for i in range(11)]


@pytest.mark.parametrize("variant", ["plain", "timed"])
@pytest.mark.parametrize("size", SIZES)
def test_one_pass_over_all_blocks_is_a_pass_for_each(size, variant):
    """Features and gradients, with times of their own."""
    model = make(size, variant)
    window = MODELS.windows(3).tokens
    mask = torch.rand(3, LENGTH + 1, generator=seeded_generator(1)) < 0.5
    mask[:, 0] = False
    noised = window.masked_fill(mask, VOCAB)
    time = torch.rand(3, math.ceil(LENGTH / size), generator=seeded_generator(2))
    network = BlockNetwork(model.net, model.blocks, window)
    found = model.net.logits(network.features(noised, model.time_input(time).float()))
    expected = block_by_block(model, window, noised, time)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    pull = torch.randn(found.shape, generator=seeded_generator(3), dtype=torch.float64)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad((found * pull).sum(), parameters),
        torch.autograd.grad((expected * pull).sum(), parameters),
        strict=True,
    ):
        assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_masks_are_built_once():
    blocks, cpu = Blocks(2), torch.device("cpu")
    assert blocks.training_view(9, cpu) is blocks.training_view(9, cpu)
    whole = blocks.causal_view(9, cpu)
    shorter = blocks.causal_view(4, cpu)
    assert shorter.bias.data_ptr() == whole.bias.data_ptr()
    assert torch.equal(shorter.bias, Blocks(2).causal_view(4, cpu).bias)


# -- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "timed"])
def test_blocks_of_one_token_score_the_chain_rule_without_noise(variant):
    """-log p of every token given those before it, by L passes over one mask behind its prefix. A
    network that is told the time is asked at the Beta(1, 1) time of the draw, so that its score has
    noise; without, every draw is the same number."""
    model = make(1, variant)
    batch = MODELS.windows()
    windows = batch.tokens
    with torch.no_grad():
        scores = [ADAPTER.nll(model, batch, Draw(0, number)).nats for number in range(3)]
        times = [model.blocks.noise(Draw(0, number), batch).uniforms for number in range(3)]
        for score, time in zip(scores, times, strict=True):
            expected = torch.zeros(len(windows), dtype=torch.float64)
            for place in range(1, LENGTH + 1):
                tokens = windows[:, : place + 1].clone()
                tokens[:, place] = VOCAB
                by_token = torch.zeros(tokens.shape, dtype=torch.float64)
                by_token[:, place:] = time[:, place - 1, None]
                by_token[:, 0] = by_token[:, 0] if place > 1 else time[:, 0]  # one block with it
                logits = model(tokens, by_token)[:, -1]
                rows = torch.arange(len(windows))
                expected -= logits.log_softmax(-1)[rows, windows[:, place]]
            assert_close(score, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(score, scores[0]) for score in scores) == (variant == "plain")


@pytest.mark.parametrize("time_sampler", ["k", "t"])
@pytest.mark.parametrize("variant", ["plain", "timed"])
def test_one_block_is_the_plain_model_to_the_bit(variant, time_sampler):
    """The same draws: by null, by the length of the window, and by the functions of core alone."""
    batch = MODELS.windows(scored=MODELS.scored_before(7, 2))
    whole, one = (
        MODELS.make(variant, block_size=size, time_sampler=time_sampler) for size in (None, LENGTH)
    )
    step = Step(4, 0.0, 0)
    with torch.no_grad():
        scores = [ADAPTER.nll(model, batch, Draw(3)).nats for model in (whole, one)]
        losses = [ADAPTER.training_loss(model, batch, step).value for model in (whole, one)]
        assert torch.equal(*scores)
        assert torch.equal(*losses)
        noise = draw_noise(Draw(3), batch.rows, batch.num_rows, LENGTH)
        draw = draw_by_count(noise, schedule=whole.schedule, scored=batch.scored)
        context, targets = batch.tokens[:, :1], batch.tokens[:, 1:]
        loss = network_loss(whole.net, context, VOCAB, whole.time_input)
        assert torch.equal(scores[0], draw_nats(loss, targets, draw).double())
        if time_sampler == "k":
            noise = draw_noise(step, batch.rows, batch.num_rows, LENGTH)
            draw = draw_by_count(noise, schedule=whole.schedule, scored=batch.scored)
            nats = network_draw_sum(whole.net, context, VOCAB, targets, draw, whole.time_input)
            assert torch.equal(losses[0], nats / batch.num_scored)


def test_levels_of_blocks_are_spread_over_windows_and_within_each():
    batch = MODELS.windows(8)
    noise = Blocks(2).noise(Step(1, 0.0, 0), batch)
    assert noise.level.shape == (8, 5)
    assert (noise.level * 40).long().flatten().sort().values.tolist() == list(range(40))
    for row in noise.level:
        assert (row * 5).long().sort().values.tolist() == list(range(5))
    orders = {tuple(row.argsort().tolist()) for row in noise.level}
    assert len(orders) > 5
    loose = Blocks(2).noise(Step(1, 0.0, 0), batch, stratified=False)
    assert torch.equal(loose.uniforms, noise.uniforms)
    assert len(set((loose.level * 40).long().flatten().tolist())) < 40


def test_every_block_masks_a_number_of_its_own():
    """From one to all, each equally often; a shorter last block has its own range."""
    model = MODELS.make(block_size=4)
    seen = watch(model)
    batch = MODELS.windows(600)
    with torch.no_grad():
        ADAPTER.nll(model, batch, Draw(0))
    (tokens,) = seen
    masked = tokens[:, : LENGTH + 1] == VOCAB
    counts = torch.stack([masked[:, i:j].sum(1) for i, j in ((1, 5), (5, 9), (9, 11))])
    for block, length in enumerate((4, 4, 2)):
        found = torch.bincount(counts[block], minlength=5)[1:]
        assert found[:length].tolist() == pytest.approx([600 / length] * length, abs=40)
        assert int(found[length:].sum()) == 0
    # Levels of three blocks lie in thirds of their own: nearly all pairs of numbers, not all.
    assert len({tuple(pair) for pair in counts[:2].T.tolist()}) > 11
    assert torch.equal(tokens[:, LENGTH + 1 :], batch.tokens[:, :9])


# -- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["first_hitting", "ancestral_cache", "confidence", "remask"])
@pytest.mark.parametrize("size", [1, 3])
def test_kept_keys_and_values_change_nothing(size, sampler):
    """The same texts, step by step, and no more tokens read."""
    for variant in ("plain", "timed"):
        model = make(size, variant, sampler=sampler).eval()
        seen = watch(model)
        texts, read = [], []
        for use_cache in (True, False):
            seen.clear()
            window = torch.tensor([[3, 4, 5, *[VOCAB] * 6]])
            steps = None if sampler == "first_hitting" else 5
            found = states(model, window, 1, num_steps=steps, use_cache=use_cache)
            texts.append([state.tolist() for state in found])
            read.append(sum(tokens.shape[1] for tokens in seen))
        assert texts[0] == texts[1]
        assert read[0] <= read[1]
        final = texts[0][-1][0]
        assert final[:3] == [3, 4, 5]
        assert max(final) < VOCAB


def test_cached_features_are_those_of_the_whole_text():
    """Block after block, in float64, over a text that is finished bit by bit."""
    for variant in ("plain", "timed"):
        model = make(3, variant).eval()
        window = MODELS.windows(2).tokens
        memory = Memory(model.net, 2, LENGTH + 1)
        time = torch.tensor([0.3, 0.8], dtype=torch.float64)
        with torch.no_grad():
            remember(model, memory, window[:, :7])
            for start, end in ((7, 10), (10, 11)):
                block = window[:, start:end].clone()
                block[:, 0] = VOCAB
                cached = read_block(model, window[:, :start], memory, block, time)
                plain = read_block(model, window[:, :start], None, block, time)
                assert_close(cached, plain, rtol=1e-11, atol=1e-11)
                remember(model, memory, window[:, start:end])
        assert memory.length == LENGTH + 1


def test_a_gap_before_text_of_a_later_block_is_refused():
    model = make(4).eval()
    for window in ([1, None, 2, 3, 4, 5], [1, 2, 3, 4, 5, None, 6, 7, 8, 9, 10]):
        tokens = torch.tensor([[VOCAB if token is None else token for token in window]])
        with pytest.raises(ConfigError, match=r"block_size=4 writes .* use .*block_size=null"):
            list(states(model, tokens))
    *_, filled = states(model, torch.tensor([[1, VOCAB, 2, VOCAB, 4]]))
    assert filled[0, [0, 2, 4]].tolist() == [1, 2, 4]
    assert int(filled.max()) < VOCAB


def test_network_is_told_the_noise_of_each_block_and_none_of_clean_text():
    model = make(5, "timed")
    told: list[Tensor] = []
    model.net.time_embedding.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    batch = dataclasses.replace(MODELS.windows(4), scored=None)
    with torch.no_grad():
        ADAPTER.nll(model, batch, Draw(0))
    (sigma,) = told
    assert sigma.shape == (4, 11 + 6)
    assert float(sigma[:, 11:].abs().max()) == 0
    assert bool((sigma[:, :6] == sigma[:, :1]).all())
    assert bool((sigma[:, 6:11] == sigma[:, 6:7]).all())
    assert bool((sigma[:, 0] != sigma[:, 6]).all())
