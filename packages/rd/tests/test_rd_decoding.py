"""Caches per iteration, the budget of kept iterations, and early exit."""

import pytest
import torch
from rd_models import VOCAB, build, random_tokens

from nanozoo_core.testing.decoding import drawn_tokens
from nanozoo_rd.adapter import RDAdapter
from nanozoo_rd.cache import Decoding
from nanozoo_rd.config import RDConfig
from nanozoo_rd.decoding import decode
from nanozoo_rd.model import RecurrentDepth

ADAPTER = RDAdapter(RDConfig, RecurrentDepth)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def by_steps(model, tokens, pieces):
    """Logits (B, T, V), read through a cache in pieces of these lengths."""
    cache = model.init_cache(*tokens.shape)
    return torch.cat([model(piece, cache) for piece in tokens.split(pieces, dim=1)], dim=1)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("pieces", [[1] * 16, [7, 1, 1, 7], [1, 15]], ids=str)
def test_cached_decoding_is_the_full_forward_pass(depth, pieces):
    model, tokens = build(eval_recurrence=depth), random_tokens(3, 16)
    torch.testing.assert_close(by_steps(model, tokens, pieces), model(tokens), **CLOSE)


def test_a_cropped_cache_continues_like_a_fresh_one():
    model, tokens = build(), random_tokens(2, 16)
    other = random_tokens(2, 6, seed=9)
    cache = model.init_cache(2, 16)
    model(tokens[:, :12], cache)
    cache.crop(torch.tensor([10, 10]))
    continued = model(other, cache)
    joined = torch.cat([tokens[:, :10], other], dim=1)
    torch.testing.assert_close(continued, model(joined)[:, 10:], **CLOSE)


# -- the budget of iterations -------------------------------------------------------------------


@pytest.mark.parametrize("budget", [4, 9])
def test_a_budget_that_holds_every_iteration_changes_nothing(budget):
    tokens = random_tokens(2, 12)
    kept = by_steps(build(kv_budget=budget), tokens, [5, 1, 6])
    assert torch.equal(kept, by_steps(build(), tokens, [5, 1, 6]))


def test_a_budget_reads_the_last_congruent_iteration():
    """Two slots at four iterations: by hand, past tokens show iterations 3 and 4."""
    model, tokens = build(kv_budget=2, num_core_layers=1), random_tokens(1, 2)
    logits = by_steps(model, tokens, [1, 1])

    full = build(num_core_layers=1)
    cache = full.init_cache(1, 2)
    full(tokens[:, :1], cache)
    prelude, (first, second, third, fourth) = 1, range(1, 5)
    assert cache.keys.shape[0] == prelude + 4 + 1
    for store in (cache.keys, cache.values):
        store[first], store[second] = store[third].clone(), store[fourth].clone()
    torch.testing.assert_close(logits[:, 1:], full(tokens[:, 1:], cache), **CLOSE)
    torch.testing.assert_close(logits[:, :1], full(tokens[:, :1]), **CLOSE)


def test_a_small_budget_saves_memory_and_changes_the_result():
    small, full, tokens = build(kv_budget=1), build(), random_tokens(2, 12)
    found = small(tokens)
    assert found.isfinite().all()
    assert (found - full(tokens)).abs().max() > 1e-3
    assert small.init_cache(2, 12).keys.shape[0] == 1 + 1 * 2 + 1
    assert full.init_cache(2, 12).keys.shape[0] == 1 + 4 * 2 + 1


@pytest.mark.parametrize("changes", [{"kv_budget": 1}, {"exit_criterion": "latent"}], ids=str)
def test_sequential_decoding_does_not_depend_on_the_pieces(changes):
    model, tokens = build(**changes), random_tokens(2, 12)
    whole = model(tokens)
    torch.testing.assert_close(by_steps(model, tokens, [5, 1, 6]), whole, **CLOSE)
    cache = model.init_cache(2, 12)
    model(tokens[:, :9], cache)
    cache.crop(torch.tensor([6, 6]))
    torch.testing.assert_close(model(tokens[:, 6:], cache), whole[:, 6:], **CLOSE)


