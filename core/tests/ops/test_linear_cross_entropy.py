"""The fused head loss against its reference: values, gradients, memory laws and refusals.

Shapes: N tokens, D model_dim, V vocabulary.
"""

import importlib.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanozoo_core.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    multi_target_cross_entropy,
)

OPTIONS = [
    pytest.param(dict(zip(("with_bias", "with_token_weight", "softcap"), values, strict=True)))
    for values in itertools.product((False, True), (False, True), (None, 3.0))
]


def make(
    num_tokens: int,
    dim: int,
    vocab_size: int,
    *,
    with_bias: bool = False,
    with_token_weight: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments whose tensors require gradients; about a third of the token weights are zero."""
    g = torch.Generator().manual_seed(seed)
    args = {
        "x": torch.randn(num_tokens, dim, generator=g, dtype=dtype).requires_grad_(),
        "weight": torch.randn(vocab_size, dim, generator=g, dtype=dtype).requires_grad_(),
        "targets": torch.randint(vocab_size, (num_tokens,), generator=g),
    }
    if with_bias:
        args["bias"] = torch.randn(vocab_size, generator=g, dtype=dtype).requires_grad_()
    if with_token_weight:
        w = torch.rand(num_tokens, generator=g, dtype=dtype)
        args["token_weight"] = (w * (w > 0.3)).requires_grad_()
    return args


def values_and_gradients(
    function: Callable[..., Tensor], args: dict[str, Tensor], **options: object
) -> dict[str, Tensor]:
    """The output, and the gradient of a random weighing of it with respect to every argument."""
    output = function(**args, **options)
    upstream = torch.rand(output.shape, generator=torch.Generator().manual_seed(7)).to(output)
    wanted = {name: arg for name, arg in args.items() if arg.requires_grad}
    grads = torch.autograd.grad((upstream * output).sum(), list(wanted.values()))
    return {"output": output.detach()} | dict(zip(wanted, grads, strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor within `tolerance` of its expected one's largest entry."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        if value.numel() > 0:
            error = float((found[name] - value).abs().max())
            assert error <= tolerance * float(value.abs().max()), (name, error)


def several(
    num_tokens: int,
    dim: int,
    vocab_size: int,
    num_targets: int,
    *,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Arguments with several targets, some twice, some weights and whole rows of them zero."""
    args = make(num_tokens, dim, vocab_size, with_bias=True, dtype=dtype)
    g = torch.Generator().manual_seed(3)
    shape = num_tokens, num_targets
    args["targets"] = torch.randint(vocab_size, shape, generator=g)
    args["targets"][::2, -1] = args["targets"][::2, 0]
    weights = torch.rand(shape, generator=g, dtype=dtype)
    weights *= weights > 0.3
    weights[::5] = 0
    return args | {"token_weight": weights}


def several_reference(args: dict[str, Tensor], softcap: float | None) -> dict[str, Tensor]:
    """One head per target, summed."""
    wanted = {name: args[name] for name in ("x", "weight", "bias")}
    columns = zip(args["targets"].unbind(1), args["token_weight"].unbind(1), strict=True)
    loss = sum(
        linear_cross_entropy_reference(
            **wanted, targets=targets, token_weight=weights, softcap=softcap, reduction="sum"
        )
        for targets, weights in columns
    )
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    return {"output": loss.detach()} | dict(zip(wanted, gradients, strict=True))


def several_found(
    args: dict[str, Tensor], softcap: float | None, **options: object
) -> dict[str, Tensor]:
    wanted = {name: args[name] for name in ("x", "weight", "bias")}
    loss, losses = multi_target_cross_entropy(**args, softcap=softcap, **options)
    weighed = (losses * args["token_weight"]).sum()
    torch.testing.assert_close(weighed, loss.detach())
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    return {"output": loss.detach()} | dict(zip(wanted, gradients, strict=True))


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


# -- the Triton twin -------------------------------------------------------------------------------

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
CUDA = torch.device("cuda")


def test_several_targets_are_refused_without_a_weight_each() -> None:
    args = several(4, 8, 9, 2)
    with pytest.raises(ValueError, match=r"token_weight \(4, 1\) must both be"):
        multi_target_cross_entropy(**args | {"token_weight": args["token_weight"][:, :1]})
    with pytest.raises(IndexError, match=r"the vocabulary over 0 \.\. 8"):
        multi_target_cross_entropy(**args | {"targets": args["targets"] + 9})


@needs_triton
def test_triton_equals_reference_in_the_interpreter() -> None:
    # The interpreter is chosen when triton is imported, and a wrong mask would kill the process.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--noconftest",
            "-k",
            "interpreted_kernel",
            __file__,
        ],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout


interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by the test above in a child process"
)


