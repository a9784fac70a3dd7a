"""Loss, optimiser groups, and head and embedding that are one until they part."""

import pytest
import torch
import torch.nn.functional as F
from cbg_models import FULL, make_config, make_model, perturb, tokens_of

from nanozoo_core.config import OptimConfig, TrainingConfig, from_defaults
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary

ADAPTER = load_adapter("current_best_gpt")
CPU = torch.device("cpu")
RECORD = from_defaults(
    OptimConfig,
    lr=0.008,
    weight_decay=0.005,
    schedule="constant",
    warmup=0,
    adamw={"embedding_lr": 0.6, "cautious": True, "wd_power": 2},
    muon={"lr": 0.023, "weight_decay": 1.2, "wd_power": 2},
)


def step_at(number, total=8):
    return Step(number=number, progress=number / total, seed=0)


def train(model, optimizers, numbers, total=8):
    for number in numbers:
        step = step_at(number, total)
        optimizers.set_schedule(number, step.progress)
        ADAPTER.before_step(model, step)
        tokens = tokens_of(2, 24 + ADAPTER.lookahead(model.config), seed=number)
        batch = batch_of(tokens, lookahead=ADAPTER.lookahead(model.config))
        ADAPTER.training_loss(model, batch, step).value.backward()
        with torch.no_grad():
            ADAPTER.before_update(model, step, optimizers.optimizers)
        optimizers.step()
        optimizers.zero_grad()
        with torch.no_grad():
            ADAPTER.after_step(model, step, optimizers.optimizers)


def build(model, optim=RECORD):
    groups = ADAPTER.optimizer_groups(model, optim)
    return build_optimizers(groups, optim, total_steps=8, device=CPU)


# -- loss ------------------------------------------------------------------------------------------


def loss_of(model, tokens, progress, lookahead):
    step = Step(number=0, progress=progress, seed=0)
    return ADAPTER.training_loss(model, batch_of(tokens, lookahead=lookahead), step)