@pytest.mark.parametrize(
    "changes",
    [{"kv_budget": 2}, {"kv_budget": 3}, {"exit_criterion": "latent", "exit_threshold": 10.0}],
    ids=str,
)
def test_a_prompt_read_as_published_takes_every_iteration_side_by_side(changes):
    """So it is the full forward pass; what follows finds each slot's last iteration."""
    model, tokens = build(**changes, prefill="parallel"), random_tokens(2, 12)
    cache = model.init_cache(2, 12)
    torch.testing.assert_close(model(tokens[:, :9], cache), build()(tokens[:, :9]), **CLOSE)
    assert (model(tokens) - build()(tokens)).abs().max() > 1e-3  # scores stay sequential

    full = build()
    whole = full.init_cache(2, 12)
    full(tokens[:, :9], whole)
    num_slots = cache.decoding.num_slots
    for slot in range(num_slots):
        last = max(i for i in range(4) if i % num_slots == slot)
        for layer in range(2):
            for ours, theirs in ((cache.keys, whole.keys), (cache.values, whole.values)):
                expected = theirs[whole.core_layer(last) + layer][:, :, :9]
                found = ours[1 + 2 * slot + layer][:, :, :9]
                torch.testing.assert_close(found, expected, **CLOSE)


def test_a_budget_read_as_published_differs_from_one_read_token_by_token():
    tokens = random_tokens(2, 12)
    models = build(kv_budget=1), build(kv_budget=1, prefill="parallel")
    apart, together = (by_steps(model, tokens, [9, 1, 1, 1]) for model in models)
    assert (apart - together)[:, 1:].abs().amax((0, 2)).min() > 1e-3
    # A prompt of one token leaves nothing to choose.
    apart, together = (by_steps(model, tokens, [1] * 12) for model in models)
    assert torch.equal(apart, together)


# -- early exit ---------------------------------------------------------------------------------

CRITERIA = ["kl", "latent"]


def decoded(model, tokens):
    """Features and iterations of every token."""
    return decode(model, tokens, model.init_cache(*tokens.shape))


def exiting(criterion, threshold, **changes):
    return build(exit_criterion=criterion, exit_threshold=threshold, **changes)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_exit_that_never_comes_is_the_full_depth(criterion):
    model, tokens = exiting(criterion, 1e-30), random_tokens(2, 12)
    _, depths = decoded(model, tokens)
    assert (depths == 4).all()
    torch.testing.assert_close(model(tokens), build()(tokens), **CLOSE)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_exit_at_once_is_one_iteration(criterion):
    model, tokens = exiting(criterion, 1e30), random_tokens(2, 12)
    _, depths = decoded(model, tokens)
    assert (depths == 1).all()
    torch.testing.assert_close(model(tokens), build(eval_recurrence=1)(tokens), **CLOSE)


def middling(criterion):
    """A model and a threshold at which tokens leave at several depths."""
    threshold = {"kl": 2e-4, "latent": 0.1}[criterion]
    return exiting(criterion, threshold, eval_recurrence=8)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_exits_vary_and_depend_on_nothing_later(criterion):
    model, tokens = middling(criterion), random_tokens(2, 16)
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % VOCAB
    features, depths = decoded(model, tokens)
    other, other_depths = decoded(model, changed)
    assert len(depths.unique()) > 1
    assert torch.equal(depths[:, :10], other_depths[:, :10])
    assert torch.equal(features[:, :10], other[:, :10])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rows_of_a_batch_exit_on_their_own(criterion):
    model, tokens = middling(criterion), random_tokens(3, 12)
    features, depths = decoded(model, tokens)
    assert any(len(column.unique()) > 1 for column in depths.T)
    for row in range(3):
        alone, alone_depths = decoded(model, tokens[row : row + 1])
        assert torch.equal(alone_depths[0], depths[row])
        torch.testing.assert_close(alone[0], features[row], **CLOSE)


