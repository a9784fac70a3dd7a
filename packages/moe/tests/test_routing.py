import math

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_moe.routing import (
    Router,
    Routing,
    balance_loss,
    load_metrics,
    score_metrics,
    sequence_loss,
    z_loss,
)


def make_router(seed=0, **settings):
    torch.manual_seed(seed)
    return Router(model_config("moe", {"model_dim": 16, "num_heads": 2, **settings}))


def stream(batch=2, length=20, seed=0):
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(seed))


def routing_of(logits, experts):
    """Softmax routing with given choices, for logits (B, T, E)."""
    counts = torch.bincount(experts.flatten(), minlength=logits.shape[-1])
    scores = logits.softmax(-1)
    return Routing(logits, scores, experts, scores.gather(-1, experts), counts)


# -- choice and weights -------------------------------------------------------------------------


def test_the_bias_moves_the_choice_and_no_weight():
    router = make_router(num_experts=4, top_k=2)
    h = stream()
    before = router(h)
    router.choice_bias += torch.tensor([0.0, 0.0, 0.3, -0.3])
    after = router(h)
    assert not torch.equal(before.experts, after.experts)
    assert torch.equal(before.scores, after.scores)
    same = (before.experts.sort().values == after.experts.sort().values).all(-1)
    assert same.any()
    for routing in (before, after):
        kept = routing.scores.gather(-1, routing.experts)
        expected = math.sqrt(2) * kept / kept.sum(-1, keepdim=True)
        torch.testing.assert_close(routing.weights, expected)


def test_the_choice_is_of_the_largest_biased_scores():
    router = make_router(num_experts=8, top_k=3)
    router.choice_bias += torch.linspace(-0.2, 0.2, 8)
    routing = router(stream())
    ranked = routing.scores + router.choice_bias
    kept = ranked.gather(-1, routing.experts).amin(-1)
    left = ranked.scatter(-1, routing.experts, -math.inf).amax(-1)
    assert (kept >= left).all()


@pytest.mark.parametrize("score_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_are_scores_scaled_or_normalised(score_func, normalize):
    router = make_router(
        num_experts=4,
        score_func=score_func,
        norm_topk_prob=normalize,
        balance="none",
        routed_scaling_factor=2.5,
    )
    routing = router(stream())
    if normalize:
        torch.testing.assert_close(routing.weights.sum(-1), torch.full((2, 20), 2.5))
    else:
        expected = 2.5 * routing.scores.gather(-1, routing.experts)
        torch.testing.assert_close(routing.weights, expected)
    if score_func == "softmax":
        torch.testing.assert_close(routing.scores.sum(-1), torch.ones(2, 20))


def test_autocast_leaves_the_router_in_float32():
    router = make_router()
    h = stream()
    exact = router(h)
    with torch.autocast("cpu", torch.bfloat16):
        found = router(h)
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, exact.logits)


def test_jitter_is_a_factor_of_the_rows_own_generator():
    router = make_router(jitter_noise=0.2)
    h = stream(batch=3)
    copy = h.clone()

    def generators(rows):
        return [torch.Generator().manual_seed(row) for row in rows]

    noisy = router(h, generators([5, 6, 7])).logits
    assert torch.equal(h, copy)
    assert torch.equal(router(h[1:2], generators([6])).logits, noisy[1:2])
    assert not torch.equal(router(h).logits, noisy)
    noise = router._jitter(h, generators([5, 6, 7]))
    assert noise.min() >= 0.8
    assert noise.max() <= 1.2
    assert noise.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.05)


# -- the bias rule ------------------------------------------------------------------------------


def test_the_bias_moves_by_hand_computed_steps():
    # n = [6, 2, 2, 2], mean 3: e = [-1, 1, 1, 1], mean(e) = 1/2, times 0.1.
    router = make_router(num_experts=4)
    router.update_bias(torch.tensor([6, 2, 2, 2]), 0.1)
    expected = torch.tensor([-0.15, 0.05, 0.05, 0.05])
    torch.testing.assert_close(router.choice_bias, expected)


