"""What the trainer asks: loss, FLOPs, compiled graphs, counts, and the inspection by depth."""

import math

import pytest
import torch
import torch.nn.functional as F
from rd_models import VOCAB, build, make_config, random_tokens, think
from torch.utils.flop_counter import FlopCounterMode

from nanozoo_core.config import OptimConfig, from_defaults
from nanozoo_core.contract import Draw, Step
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_core.testing.training import gradients
from nanozoo_core.training.distributed import LossModule
from nanozoo_rd.adapter import RDAdapter, draw_step, forward_flops, state_metrics
from nanozoo_rd.config import RDConfig
from nanozoo_rd.model import RecurrentDepth

ADAPTER = RDAdapter(RDConfig, RecurrentDepth)


def test_the_loss_is_the_score_at_the_drawn_depth_and_state():
    model, tokens = build(), random_tokens(3, 17)
    step = Step(4, 0.5, 1)
    loss = ADAPTER.training_loss(model, batch_of(tokens), step)
    depth, key = draw_step(model.config, step)
    state = model.initial_state(key, torch.arange(16), torch.arange(3))
    logits, _ = think(model, tokens[:, :-1], depth, state=state)
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=1e-6)
    assert float(loss.metrics["depth"]) == depth


@pytest.mark.parametrize("k_trunc", [2, "full"])
def test_the_loss_reaches_the_last_iterations_alone(k_trunc):
    model = build(dtype=torch.float64, sampling="fixed", mean_recurrence=5, k_trunc=k_trunc)
    tokens, step = random_tokens(3, 17), Step(4, 0.5, 1)
    found = gradients(model, ADAPTER.training_loss(model, batch_of(tokens), step).value)
    _, key = draw_step(model.config, step)
    state = model.initial_state(key, torch.arange(16), torch.arange(3))

    def expected(num_backprop):
        logits, _ = think(model, tokens[:, :-1], 5, num_backprop, state)
        return gradients(model, F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))

    truncated, full = expected(2), expected(None)
    for name, gradient in (truncated if k_trunc == 2 else full).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-12)
    name = "core.0.mlp.down.weight"
    assert (truncated[name] - full[name]).norm() > 1e-2 * full[name].norm()


def test_state_metrics_by_hand():
    state = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [3.0, 0.0]]])
    previous = torch.tensor([[[3.0, 1.0], [0.0, 4.0], [0.0, 0.0]]])
    found = {name: float(value) for name, value in state_metrics(state, previous).items()}
    assert found["state_rms"] == pytest.approx(math.sqrt((9 + 16 + 9) / 6))
    assert found["token_correlation"] == pytest.approx(1 / 3)  # of three pairs one is parallel
    assert found["relative_change"] == pytest.approx((1 / 3 + 0 + 1) / 3)


# -- optimiser ----------------------------------------------------------------------------------


def test_matrices_and_the_adapter_are_muons_the_rest_adamws_without_decay():
    model = build(num_heads=16)  # biases of many heads are still no matrix
    groups = ADAPTER.optimizer_groups(
        model, from_defaults(OptimConfig, name="muon", weight_decay=0.1)
    )
    muon = {name for group in groups if group.optimizer == "muon" for name in group.names}
    layers = ("qkv", "out", "gate_up", "down")
    assert {name.split(".")[-2] for name in muon} == {*layers, "adapter"}
    assert len(muon) == 4 * len(layers) + 1
    assert all(group.weight_decay == 0 for group in groups if group.optimizer == "adamw")


