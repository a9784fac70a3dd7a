"""Every implementation of the experts against the definition: all tokens through all experts."""

import pytest
import torch

from nanozoo_core.errors import ConfigError
from nanozoo_moe import experts as experts_module
from nanozoo_moe.experts import count_tokens, dispatch, mix_experts, mix_experts_reference

DIM, HIDDEN = 16, 24
IMPLEMENTATIONS = ["auto", "grouped_mm", "loop"]


def make_inputs(num_tokens, num_experts=6, top_k=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    h, up = normal(num_tokens, DIM), normal(num_experts, HIDDEN, DIM) / DIM**0.5
    down, weights = normal(num_experts, DIM, HIDDEN) / HIDDEN**0.5, normal(num_tokens, top_k).abs()
    experts = normal(num_tokens, num_experts).topk(top_k).indices
    leaves = [x.to(dtype).requires_grad_() for x in (h, up, down, weights)]
    return leaves[0], leaves[1], leaves[2], experts, leaves[3]


def values_and_gradients(function, inputs, *arguments):
    h, up, down, experts, weights = inputs
    y = function(h, up, down, experts, weights, *arguments)
    generator = torch.Generator().manual_seed(9)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, (h, up, down, weights), grad)]


def assert_near(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        error = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)
        assert error < tolerance


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 1000])
def test_values_and_gradients_are_those_of_the_definition(num_tokens, implementation):
    inputs = make_inputs(num_tokens)
    found = values_and_gradients(mix_experts, inputs, implementation)
    assert_near(found, values_and_gradients(mix_experts_reference, inputs), 1e-5)


@pytest.mark.parametrize("top_k", [1, 6])
def test_any_number_of_experts_per_token_serves(top_k):
    inputs = make_inputs(50, top_k=top_k)
    found = values_and_gradients(mix_experts, inputs)
    assert_near(found, values_and_gradients(mix_experts_reference, inputs), 1e-5)


def test_bfloat16_is_within_its_rounding():
    # Two products in a row, each rounded to 8 bits (relative 2^-9 per number, independent).
    inputs = make_inputs(200, dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    exact[3] = inputs[3]
    found = values_and_gradients(mix_experts, inputs, "grouped_mm")
    assert_near(found, values_and_gradients(mix_experts_reference, exact), 5e-3)


def test_gradients_are_those_of_finite_differences():
    h, up, down, experts, weights = make_inputs(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: mix_experts(x[0], x[1], x[2], experts, x[3]), (h, up, down, weights)
    )


def test_autocast_sets_the_precision():
    h, up, down, experts, weights = make_inputs(64)
    with torch.autocast("cpu", torch.bfloat16):
        y = mix_experts(h, up, down, experts, weights)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert up.grad.dtype == torch.float32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_expert_may_take_every_token_and_the_idle_have_zero_gradients(implementation):
    h, up, down, experts, weights = make_inputs(40, top_k=1)
    experts = torch.full_like(experts, 3)
    inputs = (h, up, down, experts, weights)
    found = values_and_gradients(mix_experts, inputs, implementation)
    assert_near(found, values_and_gradients(mix_experts_reference, inputs), 1e-5)
    idle = [0, 1, 2, 4, 5]
    for gradient in found[2:4]:
        assert torch.equal(gradient[idle], torch.zeros_like(gradient[idle]))
        assert gradient[3].abs().max() > 0


def test_no_choice_is_dropped():
    experts = make_inputs(1000)[3]
    plan = dispatch(experts, 6)
    assert plan.counts.sum() == 2000
    assert plan.ends[-1] == 2000
    assert torch.equal(plan.places.flatten().sort().values, torch.arange(2000))
    assert torch.equal(count_tokens(experts, 6), torch.bincount(experts.flatten(), minlength=6))


def test_rows_are_grouped_by_expert_in_the_order_of_tokens():
    experts = torch.tensor([[2, 0], [0, 1], [2, 1]])
    plan = dispatch(experts, 4)
    assert plan.tokens.tolist() == [0, 1, 1, 2, 0, 2]
    assert plan.ends.tolist() == [2, 4, 6, 6]
    assert plan.places.tolist() == [[4, 0], [1, 2], [5, 3]]


def test_groups_are_rounded_up_and_no_choice_moves_into_another():
    experts = torch.tensor([[2, 0], [0, 1], [2, 1]])
    plan = dispatch(experts, 4, multiple=3)
    assert plan.ends.tolist() == [3, 6, 9, 9]
    assert plan.counts.tolist() == [2, 2, 2, 0]
    assert plan.places.tolist() == [[6, 0], [1, 3], [7, 4]]
    assert plan.tokens[plan.places].tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("implementation", ["grouped_mm", "loop"])
def test_rows_that_round_up_have_no_part(implementation, monkeypatch):
    """The first token, which they copy, has a gradient of its own to spoil."""
    inputs = make_inputs(43)
    expected = values_and_gradients(mix_experts_reference, inputs)
    monkeypatch.setattr(experts_module, "row_multiple", lambda device, dtype: 16)
    assert_near(values_and_gradients(mix_experts, inputs, implementation), expected, 1e-5)


def test_an_expanded_gradient_is_taken():
    h, up, down, experts, weights = make_inputs(30)
    mix_experts(h, up, down, experts, weights, "grouped_mm").sum().backward()
    again = make_inputs(30)
    mix_experts_reference(*again).sum().backward()
    assert_near([h.grad, up.grad], [again[0].grad, again[1].grad], 1e-5)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_few_tokens_read_the_chosen_experts_alone(num_tokens, monkeypatch):
    inputs = make_inputs(num_tokens)
    expected = mix_experts_reference(*inputs)
    monkeypatch.setattr("nanozoo_moe.experts._MixExperts", None)
    with torch.no_grad():
        torch.testing.assert_close(mix_experts(*inputs), expected, rtol=1e-5, atol=1e-6)


def test_rows_that_grouped_mm_cannot_read_take_the_loop():
    h, up, down, experts, weights = make_inputs(64)
    odd = (h[:, :15].contiguous(), up[..., :15].contiguous(), down[:, :15].contiguous())
    y = mix_experts(*odd, experts, weights)
    expected = mix_experts_reference(*odd, experts, weights)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="experts_impl=grouped_mm needs rows of a multiple of 16"):
        mix_experts(*odd, experts, weights, "grouped_mm")


def test_grouped_mm_refuses_float64_by_name():
    inputs = make_inputs(64, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"does not multiply torch.float64 on cpu; use auto"):
        mix_experts(*inputs, "grouped_mm")


def test_without_grouped_mm_in_torch_auto_takes_the_loop(monkeypatch):
    monkeypatch.setattr("nanozoo_moe.experts._grouped_mm", None)
    inputs = make_inputs(64)
    expected = mix_experts_reference(*inputs)
    torch.testing.assert_close(mix_experts(*inputs), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="experts_impl=grouped_mm is not in torch"):
        mix_experts(*inputs, "grouped_mm")
