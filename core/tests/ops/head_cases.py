"""Arguments of the head loss, and what two forms of it give for them.

Shapes: N tokens, D model_dim, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nanozoo_core.ops.linear_cross_entropy import (
    linear_cross_entropy_reference,
    multi_target_cross_entropy,
)


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
