"""The fused head loss against its reference: values, gradients, memory laws and refusals.

Shapes: N tokens, D model_dim, V vocabulary.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from head_cases import (
    assert_same,
    make,
    several,
    several_found,
    several_reference,
    values_and_gradients,
)
from torch import Tensor

from nanozoo_core.ops import linear_cross_entropy as module
from nanozoo_core.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    multi_target_cross_entropy,
)

OPTIONS = [
    pytest.param(dict(zip(("with_bias", "with_token_weight", "softcap"), values, strict=True)))
    for values in itertools.product((False, True), (False, True), (None, 3.0))
]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("num_targets", [1, 2, 4])
def test_several_targets_equal_one_head_each(num_targets: int, softcap: float | None) -> None:
    args = several(37, 8, 19, num_targets)
    found = several_found(args, softcap, chunk_size=10)
    assert_same(found, several_reference(args, softcap), 1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_reference_in_float64(options: dict, reduction: str) -> None:
    softcap = options["softcap"]
    args = make(
        65,
        6,
        33,
        with_bias=options["with_bias"],
        **{"with_token_weight": options["with_token_weight"]},
    )
    both = {"softcap": softcap, "reduction": reduction}
    expected = values_and_gradients(linear_cross_entropy_reference, args, **both)
    found = values_and_gradients(linear_cross_entropy, args, chunk_size=16, **both)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS)
def test_unnormalised_form_equals_reference_in_float64(options: dict, reduction: str) -> None:
    made = {name: options[name] for name in ("with_bias", "with_token_weight")}
    args = make(65, 3, 33, **made)
    both = {"softcap": options["softcap"], "normalised": False, "reduction": reduction}
    expected = values_and_gradients(linear_cross_entropy_reference, args, **both)
    found = values_and_gradients(linear_cross_entropy, args, chunk_size=16, **both)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 1000])
def test_unnormalised_form_equals_reference_in_float32(num_tokens: int) -> None:
    args = make(num_tokens, 4, 130, with_bias=True, dtype=torch.float32)
    expected = values_and_gradients(linear_cross_entropy_reference, args, normalised=False)
    found = values_and_gradients(linear_cross_entropy, args, normalised=False, chunk_size=64)
    assert_same(found, expected, 1e-5)


def test_unnormalised_loss_is_a_sum_over_the_measure() -> None:
    """sum_y u_y - 1 - log u_target, written out, and its gradient in the logits u - [target]."""
    args = make(9, 3, 7)
    logits = (args["x"] @ args["weight"].T).detach().requires_grad_()
    u = logits.exp() / 7
    chosen = u.gather(1, args["targets"][:, None])[:, 0]
    losses = u.sum(1) - 1 - chosen.log()
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    found = values_and_gradients(
        linear_cross_entropy, args, normalised=False, reduction="none", chunk_size=4
    )
    assert_same({"": found["output"]}, {"": losses.detach()}, 1e-12)
    target = torch.nn.functional.one_hot(args["targets"], 7)
    assert_same({"": slope}, {"": (u - target).detach()}, 1e-12)


def test_unnormalised_loss_is_the_normalised_one_plus_a_penalty_on_the_mass() -> None:
    args = make(50, 4, 9, with_bias=True)
    options = {"bias": args["bias"], "reduction": "none"}
    plain = (args["x"], args["weight"], args["targets"])
    loose = linear_cross_entropy(*plain, **options, normalised=False)
    tight = linear_cross_entropy(*plain, **options)
    logits = torch.nn.functional.linear(args["x"], args["weight"], args["bias"])
    mass = logits.exp().mean(1)
    penalty = mass - 1 - mass.log()
    assert_same({"": (loose - tight).detach()}, {"": penalty.detach()}, 1e-10)
    assert bool((loose > tight).all())
    zero = torch.zeros(9, 4, dtype=torch.float64)
    even = linear_cross_entropy(args["x"], zero, args["targets"], normalised=False)
    assert float(even.detach()) == pytest.approx(math.log(9), rel=1e-12)


@pytest.mark.parametrize("shift", [-1000.0, -90.0, 90.0, 1000.0])
def test_unnormalised_loss_of_an_extreme_mass_is_finite_and_pulls_it_back(shift: float) -> None:
    """e^90 is no float32, and the loss must stay above the normalised one."""
    args = make(8, 4, 10, with_bias=True, dtype=torch.float32)
    args["bias"] = (args["bias"].detach() + shift).requires_grad_()
    found = values_and_gradients(linear_cross_entropy, args, normalised=False, reduction="sum")
    assert all(bool(value.isfinite().all()) for value in found.values())
    tight = values_and_gradients(linear_cross_entropy, args, reduction="sum")
    assert float(found["output"]) > float(tight["output"])
    assert float(found["bias"].sum()) * shift > 0


def test_unnormalised_gradcheck() -> None:
    args = make(5, 3, 4, with_bias=True)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            x, weight, args["targets"], bias=bias, softcap=2.0, normalised=False, chunk_size=2
        )

    assert torch.autograd.gradcheck(loss, (args["x"], args["weight"], args["bias"]))


@pytest.mark.parametrize("chunk_size", [None, 1, 64, 5000])
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 1000])
def test_equals_reference_in_float32(num_tokens: int, chunk_size: int | None) -> None:
    # One token's mean does not depend on its weight: a gradient of rounding errors alone.
    weighted = num_tokens > 1
    args = make(
        num_tokens, 16, 130, with_bias=True, with_token_weight=weighted, dtype=torch.float32
    )
    expected = values_and_gradients(linear_cross_entropy_reference, args, softcap=15.0)
    found = values_and_gradients(linear_cross_entropy, args, softcap=15.0, chunk_size=chunk_size)
    assert_same(found, expected, 1e-5)


def test_blocks_of_rows_within_a_chunk_change_nothing() -> None:
    # 2**19 // 70000 = 7 rows per block, and 20 is no multiple of 7.
    args = make(20, 4, 70000)
    expected = values_and_gradients(linear_cross_entropy_reference, args)
    found = values_and_gradients(linear_cross_entropy, args, chunk_size=20)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction: str) -> None:
    args = make(5, 3, 4, with_bias=True, with_token_weight=True)
    x, weight, bias, token_weight = (args[n] for n in ("x", "weight", "bias", "token_weight"))

    def loss(x: Tensor, weight: Tensor, bias: Tensor, token_weight: Tensor) -> Tensor:
        return linear_cross_entropy(
            x,
            weight,
            args["targets"],
            bias=bias,
            token_weight=token_weight,
            softcap=2.0,
            reduction=reduction,
            chunk_size=2,
        )

    assert torch.autograd.gradcheck(loss, (x, weight, bias, token_weight.detach().add(0.1)))


def test_uniform_logits_give_ln_v() -> None:
    loss = linear_cross_entropy(torch.randn(9, 4), torch.zeros(50, 4), torch.arange(9))
    assert float(loss) == pytest.approx(math.log(50), rel=1e-6)


@pytest.mark.parametrize("scale", [1e3, 1e-30])
def test_extreme_logits_stay_finite(scale: float) -> None:
    args = make(8, 4, 10, dtype=torch.float32)
    args["x"] = (args["x"].detach() * scale).requires_grad_()
    expected = values_and_gradients(linear_cross_entropy_reference, args)
    assert_same(values_and_gradients(linear_cross_entropy, args), expected, 1e-5)


def test_mean_weighs_tokens_and_divides_by_their_weight() -> None:
    args = make(12, 4, 9, with_token_weight=True)
    losses = linear_cross_entropy(args["x"], args["weight"], args["targets"], reduction="none")
    w = args["token_weight"]
    expected = float(((w * losses).sum() / w.sum()).detach())
    assert float(linear_cross_entropy(**args).detach()) == pytest.approx(expected, rel=1e-12)


def test_tokens_of_weight_zero_get_no_gradient() -> None:
    args = make(12, 4, 9, with_token_weight=True)
    grads = values_and_gradients(linear_cross_entropy, args)
    silent = args["token_weight"] == 0
    assert silent.any()
    assert not silent.all()
    assert (grads["x"][silent] == 0).all()
    assert (grads["x"][~silent] != 0).any(1).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num_tokens", [0, 3])
def test_no_weight_at_all_gives_zero_loss_and_gradient(num_tokens: int, reduction: str) -> None:
    args = make(num_tokens, 4, 9, with_bias=True) | {"token_weight": torch.zeros(num_tokens)}
    grads = values_and_gradients(linear_cross_entropy, args, reduction=reduction)
    assert all((value == 0).all() for value in grads.values())
    assert grads["weight"].shape == (9, 4)


def test_empty_input_has_no_losses() -> None:
    args = make(0, 4, 9)
    assert linear_cross_entropy(**args, reduction="none").shape == (0,)


def test_arguments_need_not_be_contiguous_leaves() -> None:
    wide = torch.randn(8, 40, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(12) % 30

    def loss(function: Callable[..., Tensor]) -> Tensor:
        x = wide[:, :24].reshape(16, 12).T[:, 2:10]  # (12, 8)
        weight = 0.5 * wide[:, 5:35].T  # (30, 8)
        return function(x, weight, targets)

    (expected,) = torch.autograd.grad(loss(linear_cross_entropy_reference), wide)
    (found,) = torch.autograd.grad(loss(linear_cross_entropy), wide)
    assert_same({"": found}, {"": expected}, 1e-10)


def test_bias_of_minus_infinity_removes_a_row() -> None:
    args = make(12, 4, 9)
    bias = torch.zeros(12, dtype=torch.float64)
    bias[9:] = -torch.inf
    rest = torch.randn(3, 4, dtype=torch.float64)

    def padded(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(x, torch.cat([weight, rest]), targets, bias=bias)

    found = values_and_gradients(padded, args)
    assert_same(found, values_and_gradients(linear_cross_entropy, args), 1e-10)


def test_tied_weight_sums_both_gradients() -> None:
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    tokens, targets = torch.arange(6), torch.arange(6) + 1

    def loss(function: Callable[..., Tensor]) -> Tensor:
        return function(torch.nn.functional.embedding(tokens, table), table, targets)

    (expected,) = torch.autograd.grad(loss(linear_cross_entropy_reference), table)
    (found,) = torch.autograd.grad(loss(linear_cross_entropy), table)
    assert_same({"": found}, {"": expected}, 1e-10)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_frozen_arguments_get_no_gradient(frozen: str) -> None:
    args = make(12, 4, 9, with_bias=True)
    args[frozen] = args[frozen].detach()
    expected = values_and_gradients(linear_cross_entropy_reference, args)
    assert_same(values_and_gradients(linear_cross_entropy, args), expected, 1e-10)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_retained_graph_gives_the_same_gradient_again(reduction: str) -> None:
    args = make(12, 4, 9)
    loss = linear_cross_entropy(**args, reduction=reduction).sum()
    first = torch.autograd.grad(2 * loss, args["weight"], retain_graph=True)[0]
    second = torch.autograd.grad(2 * loss, args["weight"])[0]
    assert_same({"": first}, {"": second}, 1e-10)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivative_is_refused(reduction: str) -> None:
    args = make(12, 4, 9)
    loss = linear_cross_entropy(**args, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="linear_cross_entropy has no second derivative"):
        torch.autograd.grad(loss, args["x"], create_graph=True)


def test_without_gradient_no_weight_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    args = make(12, 4, 9)
    expected = linear_cross_entropy_reference(**args).detach()
    monkeypatch.setattr(Tensor, "addmm_", None)
    monkeypatch.setattr(Tensor, "scatter_add_", None)
    with torch.no_grad():
        found = linear_cross_entropy(**args, chunk_size=5)
    assert_same({"": found}, {"": expected}, 1e-10)


def test_bfloat16_autocast_keeps_loss_and_weight_gradient_in_float32() -> None:
    args = make(200, 32, 50, with_bias=True, dtype=torch.float32)
    expected = values_and_gradients(linear_cross_entropy_reference, args)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(linear_cross_entropy, args, chunk_size=64)
    # Each product's operands are rounded once to 8 bits (relative error 2^-9 = 0.002); a logit
    # of spread sqrt(32) moves by up to 0.03, and probabilities and gradients by that share.
    assert_same(found, expected, 0.03)
    assert not torch.equal(found["weight"], expected["weight"])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("num_tokens", [2, 64, 65, 200])
def test_bfloat16_rounds_rows_up_to_64_and_those_have_no_part(
    num_tokens: int, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU's library compiles a product for each new number of rows."""
    rows: list[int] = []
    plain = module.softmax_step_torch

    def step(logits: Tensor, *given: Any, **named: Any) -> Any:
        rows.append(logits.shape[0])
        return plain(logits, *given, **named)

    monkeypatch.setattr(module, "softmax_step_torch", step)
    args = make(num_tokens, 32, 50, with_bias=True, with_token_weight=True, dtype=torch.float32)
    expected = values_and_gradients(linear_cross_entropy_reference, args, reduction=reduction)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(linear_cross_entropy, args, reduction=reduction)
    assert_same(found, expected, 0.03)  # as above
    assert sum(rows) % (math.ceil(num_tokens / 64) * 64) == 0
    assert all(number % 64 == 0 for number in rows)