# -- accounting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("mode", ["concat", "add"])
def test_forward_flops_are_those_that_torch_counts(depth, mode):
    model, tokens = build(eval_recurrence=depth, adapter_mode=mode), random_tokens(2, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    expected = forward_flops(model.config, 32, depth)
    assert counter.get_total_flops() == pytest.approx(2 * 32 * expected, rel=1e-9)


def test_training_flops_are_forward_at_the_depth_and_backward_at_its_truncation():
    config = make_config(vocab_size=VOCAB, sampling="fixed", mean_recurrence=6, k_trunc=2)
    expected = forward_flops(config, 64, 6) + 2 * forward_flops(config, 64, 2)
    assert ADAPTER.flops_per_token(config, 64) == pytest.approx(expected)
    full = make_config(vocab_size=VOCAB, sampling="fixed", mean_recurrence=6, k_trunc="full")
    assert ADAPTER.flops_per_token(full, 64) == pytest.approx(3 * forward_flops(config, 64, 6))


def test_training_flops_are_the_mean_over_draws():
    config = make_config(vocab_size=VOCAB)
    generator = torch.Generator().manual_seed(0)
    depths = [config.law().draw(generator) for _ in range(20_000)]
    costs = [
        forward_flops(config, 64, p) + 2 * forward_flops(config, 64, min(p, 2)) for p in depths
    ]
    mean = sum(costs) / len(costs)
    assert ADAPTER.flops_per_token(config, 64) == pytest.approx(mean, rel=0.02)


def test_the_report_counts_depth_and_cache():
    model = build()
    report = ADAPTER.report(model)
    assert report["mean_training_depth"] == 5
    assert report["layers_per_token"] == 1 + 4 * 2 + 1
    cache = model.init_cache(1, 7)
    assert report["cache_bytes_per_token"] * 7 == cache.num_bytes


# -- compiled graphs ----------------------------------------------------------------------------


def test_a_new_depth_compiles_nothing_new():
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    model, tokens = build(mean_recurrence=8).train(), random_tokens(2, 17)
    counter = CompileCounter()
    compiled = torch.compile(LossModule(model, ADAPTER), backend=counter)
    eager = LossModule(model, ADAPTER)

    def run(numbers):
        seen = set()
        for number in numbers:
            step = Step(number, 0.5, 0)
            loss, metrics = compiled(batch_of(tokens), step)
            expected, _ = eager(batch_of(tokens), step)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            seen.add(int(metrics["depth"]))
        return seen

    warm = run(range(6))
    graphs = counter.frame_count
    assert graphs > 0
    assert run(range(6, 18)) - warm
    assert counter.frame_count == graphs


# -- inspection ---------------------------------------------------------------------------------


@torch.no_grad()
def test_inspection_scores_each_depth():
    model = build()
    batches = [batch_of(random_tokens(2, 17, seed=seed)) for seed in (1, 2)]
    found = ADAPTER.inspect(model, batches, ToyVocabulary(VOCAB))
    score, states = found.pictures
    curve = dict(score.series["bits per byte"])
    assert list(curve) == [1, 2, 4, 8, 16, 32]
    for depth in (1, 4, 32):
        other = build(eval_recurrence=depth)
        nats = sum(float(ADAPTER.nll(other, batch, Draw(0)).nats.sum()) for batch in batches)
        assert curve[depth] == pytest.approx(nats / math.log(2) / 64, rel=1e-5)
        assert found.metrics[f"bpb_depth_{depth}"] == curve[depth]
    change = dict(states.series["relative_change"])
    assert change[1] > change[8] > change[32]
    assert set(states.series) == {"state_rms", "token_correlation", "relative_change"}


@torch.no_grad()
def test_inspection_measures_the_spread_over_initial_states():
    batches = [batch_of(random_tokens(2, 17))]
    shallow, deep = (
        ADAPTER.inspect(
            build(moved=False, eval_recurrence=depth), batches, ToyVocabulary(VOCAB)
        ).metrics
        for depth in (1, 32)
    )
    assert shallow["bpb_over_seeds_std"] > 100 * deep["bpb_over_seeds_std"]
    margin = 6 * deep["bpb_over_seeds_std"]
    assert deep["bpb_over_seeds_mean"] == pytest.approx(deep["bpb_depth_32"], abs=margin)