@interpreted
@pytest.mark.parametrize(
    ("num_tokens", "dim", "vocab_size", "softcap", "reduction", "normalised"),
    [
        (1, 16, 33, None, "sum", True),
        (63, 16, 130, 3.0, "none", True),
        (65, 48, 33, 3.0, "mean", True),
        (63, 4, 130, None, "none", False),
        (65, 48, 33, 3.0, "mean", False),
    ],
)
def test_interpreted_kernel_equals_reference(
    num_tokens: int,
    dim: int,
    vocab_size: int,
    softcap: float | None,
    reduction: str,
    normalised: bool,
) -> None:
    args = make(
        num_tokens, dim, vocab_size, with_bias=True, with_token_weight=True, dtype=torch.float32
    )
    options = {"softcap": softcap, "reduction": reduction, "normalised": normalised}
    expected = values_and_gradients(linear_cross_entropy_reference, args, **options)
    found = values_and_gradients(
        linear_cross_entropy, args, backend="triton", chunk_size=40, **options
    )
    assert_same(found, expected, 1e-5)


@interpreted
def test_interpreted_kernel_sweeps_a_row_in_several_blocks() -> None:
    args = make(3, 16, 4096 * 2 + 5, dtype=torch.float32)
    args["x"] = (20 * args["x"].detach()).requires_grad_()
    expected = values_and_gradients(linear_cross_entropy_reference, args)
    found = values_and_gradients(linear_cross_entropy, args, backend="triton")
    assert_same(found, expected, 1e-5)


@interpreted
def test_interpreted_kernel_takes_bfloat16() -> None:
    args = make(65, 16, 130, with_bias=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = values_and_gradients(linear_cross_entropy, args, backend="torch")
        found = values_and_gradients(linear_cross_entropy, args, backend="triton")
    # Both round the gradient of a logit, the scaled feature and the product to 8 bits, but one
    # before and one after the division by the row's norm: six roundings of 2^-9.
    assert_same(found, expected, 6 * 2**-9)


@interpreted
@pytest.mark.parametrize("shift", [-90.0, 90.0])
def test_interpreted_kernel_holds_an_extreme_mass(shift: float) -> None:
    args = make(3, 16, 130, with_bias=True, dtype=torch.float32)
    args["bias"] = (args["bias"].detach() + shift).requires_grad_()
    options = {"normalised": False, "reduction": "sum"}
    expected = values_and_gradients(linear_cross_entropy, args, backend="torch", **options)
    found = values_and_gradients(linear_cross_entropy, args, backend="triton", **options)
    # e^60 of an argument that float32 holds to 60 * 2^-24 is off by as much.
    assert_same(found, expected, 2e-5)


@interpreted
@pytest.mark.parametrize("target", [-1, 33])
def test_interpreted_kernel_marks_an_illegal_target(target: int) -> None:
    from nanozoo_core.ops.softmax_step import softmax_step_triton

    losses, _ = softmax_step_triton(
        torch.zeros(2, 64)[:, :33],
        torch.tensor([[0], [target]]),
        None,
        softcap=None,
        normalised=True,
        with_gradient=True,
    )
    assert losses[:, 0].isfinite().tolist() == [True, False]


@interpreted
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_interpreted_kernel_takes_several_targets(softcap: float | None) -> None:
    args = several(65, 16, 130, 3, dtype=torch.float32)
    expected = several_reference(args, softcap)
    assert_same(several_found(args, softcap, backend="triton", chunk_size=40), expected, 1e-5)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there")
@pytest.mark.parametrize(
    ("dtype", "normalised", "num_targets"),
    [("bf16", True, 1), ("fp32", True, 1), ("bf16", False, 1), ("bf16", True, 4)],
)
def test_kernel_compiles_for_sm_90(dtype: str, normalised: bool, num_targets: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nanozoo_core.ops.softmax_step import softmax_step_kernel

    source = ASTSource(
        softmax_step_kernel,
        signature={
            "logits": f"*{dtype}",
            "targets": "*i64",
            "parts": "*fp32",
            "losses": "*fp32",
            "vocab_size": "i32",
            "row_stride": "i32",
            "softcap": "fp32",
            "log_size": "fp32",
            "MAX_LOG_MASS": "constexpr",
            "NORMALISED": "constexpr",
            "HAS_SOFTCAP": "constexpr",
            "WITH_GRADIENT": "constexpr",
            "NUM_TARGETS": "constexpr",
            "BLOCK": "constexpr",
        },
        constexprs={
            "MAX_LOG_MASS": 60.0,
            "HAS_SOFTCAP": True,
            "NORMALISED": normalised,
            "WITH_GRADIENT": True,
            "NUM_TARGETS": num_targets,
            "BLOCK": 4096,
        },
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert "cubin" in compiled.asm
    assert compiled.metadata.num_warps == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("num_tokens", "vocab_size"), [(1, 33), (1000, 50257)])
def test_cuda_equals_reference(
    num_tokens: int, vocab_size: int, reduction: str, normalised: bool
) -> None:
    args = make(
        num_tokens, 64, vocab_size, with_bias=True, with_token_weight=True, dtype=torch.float32
    )
    args = {
        name: arg.detach().to(CUDA).requires_grad_(arg.requires_grad) for name, arg in args.items()
    }
    options = {"softcap": 15.0, "reduction": reduction, "normalised": normalised}
    expected = values_and_gradients(linear_cross_entropy_reference, args, **options)
    found = values_and_gradients(linear_cross_entropy, args, chunk_size=300, **options)
    assert_same(found, expected, 1e-5)