def test_several_targets_weigh_the_same_logits():
    weights = (((1.0, 0.5, 0.25), (1.0, 0.5, 0.0)),)
    model = make_model(FULL, mtp_weights=weights)
    perturb(model)
    tokens = tokens_of(2, 27)
    found = loss_of(model, tokens, 0.4, 3)
    logits = model(tokens[:, :24]).flatten(0, 1)
    nats = [F.cross_entropy(logits, tokens[:, 1 + k : 25 + k].flatten()) for k in range(3)]
    expected = nats[0] + 0.5 * nats[1] + 0.25 * 0.6 * nats[2]
    torch.testing.assert_close(found.value, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.metrics["nll"], nats[0].detach(), atol=1e-5, rtol=1e-5)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(found.value, parameters, retain_graph=True)
    for name, a, b in zip(names, gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_one_target_is_the_plain_cross_entropy():
    model = make_model(FULL, mtp_weights=(((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)),))
    tokens = tokens_of(2, 27)
    expected = F.cross_entropy(model(tokens[:, :24]).flatten(0, 1), tokens[:, 1:25].flatten())
    torch.testing.assert_close(loss_of(model, tokens, 0.4, 3).value, expected)


class Words(ToyVocabulary):
    """20 tokens, each the bytes of a number: "1" begins "10" .. "19"; the separator has none."""

    def decode_bytes(self, tokens):
        return b"".join(str(t).encode() for t in tokens if t)


def test_the_prefix_of_the_next_token_is_a_target_where_there_is_one():
    config = make_config(FULL, prefix_weight=((0.5, 0.0),))
    torch.manual_seed(0)
    model = ADAPTER.build(config, Words(20))
    perturb(model)
    tokens = tokens_of(2, 25)
    targets = tokens[:, 1:].flatten()
    losses = F.log_softmax(model(tokens[:, :-1]).flatten(0, 1), -1).neg()
    rows = torch.arange(len(targets))
    has_prefix = targets >= 10
    expected = losses[rows, targets].mean() + 0.5 * 0.75 * (losses[:, 1] * has_prefix).mean()
    found = loss_of(model, tokens, 0.25, 1)
    torch.testing.assert_close(found.value, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.metrics["nll"], losses[rows, targets].mean().detach())


# -- optimisers ------------------------------------------------------------------------------------


def test_rates_and_decays_are_those_of_the_record():
    model = make_model(FULL)
    groups = {n: g for g in ADAPTER.optimizer_groups(model, RECORD) for n in g.names}

    def settings(name):
        group = groups[name]
        return group.optimizer, group.lr * group.lr_mult, group.betas, group.weight_decay

    assert settings("blocks.0.attention.qkv.weight")[:2] == ("muon", 0.023)
    assert settings("blocks.0.mlp.up.weight")[:2] == ("muon", 0.023)  # its shape doubles it
    assert settings("blocks.3.mlp.down.weight")[:2] == ("muon", pytest.approx(0.092))
    for name, lr, betas, decay in [
        ("embedding.weight", 0.008, (0.5, 0.95), 0.75),
        ("head.weight", 0.008, (0.5, 0.95), 0.75),
        ("tables.1.weight", 0.6, (0.75, 0.95), 0.025),
        ("bigram.table.weight", 0.6, (0.75, 0.95), 0.025),
        ("blocks.1.attention.gains", 0.04, (0.9, 0.99), 0),
        ("blocks.1.attention.value_gate", 0.008, (0.9, 0.99), 0.005),
        ("blocks.2.skip", 0.04, (0.9, 0.99), 0),
        ("blocks.0.keep", 0.04, (0.9, 0.95), 0),
        ("blocks.0.add", 0.008, (0.9, 0.95), 0),
        ("smear_scale", 0.04, (0.9, 0.99), 0),
        ("smear_gate", 8e-5, (0.9, 0.99), 0),
        ("blocks.3.mix.w2", 0.002, (0.9, 0.99), 0.005),
        ("mix.bias", 0.002, (0.9, 0.99), 0),
        ("early_gates.w1", 8e-4, (0.9, 0.99), 0.005),
        ("late_gates.bias", 8e-4, (0.9, 0.99), 0),
        ("gate_scale", 8e-4, (0.9, 0.99), 0),
    ]:
        assert settings(name) == ("adamw", pytest.approx(lr), betas, pytest.approx(decay)), name


def test_muon_takes_queries_and_keys_by_pairs_of_heads():
    split = make_model(FULL).blocks[0].attention.qkv.weight.muon_split
    assert split == (16, 16, 16, 16, 32)
    assert make_model(FULL, qk_head_group=0).blocks[0].attention.qkv.weight.muon_split == (32,) * 3


def test_head_and_embedding_are_one_until_they_part():
    model = make_model(FULL, untie_at=0.5)
    optimizers = build(model)
    for number in range(8):
        train(model, optimizers, [number])
        same = torch.equal(model.embedding.weight, model.head.weight)
        assert same == (number < 4), number


def test_one_parameter_and_two_that_are_one_train_alike():
    one, two = make_model(FULL, untie_at=None), make_model(FULL, untie_at=0.9)
    shared = dict(two.named_parameters())
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            parameter.copy_(shared[name])
        one.bigram.signs.copy_(two.bigram.signs)
    for model in (one, two):
        train(model, build(model), range(4))
    torch.testing.assert_close(one.embedding.weight, two.head.weight, atol=1e-5, rtol=1e-4)


def test_the_embedding_takes_over_the_moments_of_the_head():
    model = make_model(FULL, untie_at=0.5)
    optimizers = build(model)
    train(model, optimizers, range(4))
    embedding, head = model.embedding.weight, model.head.weight
    assert embedding not in optimizers.adamw.state or not optimizers.adamw.state[embedding]
    gradient = 1e-3 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    for parameter in (embedding, head):
        parameter.grad = gradient.clone()
    step = step_at(4)
    optimizers.set_schedule(4, step.progress)
    with torch.no_grad():
        ADAPTER.before_update(model, step, optimizers.optimizers)
        optimizers.step()
    assert torch.equal(embedding, head)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_goes_on_to_the_same_bits_across_the_parting_and_a_stage(stop):
    optim = from_defaults(
        OptimConfig,
        schedule="constant",
        warmup=0,
        adamw={"every": 2, "cautious": True},
        weight_decay=0.1,
    )
    changes = {"untie_at": 0.5, "stage_starts": (0.0, 0.5), "windows": ((4, 8), (5, 9))}
    whole = make_model(FULL, **changes)
    train(whole, build(whole, optim), range(8))
    first = make_model(FULL, **changes)
    before = build(first, optim)
    train(first, before, range(stop))
    second = make_model(FULL, seed=1, **changes)
    second.load_state_dict(first.state_dict())
    after = build(second, optim)
    after.load_full_state(before.full_state())
    train(second, after, range(stop, 8))
    for (name, a), b in zip(second.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b), name


# -- data and accounting ---------------------------------------------------------------------------


def test_batches_and_windows_follow_the_stages():
    config = make_config(
        {},
        stage_starts=(0.0, 0.25, 0.5),
        windows=((8, 64),),
        batch_scale=(0.25, 1.0, 1.0),
        seq_lens=(32, 64, 64),
    )
    training = from_defaults(TrainingConfig, model="current_best_gpt", model_cfg={})
    plan = ADAPTER.data_plan(config, training)
    found = [(s.progress, s.batch_tokens, s.seq_len) for s in plan.stages]
    assert found == [(0.0, 2048, 32), (0.25, 8192, 64)]


def test_after_training_the_windows_of_scores_hold():
    model = make_model(FULL, eval_window_long=30)
    perturb(model)
    tokens = tokens_of(1, 40)
    with torch.no_grad():
        before = model(tokens)
        ADAPTER.finalize(model, [])
        after = model(tokens)
    assert int(model.stage) == 1
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert (before - after).abs().max() > 1e-3


def test_flops_count_what_multiplies_and_what_the_windows_reach():
    config = make_config(FULL, stage_starts=(0.0, 0.5), windows=((4, 8), (6, 100)))
    matrices = 3 * 4 * 32**2 + 4 * 8 * 32**2 + 20 * 32
    heads = 4
    outputs = (2 * heads + 4) + (3 * heads + 1) + (3 + 3 + 2 + 6) + 5
    small = 4 * 8 * 32 + 8 * outputs + heads * 12 + 12  # gates, mixes, value gate, smear gate
    keys = 0.5 * (4 + 2 * 8 + 5) + 0.5 * (6 + 2 * 64 + 5)
    expected = 6 * (matrices + small) + 12 * 32 * keys
    assert ADAPTER.flops_per_token(config, 64) == pytest.approx(expected)
