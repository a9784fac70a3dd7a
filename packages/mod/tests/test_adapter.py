"""Loss, score, thresholds, FLOPs and inspection; and what training achieves on known sources."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.training import train_on_batches
from nanozoo_mod.adapter import MoDAdapter
from nanozoo_mod.config import MoDConfig
from nanozoo_mod.model import MoD

ADAPTER = MoDAdapter(MoDConfig, MoD)
STEP = Step(number=0, progress=0.0, seed=0)


def build(*, vocab_size: int = 31, moved: float = 0.0, **settings: Any) -> MoD:
    torch.manual_seed(0)
    defaults = {"seq_len": 64, "model_dim": 32, "predictor_dim": 32}
    model = MoD(model_config("mod", {"vocab_size": vocab_size, **defaults | settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += moved * torch.randn_like(parameter)
    return model


def random_batch(rows: int = 4, length: int = 64, vocab_size: int = 31, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return batch_of(torch.randint(vocab_size, (rows, length + 1), generator=generator))


def nats_per_token(model: MoD, batch: Batch) -> Tensor:
    with torch.no_grad():
        return ADAPTER.nll(model.eval(), batch, Draw(0)).nats / batch.inputs.shape[1]


# -- loss and score ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "coefficient"),
    [
        ({"predictor_coef": 0.3}, 0.3),
        ({"causal_router": "router", "router_gate": "sigmoid", "router_aux_coef": 0.2}, 0.2),
    ],
    ids=["predictor", "router"],
)
def test_training_loss_is_cross_entropy_and_the_loss_of_the_choice(
    settings: dict[str, Any], coefficient: float
) -> None:
    model, batch = build(moved=0.1, **settings), random_batch()
    loss = ADAPTER.training_loss(model, batch, STEP)
    features, routings = model.encode(batch.inputs, topk=True)
    logits = model.head(features).flatten(0, 1)
    nll = F.cross_entropy(logits, batch.targets.flatten())
    choice = torch.stack(
        [
            -F.logsigmoid(torch.where(routing.chosen, routing.logits, -routing.logits)).mean()
            for routing in routings
        ]
    ).mean()
    torch.testing.assert_close(loss.value, nll + coefficient * choice)
    torch.testing.assert_close(loss.metrics["nll"], nll.detach())
    assert all(not value.requires_grad for value in loss.metrics.values())


@pytest.mark.parametrize(
    "settings", [{"router_type": "random"}, {"capacity": 1.0}], ids=["random", "all-tokens"]
)
def test_without_a_choice_to_learn_the_loss_is_cross_entropy(settings: dict[str, Any]) -> None:
    loss = ADAPTER.training_loss(build(moved=0.1, **settings), random_batch(), STEP)
    assert torch.equal(loss.value, loss.metrics["nll"])


def test_the_score_is_that_of_the_causal_choice() -> None:
    model, batch = build(moved=0.1).eval(), random_batch()
    logits = model(batch.inputs).detach()
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    expected = losses.unflatten(0, batch.targets.shape).sum(1).double()
    torch.testing.assert_close(ADAPTER.nll(model, batch, Draw(0)).nats, expected)


def test_the_training_loss_refuses_to_be_a_score() -> None:
    with pytest.raises(ValueError, match="looks at later tokens"):
        ADAPTER.training_loss(build().eval(), random_batch(), STEP)


def test_noise_of_the_random_control_is_its_own_for_each_window_and_step() -> None:
    model, batch = build(moved=0.1, router_type="random"), random_batch()
    whole = ADAPTER.training_loss(model, batch, STEP).value
    parts = [
        ADAPTER.training_loss(
            model, batch_of(batch.tokens[row : row + 1], first_row=row, num_rows=4), STEP
        ).value
        for row in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    later = Step(number=1, progress=0.0, seed=0)
    assert not torch.equal(whole, ADAPTER.training_loss(model, batch, later).value)


def test_noise_of_the_random_control_chooses_other_tokens_in_each_window() -> None:
    """Of windows with one text, whose losses nothing but the noise tells apart."""
    model, tokens = build(moved=0.1, router_type="random"), random_batch(rows=1).tokens
    losses = [
        float(ADAPTER.training_loss(model, batch_of(tokens, first_row=row, num_rows=4), STEP).value)
        for row in range(4)
    ]
    assert len(set(losses)) == 4


def test_metrics_of_the_choice_by_hand() -> None:
    model, batch = build(moved=0.1), random_batch(length=61)
    metrics = ADAPTER.training_loss(model, batch, STEP).metrics
    _, routings = model.encode(batch.inputs, topk=True)
    for layer, routing in zip((1, 3), routings, strict=True):
        above, chosen = routing.above, routing.chosen
        both = float((above & chosen).sum())
        assert float(metrics[f"block{layer}_selected"]) == pytest.approx(float(above.sum()) / 244)
        assert float(metrics[f"block{layer}_recall"]) == pytest.approx(both / 64)
        assert float(metrics[f"block{layer}_precision"]) == pytest.approx(both / int(above.sum()))


# -- parameters --------------------------------------------------------------------------------


def test_muon_gets_neither_router_nor_predictor() -> None:
    groups = ADAPTER.optimizer_groups(build(), from_defaults(OptimConfig, weight_decay=0.1))
    muon = [name for group in groups if group.optimizer == "muon" for name in group.names]
    assert len(muon) == 4 * 4
    assert not any("router" in name or "predictor" in name for name in muon)
    for group in groups:
        if any("router" in name or "predictor" in name for name in group.names):
            assert group.weight_decay == 0


# -- thresholds --------------------------------------------------------------------------------


def test_calibrated_thresholds_meet_the_capacity() -> None:
    model = build(moved=0.1, predictor_threshold="calibrated", capacity=0.125).eval()
    batches = [random_batch(seed=seed) for seed in range(32)]
    ADAPTER.finalize(model, batches)
    thresholds = [float(block.threshold) for block in model.routed_blocks]
    assert all(threshold != 0 for threshold in thresholds)
    taken = torch.zeros(2)
    for batch in batches:
        _, routings = model.encode(batch.inputs, topk=True, diagnostic=True)
        taken += torch.stack([routing.above.sum() for routing in routings])
    assert (taken / (32 * 4 * 64) - 0.125).abs().max() < 1e-3


@pytest.mark.parametrize("settings", [{}, {"router_type": "random"}], ids=["zero", "random"])
def test_other_thresholds_stay(settings: dict[str, Any]) -> None:
    model = build(moved=0.1, **settings).eval()
    before = [block.threshold.clone() for block in model.routed_blocks]
    ADAPTER.finalize(model, [random_batch()])
    assert before == [block.threshold for block in model.routed_blocks]


def test_thresholds_are_saved_with_the_weights() -> None:
    assert "blocks.1.threshold" in build().state_dict()


# -- accounting --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"capacity": 0.125, "every_other": False}])
def test_flops_are_those_of_the_products(settings: dict[str, Any]) -> None:
    """Counted forwards, times three; torch counts no product of a matrix and a vector."""
    model, batch = build(model_dim=64, **settings), random_batch()
    config = model.config
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features, _ = model.encode(batch.inputs, topk=True)
        model.head(features)
    vectors = len(model.routed_blocks) * 6 * (config.model_dim + config.predictor_dim)
    counted = 3 * counter.get_total_flops() / batch.inputs.numel() + vectors
    assert ADAPTER.flops_per_token(config, 64) == pytest.approx(counted, rel=1e-9)


def test_at_capacity_one_flops_are_the_control_s() -> None:
    config = model_config("mod", {"vocab_size": 31, "capacity": 1.0, "router_gate": "one"})
    expected = 6 * (4 * 12 * 128**2 + 31 * 128) + 12 * 4 * 128 * 64
    assert ADAPTER.flops_per_token(config, 64) == expected


@pytest.mark.parametrize(
    ("shape", "control_layers", "layers", "share"),
    [
        ({"vocab_size": 4096, "seq_len": 256}, 4, 4, 0.74),
        ({"vocab_size": 4096, "seq_len": 256}, 4, 6, 0.94),
        (
            {
                "vocab_size": 50257,
                "seq_len": 1024,
                "model_dim": 768,
                "num_heads": 6,
                "capacity": 0.125,
                "predictor_dim": 128,
            },
            12,
            20,
            0.95,
        ),
    ],
    ids=["tiny", "tiny-deeper", "124m-deeper"],
)
def test_depths_at_the_flops_of_the_control(
    shape: dict[str, Any], control_layers: int, layers: int, share: float
) -> None:
    ours = model_config("mod", shape | {"num_layers": layers})
    plain = {"capacity": 1.0, "router_gate": "one", "predictor_dim": 32}
    control = model_config("mod", shape | plain | {"num_layers": control_layers})
    seq_len = shape["seq_len"]
    ratio = ADAPTER.flops_per_token(ours, seq_len) / ADAPTER.flops_per_token(control, seq_len)
    assert ratio == pytest.approx(share, abs=0.005)


def test_report_names_the_saving() -> None:
    report = ADAPTER.report(build())
    assert report["block_flops_vs_control"] < report["flops_vs_control"] < 1
    assert report["cache_bytes_per_token"] == 2 * 32 * 4 * (2 + 2 * 0.25)


# -- inspection --------------------------------------------------------------------------------


def test_inspection_holds_the_causal_choice_against_top_k() -> None:
    model, batches = build(moved=0.1).eval(), [random_batch(seed=seed) for seed in range(2)]
    with torch.no_grad():
        found = ADAPTER.inspect(model, batches, ToyVocabulary(31))
        nats = torch.stack([nats_per_token(model, batch).mean() for batch in batches]).mean()
        chosen = [[r.chosen for r in model.encode(batch.inputs)[1]] for batch in batches]
    assert found is not None
    assert found.metrics["nll"] == pytest.approx(float(nats), rel=1e-6)
    assert found.metrics["diag/nll_topk"] != found.metrics["nll"]
    share = torch.stack([pair[1] for pair in chosen]).double().mean()
    assert found.metrics["block3_selected"] == pytest.approx(float(share))
    curves, picture = found.pictures
    assert [x for x, _ in curves.series["agreement"]] == [1, 3]
    assert sum(picture.values[1]) / 16 == pytest.approx(float(share))


def test_where_the_past_suffices_both_choices_agree() -> None:
    """Scores of a hand-made router that marks one token, found by a predictor made of it."""
    model = build(vocab_size=8, num_layers=2, router_input="raw").eval()
    block = model.routed_blocks[0]
    with torch.no_grad():
        model.blocks[0].attention.out.weight.zero_()
        direction = model.embedding.weight[0] / model.embedding.weight[0].norm()
        block.router.copy_(direction)
        block.predictor_in.zero_()
        block.predictor_in[0] = 100 * direction
        block.predictor_out.zero_()
        block.predictor_out[0] = 1
        x = model.embedding.weight / model.embedding.weight.square().mean(1, keepdim=True).sqrt()
        scores = x @ direction
        block.predictor_out_bias.fill_(-100 * (scores[0] + scores[1:].max()) / 2)
        rows = [torch.randperm(64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        tokens = torch.stack([torch.where(row < 16, 0, 1 + row % 7) for row in rows])
        tokens = torch.cat([tokens, tokens[:, :1]], 1)
        found = ADAPTER.inspect(model, [batch_of(tokens)], ToyVocabulary(8))
    assert found is not None
    for name in ("precision", "recall", "agreement"):
        assert found.metrics[f"block1_{name}"] == 1
    assert found.metrics["block1_selected"] == 0.25
    assert found.metrics["diag/nll_topk"] == pytest.approx(found.metrics["nll"], rel=1e-6)


def test_shown_text_marks_what_was_read() -> None:
    class Letters(ToyVocabulary):
        def decode_bytes(self, tokens: Any) -> bytes:
            return bytes(97 + token for token in tokens)

    model = build(moved=0.1, router_type="random").eval()
    shown = ADAPTER.show_sample(model, Letters(31), "some text")
    assert shown is not None
    _, routings = model.encode(torch.tensor([[0, *Letters(31).encode("some text")]]))
    depths = torch.stack([routing.chosen[0, 1:] for routing in routings]).sum(0).tolist()
    letters = [chr(97 + byte % 31) for byte in b"some text"]
    assert sum(depths) > 0
    pairs = zip(letters, depths, strict=True)
    assert shown == "".join("[" * depth + letter + "]" * depth for letter, depth in pairs)


# -- what training achieves --------------------------------------------------------------------


def test_the_predictor_learns_a_choice_by_token() -> None:
    """The router marks token 0, of which every window holds exactly C."""
    model = build(vocab_size=16, num_layers=2)
    block = model.routed_blocks[0]
    with torch.no_grad():
        block.router.copy_(model.embedding.weight[0] / 8)
    optimizer = torch.optim.Adam([p for n, p in block.named_parameters() if "predictor" in n], 1e-2)
    for seed in range(200):
        order = torch.rand(8, 64, generator=torch.Generator().manual_seed(seed)).argsort(1)
        tokens = torch.where(order < 16, 0, 1 + order % 15)
        loss = ADAPTER.training_loss(model, batch_of(torch.cat([tokens, tokens[:, :1]], 1)), STEP)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert float(loss.metrics["block1_precision"]) > 0.95
    assert float(loss.metrics["block1_recall"]) > 0.95


def test_a_cycle_is_learned_under_the_causal_choice() -> None:
    model = build(vocab_size=8, num_layers=2)

    def cycle(seed: int) -> Batch:
        starts = torch.randint(8, (8, 1), generator=torch.Generator().manual_seed(seed))
        return batch_of((starts + torch.arange(65)) % 8)

    train_on_batches(ADAPTER, model, [cycle(seed) for seed in range(150)])
    assert float(nats_per_token(model, cycle(1000)).mean()) < 0.05


def test_noise_is_not_predicted() -> None:
    model = build(vocab_size=16, num_layers=2)
    train_on_batches(
        ADAPTER, model, [random_batch(16, vocab_size=16, seed=seed) for seed in range(150)]
    )
    nats = nats_per_token(model, random_batch(256, vocab_size=16, seed=1000))
    error = float(nats.std()) / math.sqrt(len(nats))
    assert float(nats.mean()) > math.log(16) - 3 * error


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"router_input": "raw", "router_gate": "tanh"},
        {"causal_router": "router", "router_gate": "sigmoid"},
        {"router_type": "random"},
        {"router_type": "random", "router_gate": "one"},
        {"capacity": 1.0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_every_parameter_gets_gradient_and_the_loss_falls(settings: dict[str, Any]) -> None:
    model = build(num_layers=2, **settings)
    reached: set[str] = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda g, name=name: reached.add(name) if g.any() else None)
    batches = [random_batch(seed=0)] * 20
    before = float(nats_per_token(model, batches[0]).mean())
    train_on_batches(ADAPTER, model, batches)
    assert reached == {name for name, _ in model.named_parameters()}
    assert float(nats_per_token(model, batches[0]).mean()) < before - 0.1