def test_later_tokens_read_the_latest_iteration_of_the_same_layer():
    """One token that ends at iteration 2 of 4, written into a full cache by hand."""
    model, tokens = build(), random_tokens(1, 2)
    shallow = model.init_cache(1, 2)
    model.decoding = Decoding(2)
    two = model.init_cache(1, 2)
    model(tokens[:, :1], two)
    model.decoding = Decoding(4)
    for here, there in ((shallow.keys, two.keys), (shallow.values, two.values)):
        here[0], here[9] = there[0], there[5]  # prelude and coda
        here[1:5], here[5:7], here[7:9] = there[1:5], there[3:5], there[3:5]
    shallow.advance(1)
    expected = model(tokens[:, 1:], shallow)

    left = model.init_cache(1, 2)
    for here, there in ((left.keys, two.keys), (left.values, two.values)):
        here[0], here[9], here[1:5] = there[0], there[5], there[1:5]
    left.leave(torch.tensor([0]), 1)
    left.advance(1)
    torch.testing.assert_close(model(tokens[:, 1:], left), expected, rtol=0, atol=0)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_cached_tokens_after_exits_equal_full_recomputation(criterion):
    model, tokens = middling(criterion), random_tokens(2, 12)
    torch.testing.assert_close(by_steps(model, tokens, [1] * 12), model(tokens), **CLOSE)


def test_kl_measures_the_prediction_from_the_one_before():
    """The published code's direction, KL(p_{i-1} || p_i), from uniform; on texts of one token."""
    tokens, threshold = torch.arange(VOCAB)[:, None], 1e-2
    model = exiting("kl", threshold, eval_recurrence=6)
    log_probs = [torch.full((VOCAB, VOCAB), 1 / VOCAB, dtype=torch.float64).log()]
    for depth in range(1, 7):
        logits = build(eval_recurrence=depth)(tokens)[:, 0].double()
        log_probs.append(logits.log_softmax(-1))

    def exits(divergence):
        depths = torch.full((VOCAB,), 6)
        for i in range(6, 0, -1):
            value = divergence(log_probs[i - 1], log_probs[i]).sum(-1)
            depths[value < threshold] = i
        return depths

    expected = exits(lambda before, now: before.exp() * (before - now))
    assert torch.equal(decoded(model, tokens)[1][:, 0], expected)
    assert not torch.equal(exits(lambda before, now: now.exp() * (now - before)), expected)


def test_latent_measures_the_change_against_the_new_state():
    """On texts of one token, whose states take no more than a loop."""
    plain, tokens, threshold = build(), torch.arange(VOCAB)[:, None], 0.1
    angles = plain.angles(torch.zeros_like(tokens))
    injected = plain.read(tokens, angles)
    state, expected = plain.evaluation_state(torch.zeros_like(tokens)), torch.full((VOCAB,), 6)
    for i in range(1, 6):
        before, state = state, plain.step(state, injected, angles)
        change = ((state - before).square().sum(-1) / state.square().sum(-1)).sqrt()[:, 0]
        expected[(change < threshold) & (expected == 6)] = i
    assert len(expected.unique()) > 1
    model = exiting("latent", threshold, eval_recurrence=6)
    assert torch.equal(decoded(model, tokens)[1][:, 0], expected)


# -- text ---------------------------------------------------------------------------------------


def draw(model, **changes):
    return drawn_tokens(ADAPTER, model, [3, 1, 4], **({"max_tokens": 10} | changes))


@pytest.mark.parametrize(
    "changes", [{}, {"exit_criterion": "latent"}, {"exit_criterion": "kl", "kv_budget": 2}], ids=str
)
def test_text_is_the_same_without_a_cache(changes):
    model = build(**changes)
    assert draw(model) == draw(model, use_cache=False)


def test_text_is_drawn_at_the_depth_asked_for():
    model = build()
    assert draw(model, num_steps=1) == draw(build(eval_recurrence=1))
    assert draw(model, num_steps=1, use_cache=False) == draw(build(eval_recurrence=1))
    assert draw(model) == draw(build(eval_recurrence=4))  # and the model's own depth is back


@pytest.mark.parametrize("changes", [{}, {"exit_criterion": "latent"}, {"kv_budget": 2}], ids=str)
@pytest.mark.parametrize("num_tokens", [13, 14, 22])
def test_past_the_window_the_older_half_is_dropped(changes, num_tokens):
    """Positions, and with them the initial states, start again at 0."""
    model = build(seq_len=16, **changes)
    window, expected = [3, 1, 4], []
    for _ in range(num_tokens):
        expected.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window.append(expected[-1])
        if len(window) > 16:
            window = window[-8:]
    settings = {"max_tokens": num_tokens, "temperature": 0.0}
    assert draw(model, **settings) == expected
    assert draw(model, **settings, use_cache=False) == expected
