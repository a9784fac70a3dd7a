"""What the scripts of core/benchmarks/peers share: forms of a training, the choice among them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.attention_form import current_form
from nanozoo_core.testing import timing

sys.path.append(str(Path(__file__).resolve().parent.parent / "core/benchmarks/peers"))
import race


def contestant(loss: Callable[[], Tensor]) -> race.Contestant:
    return race.adamw(nn.Linear(1, 1), loss)


def dtypes_in(form: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.dtype]:
    """Of a product, and of what attention is given and returns."""
    seen: dict[str, torch.dtype] = {}
    own = F.scaled_dot_product_attention

    def spy(query: Tensor, *others: Any, **named: Any) -> Tensor:
        seen["inside"] = query.dtype
        return own(query, *others, **named)

    x = torch.randn(1, 1, 4, 8)
    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", spy)
        with race.FORMS[form]():
            q = F.linear(x, torch.eye(8))
            seen["product"] = q.dtype
            y = F.scaled_dot_product_attention(q, q, q, attn_mask=torch.zeros_like(q[..., :4]))
            seen["outside"] = y.dtype
        assert F.scaled_dot_product_attention is spy
    return seen


def test_forms_differ_in_where_they_are_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    half, full = torch.bfloat16, torch.float32
    found = {form: dtypes_in(form, monkeypatch) for form in race.PEER_FORMS}
    assert found == {
        "float32": {"product": full, "inside": full, "outside": full},
        "bfloat16": {"product": half, "inside": half, "outside": half},
        "bfloat16, attention float32": {"product": half, "inside": full, "outside": half},
    }


def test_a_form_ends_where_its_loss_fails() -> None:
    own = F.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), race.FORMS["bfloat16, attention float32"]():
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is own


def autocast_adds(amount: float) -> race.Contestant:
    """One whose loss of 1 is off by so much in bfloat16."""
    weight = nn.Parameter(torch.ones(()))
    return race.Contestant(
        lambda: weight * (1 + amount * torch.is_autocast_enabled("cpu")), lambda: None
    )


def test_a_loss_may_be_off_by_two_roundings_and_no_more() -> None:
    autocast_adds(0.9 * 2**-8).check_rounding("bfloat16")
    with pytest.raises(ValueError, match=r"the loss is 1\.00430 in bfloat16 and 1\.00000"):
        autocast_adds(1.1 * 2**-8).check_rounding("bfloat16")
    with pytest.raises(ValueError, match="nan"):
        autocast_adds(float("nan")).check_rounding("bfloat16")


def test_a_value_is_taken_on_the_same_noise() -> None:
    noisy = contestant(lambda: torch.rand(()))
    assert noisy.value() == noisy.value()


def test_a_step_leaves_moved_weights_and_no_gradient() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    race.adamw(model, lambda: model(torch.ones(3, 2)).square().mean()).step("float32")
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None


def with_times(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, float]) -> None:
    """Lets the clock say these, for those that take part."""

    def take_turns(runs: Mapping[str, timing.Run], *_: Any, **__: Any) -> timing.Times:
        return timing.Times([{name: seconds[name] for name in runs}])

    monkeypatch.setattr(timing, "take_turns", take_turns)


def test_the_peer_has_the_fastest_form_that_keeps_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    with_times(monkeypatch, dict(zip(race.PEER_FORMS, (4.0, 1.0, 2.0), strict=True)))
    best, told = race.fastest_form(autocast_adds(0))
    assert (best, told) == ("bfloat16", dict(zip(race.PEER_FORMS, (1.0, 4.0, 2.0), strict=True)))
    best, told = race.fastest_form(autocast_adds(1))
    assert best == "float32"
    assert "the loss is 2.0" in str(told["bfloat16"])


def test_a_peer_that_does_not_mix_runs_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def loss() -> Tensor:
        return torch.dot((weight @ weight)[0], torch.ones(2))  # of two dtypes under autocast

    with_times(monkeypatch, dict.fromkeys(race.FORMS, 1.0))
    best, told = race.fastest_form(race.Contestant(loss, lambda: None))
    assert best == "float32"
    assert isinstance(told["bfloat16"], str)


PRODUCTS = "bfloat16, attention products"


@pytest.mark.parametrize(("gain", "chosen"), [(1.19, "float32"), (1.21, PRODUCTS)])
def test_ours_takes_bfloat16_where_a_step_is_worth_it(
    gain: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_times(monkeypatch, dict.fromkeys(race.FORMS, 1.0) | {"float32": 1.0, PRODUCTS: 1 / gain})
    ours = autocast_adds(0)
    assert race.our_form(ours, "auto")[0] == chosen
    assert race.our_form(ours, "float32") == ("float32", {})
    assert race.our_form(ours, "bfloat16")[0] == PRODUCTS


def test_ours_has_products_with_kept_probabilities() -> None:
    with race.FORMS[PRODUCTS]():
        assert current_form() == "products"
        assert torch.is_autocast_enabled("cpu")
    assert current_form() == "kernel"
