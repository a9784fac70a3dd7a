"""Laws of next-token models that several packages check on models of their own.

B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.sources import batch_of

Perturbed = TypeVar("Perturbed", bound=nn.Module)


def perturb(model: Perturbed, scale: float = 0.1) -> Perturbed:
    """The model, every parameter moved so far that every part of the forward pass matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def assert_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, and the same bits under each."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def assert_is_its_equations(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    batch: Batch,
    equations: Callable[[dict[str, Tensor], Tensor], Tensor],
) -> None:
    """A float64 model and an independent reading of its paper have the same logits, the same loss,
    mean cross-entropy over all positions, and the same gradient of every parameter.

    Args:
        equations: from the weights by name and the tokens of one window (T,), the logits (T, V).
    """
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    expected = torch.stack([equations(weights, row) for row in batch.inputs])  # (B, T, V)
    torch.testing.assert_close(model(batch.inputs), expected, rtol=1e-9, atol=1e-9)
    scores = expected.log_softmax(-1)
    rows = enumerate(batch.targets.tolist())
    nats = [-scores[b, t, target] for b, row in rows for t, target in enumerate(row)]
    loss = torch.stack(nats).sum() / len(nats)
    found = adapter.training_loss(model, batch, Step(number=0, progress=0.0, seed=0)).value
    torch.testing.assert_close(found.double(), loss, rtol=1e-9, atol=0)
    found.backward()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-8, atol=1e-10, msg=partial("{}: {}".format, name)
        )


def equations_test(
    model: str,
    ways: Mapping[str, dict[str, Any]],
    equations: Callable[[Any, dict[str, Tensor], Tensor], Tensor],
    *,
    length: int,
) -> Callable[..., None]:
    """A test of every way that a model may be set up, to be bound to a name that begins with
    `test_`: in float64, from weights away from their start.

    Args:
        ways: settings by a name for them; 11 tokens of vocabulary among them.
        equations: from the config, the weights by name and the tokens of a window of `length`, the
            logits (T, V).
    """

    @pytest.mark.parametrize("way", ways.values(), ids=ways)
    def is_its_equations(way: dict[str, Any]) -> None:
        adapter, config = load_adapter(model), model_config(model, way)
        torch.manual_seed(0)
        built = adapter.make_model(config).double()
        perturb(built, 0.3)
        tokens = torch.randint(11, (2, length + 1), generator=torch.Generator().manual_seed(1))
        assert_is_its_equations(adapter, built, batch_of(tokens), partial(equations, config))

    return is_its_equations


def assert_causal(model: nn.Module, tokens: Tensor, place: int, vocab_size: int) -> None:
    """A change at `place` of tokens (B, T) leaves all logits before it as they are, to the bit."""
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place:], after[:, place:])


@torch.no_grad()
def assert_document_is_scored_as_if_alone(
    adapter: DefaultModelAdapter, model: nn.Module, tokens: Tensor, cut: int
) -> None:
    """A document that begins at place `cut` of windows (B, T + 1) has the likelihoods of a window
    that begins there: no token too many is before it, and none too few."""
    places = torch.arange(tokens.shape[1])
    documents = (places >= cut).int().expand_as(tokens)
    scored = (places[:-1] >= cut).expand(len(tokens), -1)
    batch = replace(batch_of(tokens), documents=documents, scored=scored)
    together = adapter.nll(model.eval(), batch, Draw(0))
    alone = adapter.nll(model, batch_of(tokens[:, cut:]), Draw(0))
    assert together.num_tokens == alone.num_tokens
    torch.testing.assert_close(together.nats, alone.nats, rtol=1e-5, atol=0)


def assert_padding_changes_nothing(
    plain: nn.Module, padded: nn.Module, adapter: DefaultModelAdapter, batch: Batch
) -> None:
    """With the weights of `plain`, and any numbers in its further rows, `padded` gives the same
    logits (B, T, V) and likelihoods."""
    state = dict(plain.state_dict())
    for name, ours in padded.state_dict().items():
        rows = len(ours) - len(state[name]) if ours.dim() == 2 else 0
        if rows:
            state[name] = torch.cat([state[name], state[name].new_full((rows, ours.shape[1]), 5.0)])
    padded.load_state_dict(state)
    expected = plain(batch.inputs)
    assert padded(batch.inputs).shape == expected.shape
    torch.testing.assert_close(padded(batch.inputs), expected, rtol=1e-6, atol=1e-6)
    nats = [adapter.nll(model, batch, Draw(0)).nats for model in (plain, padded)]
    torch.testing.assert_close(nats[1], nats[0], rtol=1e-6, atol=0)


def bits_of_period_two(model: nn.Module, *, lr: float, num_steps: int) -> float:
    """Bits per token, after training by AdamW, of the text 0 3 0 3 ...; for a vocabulary of 4 and
    windows of 16 tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    tokens = torch.tensor([[0, 3] * 9, [3, 0] * 9])[:, :17]
    for _ in range(num_steps):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item() / math.log(2)


def assert_dropped(found: Tensor, whole: Tensor, prob: float) -> None:
    """`found` is `whole` with about a share `prob` of its numbers at zero and the others divided by
    1 - prob, as dropout leaves them in training."""
    gone = found.abs() < 1e-9
    error = math.sqrt(prob * (1 - prob) / found.numel())
    assert abs(float(gone.double().mean()) - prob) < 5 * error
    torch.testing.assert_close(found[~gone], whole[~gone] / (1 - prob), rtol=1e-7, atol=1e-9)


def assert_close_in_size(
    found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float
) -> None:
    """Root mean square of each difference, relative to that of the value. The floor of 0.1 serves
    gradients that are zero, as that of a lone key's scores."""
    for number, (one, two) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == two.shape, number
        assert one.isfinite().all(), number
        if two.numel() == 0:
            continue
        error = (one.double() - two.double()).square().mean().sqrt()
        scale = two.double().square().mean().sqrt().clamp(min=0.1)
        assert error <= tolerance * scale, f"tensor {number}: {error / scale:.1e}"


OTHER_NAMES = {
    "n_layers": "num_layers",
    "d_model": "model_dim",
    "n_ctx": "seq_len",
    "n_heads": "num_heads",
}
"""Names of settings in other code, and ours."""


def assert_other_names_are_refused_with_ours(model: str, others: Mapping[str, str]) -> None:
    """For the settings of OTHER_NAMES and those of `others`."""
    for old, new in {**OTHER_NAMES, **others}.items():
        with pytest.raises(ConfigError, match=rf"model_cfg\.{old} is called model_cfg\.{new}"):
            model_config(model, {old: 4})