def test_bfloat16_arguments_give_a_float32_loss_and_their_own_gradients() -> None:
    args = make(65, 16, 40, with_bias=True, dtype=torch.bfloat16)
    exact = {
        n: a.detach().float().requires_grad_(a.requires_grad) if a.is_floating_point() else a
        for n, a in args.items()
    }
    expected = values_and_gradients(linear_cross_entropy_reference, exact)
    found = values_and_gradients(linear_cross_entropy, args, chunk_size=16)
    assert found["output"].dtype == torch.float32
    assert all(found[name].dtype == torch.bfloat16 for name in ("x", "weight", "bias"))
    assert_same({n: v.float() for n, v in found.items()}, expected, 0.03)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_float16_loses_no_gradient_before_the_loss_is_scaled(reduction: str) -> None:
    """Of a mean over many tokens the features' gradients are below 6e-8, where float16 ends, and
    of a sum over tokens with the same target the weight's are above 65504."""
    args = make(4096, 32, 50, with_bias=True, dtype=torch.float32)
    args["x"] = (100 * args["x"].detach() + 100).requires_grad_()
    args["weight"] = (1e-3 * args["weight"].detach()).requires_grad_()
    args["targets"].fill_(7)
    scale = 2.0**16 if reduction == "mean" else 1.0
    both = {"reduction": reduction}

    def loss(function: Callable[..., Tensor], **args: Tensor) -> Tensor:
        args["x"] = args["x"].to(dtype)
        return scale * function(**args, **both)

    dtype = torch.float32
    expected = values_and_gradients(partial(loss, linear_cross_entropy_reference), args)
    dtype = torch.float16
    with torch.autocast("cpu", torch.float16):
        found = values_and_gradients(partial(loss, linear_cross_entropy), args)
    assert_same(found, expected, 0.004)  # operands rounded to 11 bits, logits of about 3


