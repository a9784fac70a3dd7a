"""Laws of the routed block and of the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import rotary_angles
from nanozoo_core.testing.laws import assert_same_tensors
from nanozoo_core.testing.training import gradients, move
from nanozoo_mod.model import MoD, RoutedBlock

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "seq_len": 64,
    "num_layers": 4,
    "model_dim": 32,
    "num_heads": 4,
}
CONTROL: dict[str, Any] = {"capacity": 1.0, "router_gate": "one"}
WAYS = {
    "predictor": {},
    "router": {"causal_router": "router", "router_gate": "sigmoid"},
    "random": {"router_type": "random"},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def build(*, seed: int = 0, moved: float = 0.1, **settings: Any) -> MoD:
    """A model whose weights are all away from zero and whose blocks take some tokens each."""
    torch.manual_seed(seed)
    model = MoD(model_config("mod", SMALL | settings))
    move(model, moved)
    with torch.no_grad():
        for block in model.routed_blocks:
            if model.config.has_predictor:
                block.predictor_out.mul_(5)
    return model


def random_tokens(batch: int = 3, length: int = 61, seed: int = 0) -> Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(seed))


def block_inputs(model: MoD, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    positions = torch.arange(tokens.shape[1])[None]
    return (
        rms_norm(model.embedding(tokens)),
        rotary_angles(positions, model.head_dim),
        positions,
    )


# -- the control -------------------------------------------------------------------------------


@pytest.mark.parametrize("every_other", [True, False], ids=["every-other", "every"])
def test_at_capacity_one_it_is_the_control_to_the_bit(every_other: bool) -> None:
    torch.manual_seed(0)
    control = ControlModel(ControlConfig(31, 64, 4, 32, 4, mlp_ratio=4))
    torch.manual_seed(0)
    model = MoD(model_config("mod", SMALL | CONTROL | {"every_other": every_other}))
    tokens = random_tokens()
    for moved in (False, True):
        if moved:
            move(control, 0.1)
            move(model, 0.1)
        assert_same_tensors(dict(model.named_parameters()), dict(control.named_parameters()))
        assert torch.equal(model(tokens), control(tokens))
        features, _ = model.encode(tokens, topk=True)
        assert torch.equal(features, control.features(tokens))
    found = gradients(model, model.head(features).logsumexp(-1).sum())
    expected = gradients(control, control(tokens).logsumexp(-1).sum())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_taking_all_tokens_causally_is_the_control_to_the_bit() -> None:
    model = build(router_type="random", router_gate="one")
    control = ControlModel(ControlConfig(31, 64, 4, 32, 4, mlp_ratio=4))
    control.load_state_dict(dict(model.named_parameters()))
    tokens = random_tokens()
    assert not torch.equal(model(tokens), control(tokens))
    for block in model.routed_blocks:
        block.threshold.fill_(-torch.inf)
    assert torch.equal(model(tokens), control(tokens))


def test_with_one_seed_the_shared_weights_are_the_control_s() -> None:
    torch.manual_seed(3)
    control = ControlModel(ControlConfig(31, 64, 4, 32, 4, mlp_ratio=4))
    torch.manual_seed(3)
    model = dict(MoD(model_config("mod", SMALL)).named_parameters())
    assert all(torch.equal(model[name], p) for name, p in control.named_parameters())


def test_routing_starts_by_its_table() -> None:
    torch.manual_seed(0)
    sizes = {"model_dim": 1024, "predictor_dim": 64, "num_layers": 2, "capacity": 0.125}
    (block,) = MoD(model_config("mod", SMALL | sizes)).routed_blocks
    assert float(block.router.detach().std()) == pytest.approx(0.55 / 32, rel=0.1)
    assert float(block.predictor_in.detach().std()) == pytest.approx(1 / 32, rel=0.02)
    assert float(block.predictor_out.detach().std()) == pytest.approx(1 / 8, rel=0.3)
    assert not block.predictor_in_bias.any()
    # As likely to take a token as the capacity has it.
    assert float(block.predictor_out_bias.detach().sigmoid()) == pytest.approx(0.125)
    (raw,) = MoD(model_config("mod", SMALL | sizes | {"router_input": "raw"})).routed_blocks
    assert float(raw.router.detach().std()) == pytest.approx(1 / 32, rel=0.1)


# -- the choice in training --------------------------------------------------------------------


@ways
@pytest.mark.parametrize("topk", [True, False], ids=["topk", "causal"])
@pytest.mark.parametrize("length", [1, 7, 61])
@pytest.mark.parametrize("router_input", ["normed", "raw"])
def test_gathering_equals_masking(
    way: dict[str, Any], topk: bool, length: int, router_input: str
) -> None:
    settings = way if way == WAYS["random"] else way | {"router_input": router_input}
    models = [build(**settings, routed_impl=impl).double() for impl in ("gather", "masked")]
    tokens = random_tokens(length=length)
    results = []
    for model in models:
        features, routings = model.encode(tokens, topk=topk)
        loss = model.head(features).logsumexp(-1).sum() + sum(r.logits.sum() for r in routings)
        results.append((features, [r.gate for r in routings], gradients(model, loss)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)
    if length == 61:
        shares = [float(r.chosen.double().mean()) for r in routings]
        assert all(0.05 < share < 0.95 for share in shares)


@pytest.mark.parametrize("length", [1, 3, 61])
def test_exactly_c_tokens_change_and_the_others_are_bit_identical(length: int) -> None:
    model, tokens = build(), random_tokens(length=length)
    block = model.routed_blocks[0]
    x, angles, positions = block_inputs(model, tokens)
    with torch.no_grad():
        y, routing = block(x, angles, positions, topk=True)
    assert torch.equal((y != x).any(-1), routing.chosen)
    assert (routing.chosen.sum(1) == -(-length // 4)).all()


def test_the_highest_scores_are_chosen_and_of_equals_the_first() -> None:
    block = build(model_dim=4, num_heads=1, router_input="raw").routed_blocks[0]
    with torch.no_grad():
        block.router.copy_(torch.tensor([1.0, 0, 0, 0]))
    x = torch.zeros(2, 8, 4)
    x[0, :, 0] = torch.tensor([1.0, 5, 2, 5, 5, 0, 1, 5])
    assert block.highest(x, None).tolist() == [[1, 3], [0, 1]]


def test_chosen_tokens_keep_their_positions() -> None:
    model, tokens = build(), random_tokens(batch=1)
    block = model.routed_blocks[0]
    x, angles, positions = block_inputs(model, tokens)
    with torch.no_grad():
        y, routing = block(x, angles, positions, topk=True)
        places = routing.chosen[0].nonzero()[:, 0]
        taken = x[:, places]
        gate = block.scores(taken, None)[..., None]
        expected = taken + gate * block.delta(taken, rotary_angles(places, model.head_dim))
        renumbered = rotary_angles(torch.arange(len(places)), model.head_dim)
        wrong = taken + gate * block.delta(taken, renumbered)
    torch.testing.assert_close(y[:, places], expected, rtol=1e-5, atol=1e-6)
    assert (y[:, places] - wrong).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "function"),
    [("linear", lambda r: r), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh)],
)
def test_the_gate_multiplies_the_increment(name: str, function: Any) -> None:
    model, tokens = build(router_gate=name), random_tokens()
    linear = build()
    x, angles, positions = block_inputs(model, tokens)
    with torch.no_grad():
        y, routing = model.routed_blocks[0](x, angles, positions, topk=True)
        other, _ = linear.routed_blocks[0](x, angles, positions, topk=True)
        score = linear.routed_blocks[0].scores(x, None)[..., None]
    expected = x + (other - x) / score * function(score)
    torch.testing.assert_close(y[routing.chosen], expected[routing.chosen], rtol=1e-4, atol=1e-5)


# -- causality ---------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("impl", ["gather", "masked"])
def test_evaluation_does_not_see_the_future(way: dict[str, Any], impl: str) -> None:
    model = build(**way, routed_impl=impl).eval().double()
    tokens = random_tokens(batch=2)
    with torch.no_grad():
        before = model(tokens)
        for place in (0, 1, 30, 60):
            changed = tokens.clone()
            changed[:, place:] = (changed[:, place:] + 7) % 31
            after = model(changed)
            torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-10)
            assert (after - before)[:, place].abs().max() > 1e-3


def test_topk_does_see_the_future() -> None:
    """Why it must not score: only the last token changes, and earlier predictions move."""
    moved = []
    for seed in range(20):
        model = build(seed=seed, capacity=0.125, model_dim=64)
        tokens = random_tokens(batch=1, length=64, seed=seed)
        changed = tokens.clone()
        changed[:, -1] = (changed[:, -1] + 7) % 31
        with torch.no_grad():
            pair = [model.head(model.encode(x, topk=True)[0])[:, :-1] for x in (tokens, changed)]
        moved.append(float((pair[0] - pair[1]).abs().max()))
    assert max(moved) > 1e-4


def test_topk_outside_training_must_be_called_a_diagnostic() -> None:
    model, tokens = build().eval(), random_tokens()
    with pytest.raises(ValueError, match="looks at later tokens"):
        model.encode(tokens, topk=True)
    model.encode(tokens, topk=True, diagnostic=True)
    with pytest.raises(ValueError, match="looks at later tokens"):
        model.encode(tokens, topk=True, diagnostic=True, cache=model.init_cache(3, 64))


@ways
@pytest.mark.parametrize("topk", [True, False], ids=["topk", "causal"])
def test_rows_of_a_batch_do_not_mix(way: dict[str, Any], topk: bool) -> None:
    model, tokens = build(**way), random_tokens()
    with torch.no_grad():
        whole, _ = model.encode(tokens, topk=topk)
        for row in range(3):
            alone, _ = model.encode(tokens[row : row + 1], topk=topk)
            torch.testing.assert_close(alone[0], whole[row], rtol=1e-5, atol=1e-5)


# -- gradients ---------------------------------------------------------------------------------


def test_the_loss_reaches_every_router_and_no_predictor() -> None:
    model, tokens = build(), random_tokens()
    features, _ = model.encode(tokens, topk=True)
    found = gradients(model, model.head(features).logsumexp(-1).sum())
    for layer in (1, 3):
        assert found[f"blocks.{layer}.router"].abs().max() > 1e-4
        assert found[f"blocks.{layer}.predictor_in"].abs().max() == 0


def test_the_choice_of_the_predictor_reaches_the_predictor_alone() -> None:
    model, tokens = build(), random_tokens()
    _, routings = model.encode(tokens, topk=True)
    found = gradients(model, sum(r.logits.sum() for r in routings))
    for name, gradient in found.items():
        assert (gradient.abs().max() > 0) == (".predictor_" in name), name


def test_the_choice_of_the_router_trains_the_stream() -> None:
    model, tokens = build(**WAYS["router"]), random_tokens()
    _, routings = model.encode(tokens, topk=True)
    found = gradients(model, sum(r.logits.sum() for r in routings))
    assert found["blocks.1.router"].abs().max() > 0
    assert found["embedding.weight"].abs().max() > 0


def test_the_predictor_reads_the_normalised_stream() -> None:
    model, tokens = build(), random_tokens()
    block: RoutedBlock = model.routed_blocks[0]
    x, _, _ = block_inputs(model, tokens)
    hidden = rms_norm(3 * x) @ block.predictor_in.T + block.predictor_in_bias
    expected = torch.nn.functional.silu(hidden) @ block.predictor_out + block.predictor_out_bias
    torch.testing.assert_close(block.causal_logits(3 * x, None), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        block.scores(3 * x, None), rms_norm(3 * x) @ block.router, rtol=1e-4, atol=1e-5
    )


# -- the random control ------------------------------------------------------------------------


def test_random_choices_depend_on_the_position_alone() -> None:
    model = build(router_type="random").eval()
    with torch.no_grad():
        _, one = model.encode(random_tokens(seed=1))
        _, two = model.encode(random_tokens(seed=2))
    assert all(torch.equal(a.chosen, b.chosen) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0].chosen, one[1].chosen)


def test_random_choices_meet_the_capacity() -> None:
    model = build(router_type="random", seq_len=4096, capacity=0.25, num_layers=2).eval()
    with torch.no_grad():
        _, (routing,) = model.encode(torch.zeros(1, 4096, dtype=torch.int64))
    assert float(routing.chosen.double().mean()) == pytest.approx(0.25, abs=0.03)
