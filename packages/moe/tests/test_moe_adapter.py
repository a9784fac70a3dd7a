import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nanozoo_core.config import (
    OptimConfig,
    compose_config,
    from_defaults,
    model_config,
    training_config,
)
from nanozoo_core.contract import Draw, HeatMap, Step
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_core.testing.training import gradients_in_parts, make_muon
from nanozoo_moe.adapter import MoEAdapter
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.model import MoE

VOCAB, LENGTH = 50, 16
SHAPE = {"vocab_size": VOCAB, "seq_len": LENGTH, "num_layers": 3, "model_dim": 32, "num_heads": 2}
ADAPTER = MoEAdapter(MoEConfig, MoE)


def make_model(seed=0, **settings):
    """A model with nothing at zero."""
    torch.manual_seed(seed)
    model = MoE(model_config("moe", SHAPE | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch(num_windows=4, seed=0, first_row=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (num_windows, LENGTH + 1), generator=generator)
    return batch_of(tokens, first_row=first_row)


def at(number=0, progress=0.0):
    return Step(number=number, progress=progress, seed=0)


def biases(model):
    return torch.stack([router.choice_bias for _, router in model.routers()])


def loads(model):
    return torch.stack([router.loads for _, router in model.routers()])


# -- the bias follows the loads -------------------------------------------------------------------


def test_the_bias_moves_once_per_step_by_the_counts_of_all_micro_batches():
    model = make_model()
    expected = torch.zeros(2, 8, dtype=torch.int64)
    for micro in range(3):
        ADAPTER.training_loss(model, batch(seed=micro), at())
        _, routings = model.encode(batch(seed=micro).inputs)
        expected += torch.stack([routing.counts for routing in routings])
        assert not biases(model).any()
    assert torch.equal(loads(model), expected)
    assert (expected.sum(1) == 3 * 4 * LENGTH * 2).all()
    ADAPTER.after_step(model, at(), [])
    error = torch.sign(expected.double().mean(1, keepdim=True) - expected)
    moved = (0.01 * (error - error.mean(1, keepdim=True))).float()
    torch.testing.assert_close(biases(model), moved)
    assert not loads(model).any()


def test_a_step_that_is_taken_again_counts_once():
    model = make_model()
    for _ in range(2):
        ADAPTER.before_step(model, at())
        ADAPTER.training_loss(model, batch(), at())
    assert (loads(model).sum(1) == 4 * LENGTH * 2).all()


def test_evaluation_moves_nothing():
    model = make_model().eval()
    with torch.no_grad():
        ADAPTER.nll(model, batch(), Draw(0))
        ADAPTER.training_loss(model, batch(), at())
        ADAPTER.after_step(model, at(), [])
    assert not loads(model).any()
    assert not biases(model).any()
    model.train()
    ADAPTER.nll(model, batch(), Draw(0))
    assert not loads(model).any()


def test_recomputed_activations_are_counted_once():
    model = make_model()
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward, **rest: checkpoint(
            forward, *args, use_reentrant=False, **rest
        )
    ADAPTER.training_loss(model, batch(), at()).value.backward()
    assert (loads(model).sum(1) == 4 * LENGTH * 2).all()


def test_the_bias_rests_at_the_end():
    model = make_model(bias_freeze_frac=0.25)
    for progress, moves in ((0.74, True), (0.75, False), (0.99, False)):
        before = biases(model)
        ADAPTER.training_loss(model, batch(), at(progress=progress))
        ADAPTER.after_step(model, at(progress=progress), [])
        assert torch.equal(biases(model), before) is not moves
        assert not loads(model).any()


def test_the_bias_evens_the_loads():
    """On fixed activations: the router alone is at fault, and the rule alone mends it."""
    model = make_model(seq_aux_alpha=0.0)
    spread = []
    for _ in range(100):
        ADAPTER.training_loss(model, batch(num_windows=16), at())
        metrics = ADAPTER.after_step(model, at(), [])
        spread.append(float(metrics["block1_max_vio"]))
    assert spread[0] > 0.5
    assert sum(spread[-20:]) / 20 < 0.2


def test_loads_are_logged_for_the_whole_step():
    """The largest load of two micro-batches together, not the mean of their largest."""
    model, separate = make_model(balance="none"), []
    for micro in range(2):
        metrics = ADAPTER.training_loss(model, batch(seed=micro), at()).metrics
        assert not any("max_vio" in name for name in metrics)
        _, routings = model.encode(batch(seed=micro).inputs)
        separate.append(torch.stack([routing.counts for routing in routings]))
    together = torch.stack(separate).sum(0).double()  # (L, E)
    found = ADAPTER.after_step(model, at(), [])
    for (number, _), counts in zip(model.routers(), together, strict=True):
        largest = float(counts.max() / counts.mean()) - 1
        assert float(found[f"block{number}_max_vio"]) == pytest.approx(largest)
        assert int(found[f"block{number}_dead_experts"]) == int((counts == 0).sum())


# -- losses ---------------------------------------------------------------------------------------


def test_the_loss_adds_the_sequence_loss():
    loss = ADAPTER.training_loss(make_model(seq_aux_alpha=0.5), batch(), at())
    assert loss.metrics["sequence_loss"] > 0.9
    expected = loss.metrics["nll"] + 0.5 * loss.metrics["sequence_loss"]
    torch.testing.assert_close(loss.value.detach(), expected)


def test_the_loss_adds_balance_and_z_loss():
    settings = {"balance": "loss", "score_func": "softmax", "alpha": 0.5, "beta": 0.25}
    model = make_model(**settings, seq_aux_alpha=0.0)
    loss = ADAPTER.training_loss(model, batch(), at())
    metrics = loss.metrics
    expected = metrics["nll"] + 0.5 * metrics["balance_loss"] + 0.25 * metrics["z_loss"]
    torch.testing.assert_close(loss.value.detach(), expected)
    assert "sequence_loss" not in metrics


def test_the_balance_loss_does_not_depend_on_how_a_batch_is_split():
    """It multiplies two means over the batch, which the means over its parts do not give."""
    settings = {"balance": "loss", "score_func": "softmax", "alpha": 1.0}
    model, whole = make_model(**settings), batch(num_windows=8)
    expected = gradients_in_parts(ADAPTER, model, whole, 1)
    for num_parts in (2, 8):
        found = gradients_in_parts(ADAPTER, model, whole, num_parts)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_score_has_no_balance_loss():
    model = make_model(seq_aux_alpha=10.0).eval()
    with torch.no_grad():
        loss = ADAPTER.training_loss(model, batch(), at())
        nll = ADAPTER.nll(model, batch(), Draw(0))
    assert float(nll.nats.sum()) / nll.num_tokens == pytest.approx(float(loss.metrics["nll"]))


def test_jitter_does_not_depend_on_batching_and_ends_with_training():
    model = make_model(jitter_noise=0.3)
    whole = batch()
    loss = ADAPTER.training_loss(model, whole, at()).metrics["nll"]
    parts = []
    for row in range(4):
        part = batch_of(whole.tokens[row : row + 1], first_row=row, num_rows=4)
        parts.append(ADAPTER.training_loss(model, part, at()).metrics["nll"])
    torch.testing.assert_close(torch.stack(parts).mean(), loss, rtol=1e-5, atol=1e-6)
    assert ADAPTER.training_loss(model, whole, at(number=1)).metrics["nll"] != loss
    calm = make_model()
    model.eval(), calm.eval()
    found = ADAPTER.training_loss(model, whole, at()).metrics["nll"]
    assert found == ADAPTER.training_loss(calm, whole, at()).metrics["nll"]


# -- gradients and groups -------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"score_func": "softmax", "norm_topk_prob": False}])
def test_cross_entropy_alone_teaches_the_router(settings):
    model = make_model(balance="none", **settings)
    ADAPTER.training_loss(model, batch(), at()).value.backward()
    for _, router in model.routers():
        assert router.weight.grad.abs().max() > 1e-6


def test_every_expert_learns_within_twenty_steps():
    torch.manual_seed(0)
    model = MoE(model_config("moe", SHAPE))
    optim = from_defaults(OptimConfig)
    groups = ADAPTER.optimizer_groups(model, optim)
    optimizers = build_optimizers(groups, optim, total_steps=20, device=torch.device("cpu"))
    banks = {n: p for n, p in model.named_parameters() if n.endswith(("mlp.up", "mlp.down"))}
    reached = {name: torch.zeros(8) for name in banks}
    for number in range(20):
        optimizers.set_schedule(number, number / 20)
        ADAPTER.training_loss(model, batch(seed=number), at(number)).value.backward()
        for name, bank in banks.items():
            reached[name] += bank.grad.abs().amax((1, 2))
        optimizers.step()
        optimizers.zero_grad()
        ADAPTER.after_step(model, at(number, number / 20), [])
    assert len(banks) == 4
    for name, sums in reached.items():
        assert (sums > 0).all(), name


def test_routers_are_adamws_and_experts_are_muons():
    roles = ADAPTER.parameter_roles(make_model())
    assert roles["blocks.1.mlp.router.weight"] == "vector"
    assert roles["blocks.1.mlp.up"] == roles["blocks.1.mlp.down"] == "matrix"
    assert roles["blocks.1.mlp.shared.up.weight"] == "matrix"
    groups = ADAPTER.optimizer_groups(make_model(), from_defaults(OptimConfig, weight_decay=0.1))
    (group,) = [g for g in groups if "blocks.1.mlp.router.weight" in g.names]
    assert (group.optimizer, group.weight_decay) == ("adamw", 0)


def test_muon_updates_a_stack_as_so_many_matrices():
    model = make_model()
    bank = model.blocks[1].mlp.up
    singles = [torch.nn.Parameter(matrix.detach().clone()) for matrix in bank]
    muons = [
        make_muon([("bank", bank)], weight_decay=0.1),
        make_muon([(f"single{i}", p) for i, p in enumerate(singles)], weight_decay=0.1),
    ]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        bank.grad = torch.randn(bank.shape, generator=generator)
        bank.grad[5] = 0  # no token came
        for parameter, gradient in zip(singles, bank.grad, strict=True):
            parameter.grad = gradient.clone()
        for muon in muons:
            muon.step()
    assert torch.equal(bank, torch.stack(singles))
    assert torch.linalg.matrix_norm(bank - make_model().blocks[1].mlp.up, ord=2)[0] > 0.01


# -- accounting -----------------------------------------------------------------------------------


def test_parameters_of_the_large_recipe():
    config = model_config(
        "moe",
        {
            "vocab_size": 50257,
            "seq_len": 1024,
            "num_layers": 12,
            "model_dim": 768,
            "num_heads": 12,
            "num_experts": 16,
            "top_k": 3,
        },
    )
    with torch.device("meta"):
        report = ADAPTER.report(MoE(config))
    # Tables 2 V d, attention 12 * 4 d^2, one dense MLP 8 d^2; per mixture 17 experts of 2 d^2 and
    # the router of 16 d, of which 13 experts idle.
    assert report["params"] == 77_194_752 + 28_311_552 + 4_718_592 + 11 * 20_066_304
    assert report["params_active"] == report["params"] - 11 * 13 * 1_179_648
    assert report["params_active"] == 162_264_576
    assert report["params_expert"] == 1_179_648
    # A dense model of the same active width, and 6 E d per router.
    dense = 6 * (12 * 12 * 768**2 + 50257 * 768) + 12 * 12 * 768 * 1024
    assert ADAPTER.flops_per_token(config, 1024) == dense + 6 * 11 * 16 * 768


def test_the_recipe_at_scale_is_that_model():
    from pathlib import Path

    recipe = Path(__file__).parents[3] / "configs" / "moe.yaml"
    config = training_config(compose_config(recipe=recipe))
    model_cfg = model_config("moe", config.model_cfg, seq_len=1024, vocab_size=50257)
    assert (model_cfg.vocab_size, model_cfg.expert_dim, model_cfg.routed) == (50257, 768, (16, 3))


def test_flops_are_those_counted_by_torch():
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(experts_impl="loop")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch().inputs)
    per_token = ADAPTER.flops_per_token(model.config, LENGTH) / 3
    assert counter.get_total_flops() == pytest.approx(4 * LENGTH * per_token)


# -- what is logged and shown ---------------------------------------------------------------------


def test_metrics_name_every_mixture():
    model = make_model()
    metrics = ADAPTER.training_loss(model, batch(), at()).metrics
    metrics |= ADAPTER.after_step(model, at(), [])
    names = ["max_vio", "min_load", "dead_experts", "router_entropy", "max_score", "bias_max"]
    expected = {f"block{number}_{name}" for number in (1, 2) for name in names}
    assert set(metrics) == expected | {"nll", "sequence_loss"}
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_inspection_shows_the_load_of_every_expert():
    model = make_model().eval()
    batches = [batch(seed=1), batch(seed=2, num_windows=2)]
    found = ADAPTER.inspect(model, batches, ToyVocabulary(VOCAB))
    (picture,) = found.pictures
    assert isinstance(picture, HeatMap)
    tokens = torch.cat([b.inputs for b in batches])
    _, routings = model.encode(tokens)
    for row, number, routing in zip(picture.values, (1, 2), routings, strict=True):
        shares = routing.counts / routing.counts.float().mean()
        assert row == pytest.approx(shares.tolist())
        assert found.metrics[f"block{number}_max_vio"] == pytest.approx(max(row) - 1)
        assert found.metrics[f"block{number}_min_load"] == pytest.approx(min(row))
        assert 0 < found.metrics[f"block{number}_router_entropy"] < math.log(8)
    assert not loads(model).any()


def test_a_model_without_routers_has_nothing_to_inspect():
    model = make_model(num_experts=1).eval()
    assert ADAPTER.inspect(model, [batch()], ToyVocabulary(VOCAB)) is None
    loss = ADAPTER.training_loss(model, batch(), at())
    assert set(loss.metrics) == {"nll"}
    ADAPTER.after_step(model, at(), [])