def test_even_loads_leave_the_bias_at_rest():
    router = make_router(num_experts=4)
    router.update_bias(torch.tensor([3, 3, 3, 3]), 0.1)
    assert not router.choice_bias.any()


def test_counts_past_float32_still_have_the_right_sign():
    router = make_router(num_experts=2)
    big = 2**40
    router.update_bias(torch.tensor([big + 1, big - 1]), 0.1)
    torch.testing.assert_close(router.choice_bias, torch.tensor([-0.1, 0.1]))


def test_the_bias_has_no_gradient_and_is_stored():
    router = make_router()
    assert "choice_bias" in router.state_dict()
    assert "loads" not in router.state_dict()
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    router(stream()).weights[..., 0].sum().backward()
    assert router.choice_bias.grad is None
    assert router.weight.grad.abs().max() > 0


# -- losses and metrics -------------------------------------------------------------------------


def test_uniform_routing_has_losses_of_one_and_ln_e_squared():
    experts = torch.arange(8).repeat(5)[:40].reshape(2, 10, 2)
    routing = routing_of(torch.zeros(2, 10, 8), experts)
    assert float(balance_loss(routing)) == pytest.approx(1)
    assert float(sequence_loss(routing)) == pytest.approx(1)
    assert float(z_loss(routing)) == pytest.approx(math.log(8) ** 2)


def test_all_tokens_on_one_expert_cost_e():
    logits = torch.full((2, 10, 8), -1e4)
    logits[..., 3] = 0
    routing = routing_of(logits, torch.full((2, 10, 1), 3))
    assert float(balance_loss(routing)) == pytest.approx(8)
    assert float(sequence_loss(routing)) == pytest.approx(8)


def test_losses_have_hand_computed_values():
    # E = 2, k = 1, two sequences of two tokens, probability of expert 0: .9, .8 | .6, .3.
    probs = torch.tensor([[0.9, 0.8], [0.6, 0.3]])
    logits = torch.stack([probs, 1 - probs], -1).log()
    routing = routing_of(logits, (probs < 0.5).long()[..., None])
    # f = (3/4, 1/4), P = (.65, .35): 2 (.4875 + .0875).
    assert float(balance_loss(routing)) == pytest.approx(1.15)
    # First f = (1, 0), P = (.85, .15): 1.7; second f = (1/2, 1/2): 1.
    assert float(sequence_loss(routing)) == pytest.approx(1.35)
    assert float(z_loss(routing)) == pytest.approx(0, abs=1e-12)


def test_the_sequence_loss_ignores_the_bias():
    router = make_router(num_experts=8)
    before = sequence_loss(router(stream()))
    router.choice_bias += torch.linspace(-1, 1, 8)
    assert torch.equal(sequence_loss(router(stream())), before)


def test_sigmoid_scores_are_divided_by_their_sum_before_they_are_balanced():
    router = make_router(num_experts=8, routed_scaling_factor=3.0)
    routing = router(stream())
    halved = routing._replace(scores=routing.scores / 2)
    torch.testing.assert_close(balance_loss(halved), balance_loss(routing))
    torch.testing.assert_close(sequence_loss(halved), sequence_loss(routing))


@pytest.mark.parametrize("loss", [balance_loss, sequence_loss], ids=lambda loss: loss.__name__)
def test_balance_losses_teach_the_scores(loss):
    """Which expert was chosen has no gradient; the scores behind the shares have the sum's."""
    routing = make_router(num_experts=8)(stream())
    scores = routing.scores.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(routing._replace(scores=s)), (scores,))


def test_metrics_have_hand_computed_values():
    experts = torch.tensor([0, 0, 0, 1, 1, 2]).reshape(1, 6, 1)
    routing = routing_of(torch.zeros(1, 6, 4), experts)
    found = load_metrics(routing.counts) | score_metrics(routing)
    assert float(found["max_vio"]) == pytest.approx(1)  # 3 tokens, 1.5 in the mean
    assert float(found["min_load"]) == 0
    assert int(found["dead_experts"]) == 1
    assert float(found["router_entropy"]) == pytest.approx(math.log(4))
    assert float(found["max_score"]) == pytest.approx(0.25)