def test_float16_unnormalised_gradients_do_not_leave_its_range() -> None:
    """The mass of 4096 logits of about -4, from which their gradient is divided, is 2e5."""
    args = make(64, 8, 4096, with_bias=True, dtype=torch.float32)
    args["bias"] = (0.1 * args["bias"].detach() - 4).requires_grad_()
    args["weight"] = (0.1 * args["weight"].detach()).requires_grad_()
    expected = values_and_gradients(linear_cross_entropy_reference, args, normalised=False)
    with torch.autocast("cpu", torch.float16):
        found = values_and_gradients(linear_cross_entropy, args, normalised=False)
    assert_same(found, expected, 0.004)


@pytest.mark.slow
def test_compiled_caller_gets_the_same_gradients() -> None:
    args = make(12, 4, 9)

    def loss(**args: Tensor) -> Tensor:
        return 2 * linear_cross_entropy(**(args | {"x": args["x"].sin()}))

    expected = values_and_gradients(loss, args)
    found = values_and_gradients(torch.compile(loss, backend="aot_eager"), args)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(9, 5)}, r"\(N, D\) and \(V, D\)"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"targets must be \(2,\) int64"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, r"targets must be \(2,\) int64"),
        ({"bias": torch.zeros(4)}, r"bias must be \(9,\)"),
        ({"token_weight": torch.zeros(4)}, r"token_weight must be \(2,\)"),
        ({"softcap": 0.0}, r"softcap=0.0 must be positive"),
        ({"reduction": "avg"}, r"reduction='avg' must be 'mean'"),
        ({"chunk_size": 0}, r"chunk_size=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    args = {"x": torch.zeros(2, 4), "weight": torch.zeros(9, 4)} | {
        "targets": torch.zeros(2, dtype=torch.int64)
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**(args | changes))


@pytest.mark.parametrize("target", [-100, -1, 9])
def test_target_outside_the_vocabulary_is_refused(target: int) -> None:
    with pytest.raises(IndexError, match=r"the vocabulary over 0 \.\. 8"):
        linear_cross_entropy(torch.zeros(2, 4), torch.zeros(9, 4), torch.tensor([0, target]))


def test_several_targets_are_refused_without_a_weight_each() -> None:
    args = several(4, 8, 9, 2)
    with pytest.raises(ValueError, match=r"token_weight \(4, 1\) must both be"):
        multi_target_cross_entropy(**args | {"token_weight": args["token_weight"][:, :1]})
    with pytest.raises(IndexError, match=r"the vocabulary over 0 \.\. 8"):
        multi_target_cross_entropy(**args | {"targets": args["targets"] + 9})
