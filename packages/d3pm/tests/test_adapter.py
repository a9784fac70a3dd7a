"""Training loss, score and statistics of whole models."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.diffusion.levels import INSPECTION_SEED
from nanozoo_core.errors import ConfigError
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_d3pm.adapter import D3PMAdapter, bound_terms
from nanozoo_d3pm.config import D3PMConfig
from nanozoo_d3pm.graph import cluster_order, cooccurrence_vectors, unit_rows
from nanozoo_d3pm.losses import general_kl
from nanozoo_d3pm.model import D3PM

VOCAB, LENGTH, WIDTH = 24, 10, 32
ADAPTER = D3PMAdapter(D3PMConfig, D3PM)
FAMILIES = {
    "absorbing": {},
    "agnostic": {"time_conditioning": False},
    "uniform": {"transition_type": "uniform", "noise_schedule": "cosine"},
    "uniform-information": {"transition_type": "uniform"},
    "gaussian": {"transition_type": "gaussian", "noise_schedule": "linear"},
    "spectral": {"transition_type": "nearest_neighbor", "nearest_neighbors": 5},
    "clusters": {
        "transition_type": "nearest_neighbor",
        "nearest_neighbors": 4,
        "nn_mode": "clusters",
    },
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def config(family: str = "absorbing", **changes: object) -> D3PMConfig:
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "seq_len": LENGTH,
        "model_dim": WIDTH,
        "num_layers": 2,
        "num_heads": 2,
        "cond_dim": 8,
        "num_timesteps": 12,
        "sampling_timesteps": 12,
    }
    return model_config("d3pm", settings | FAMILIES[family] | changes)


def make_batch(windows: int = 6, scored: Tensor | None = None, seed: int = 1) -> Batch:
    tokens = torch.randint(VOCAB, (windows, LENGTH + 1), generator=seeded_generator(seed))
    return Batch(
        tokens=tokens,
        documents=torch.zeros_like(tokens, dtype=torch.int32),
        rows=torch.arange(windows),
        num_rows=windows,
        scored=scored,
    )


def make_model(family: str, *, trained: bool = True, **changes: object) -> D3PM:
    """A fitted model; `trained` moves it away from the zeros it starts with."""
    torch.manual_seed(0)
    model = D3PM(config(family, **changes))
    ADAPTER.prepare_model(model, [make_batch(40, seed=2)])
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def part(batch: Batch, rows: slice) -> Batch:
    scored = None if batch.scored is None else batch.scored[rows]
    return dataclasses.replace(
        batch,
        tokens=batch.tokens[rows],
        documents=batch.documents[rows],
        rows=batch.rows[rows],
        scored=scored,
    )


@each_family
def test_first_loss_is_that_of_even_predictions(family):
    """ln V per token: for each draw under absorbing, whose weights are even; else in the mean."""
    model = make_model(family, trained=False)
    batch = make_batch()
    draws = 1 if family in ("absorbing", "agnostic") else 150
    with torch.no_grad():
        nats = torch.stack([ADAPTER.nll(model, batch, Draw(0, n)).nats for n in range(draws)])
    expected = LENGTH * math.log(VOCAB)
    if draws == 1:
        assert_close(nats, torch.full_like(nats, expected), rtol=1e-5, atol=0)
    elif family != "clusters":  # padding states make even predictions over V uneven over K
        error = float(nats.mean(1).std()) / math.sqrt(draws)
        assert abs(float(nats.mean()) - expected) < 4 * error


@each_family
def test_score_does_not_depend_on_how_windows_are_batched(family):
    model = make_model(family)
    scored = torch.ones(6, LENGTH, dtype=torch.bool)
    scored[-1, 4:] = False
    batch = make_batch(scored=scored)
    with torch.no_grad():
        whole = ADAPTER.nll(model, batch, Draw(3))
        parts = [ADAPTER.nll(model, part(batch, slice(i, i + 2)), Draw(3)) for i in (0, 2, 4)]
    assert whole.num_tokens == sum(p.num_tokens for p in parts) == 54
    assert_close(torch.cat([p.nats for p in parts]), whole.nats, rtol=1e-5, atol=1e-5)


@each_family
def test_inspection_takes_the_bound_apart(family):
    model = make_model(family)
    scored = torch.ones(8, LENGTH, dtype=torch.bool)
    scored[-1, 4:] = False
    batch = make_batch(8, scored=scored)
    batches = [part(batch, slice(i, i + 4)) for i in (0, 4)]
    found = ADAPTER.inspect(model, batches, ToyVocabulary(VOCAB))
    with torch.no_grad():
        nll = ADAPTER.nll(model, batch, Draw(INSPECTION_SEED))
    assert found.metrics["bound_nats_per_token"] == pytest.approx(
        float(nll.nats.sum()) / nll.num_tokens, rel=1e-5
    )
    assert found.metrics["bound_bits_per_byte"] == pytest.approx(
        found.metrics["bound_nats_per_token"] / math.log(2)  # a token is a byte there
    )
    (curves,) = found.pictures
    assert list(curves.series) == ["bound", "cross_entropy"]
    assert [x for x, _ in curves.series["bound"]] == [0.125, 0.375, 0.625, 0.875]


@each_family
def test_training_loss_is_the_mean_over_micro_batches(family):
    model = make_model(family)
    batch = make_batch()
    whole = ADAPTER.training_loss(model, batch, Step(4, 0.5, 0))
    halves = [
        ADAPTER.training_loss(model, part(batch, rows), Step(4, 0.5, 0, micro_step=i))
        for i, rows in enumerate((slice(0, 3), slice(3, 6)))
    ]
    assert_close(sum(h.value for h in halves) / 2, whole.value, rtol=1e-5, atol=1e-5)


@each_family
def test_every_parameter_gets_a_gradient(family):
    model = make_model(family)
    ADAPTER.training_loss(model, make_batch(40), Step(0, 0.0, 0)).value.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0, name


@each_family
def test_unscored_tokens_stay_clean_and_cost_nothing(family):
    model = make_model(family)
    seen = []
    features = model.net.features

    def spy(tokens: Tensor, time: Tensor | None = None) -> Tensor:
        seen.append(tokens)
        return features(tokens, time)

    model.net.features = spy  # type: ignore[method-assign]
    scored = torch.ones(6, LENGTH, dtype=torch.bool)
    scored[:, 6:] = False
    batch = make_batch(scored=scored)
    with torch.no_grad():
        ADAPTER.nll(model, batch, Draw(0))
    assert torch.equal(seen[0][:, 0], batch.tokens[:, 0])
    assert torch.equal(seen[0][:, 7:], batch.tokens[:, 7:])
    none = make_batch(scored=torch.zeros(6, LENGTH, dtype=torch.bool))
    with torch.no_grad():
        assert float(ADAPTER.nll(model, none, Draw(0)).nats.abs().sum()) == 0.0


def test_metrics_keep_the_bound_apart_from_the_cross_entropy():
    model = make_model("absorbing", auxiliary_loss_weight=0.5)
    loss = ADAPTER.training_loss(model, make_batch(), Step(0, 0.0, 0))
    factor = 0.5 * 12
    expected = (loss.metrics["nll"] + factor * loss.metrics["ce"]) / (1 + factor)
    assert_close(loss.value.detach(), expected)
    literal = make_model("absorbing", auxiliary_loss_weight=0.5, auxiliary_loss_scale="total")
    assert literal.config.cross_entropy_factor == 0.5


@pytest.mark.parametrize("family", ["absorbing", "uniform", "spectral", "gaussian"])
def test_draws_average_to_the_exact_sum_over_timesteps(family):
    """The stratified estimator against T * mean_t KL_t with every t taken, noise still random."""
    model = make_model(family)
    batch = make_batch(3)
    with torch.no_grad():
        nats = torch.stack([ADAPTER.nll(model, batch, Draw(0, n)).nats for n in range(200)])
        exact = []
        for seed in range(25):
            total = 0.0
            for t in range(1, 13):
                total = total + timestep_nats(model, batch, t, seed)
            exact.append(total + model.transition.prior_kl(batch.tokens[:, 1:]).sum())
    exact_sum = torch.stack(exact)
    sums = nats.sum(1)
    error = math.hypot(
        float(sums.std()) / math.sqrt(len(sums)), float(exact_sum.std()) / math.sqrt(len(exact))
    )
    assert abs(float(sums.mean() - exact_sum.mean())) < 4 * error


def timestep_nats(model: D3PM, batch: Batch, t: int, seed: int) -> Tensor:
    """Sum over windows and tokens of KL_t by the general formula, in float64."""
    x0 = batch.tokens[:, 1:]
    times = torch.full((x0.shape[0],), t)
    generator = seeded_generator(seed, t)
    uniforms = torch.rand(x0.shape, generator=generator, dtype=torch.float64)
    xt = model.transition.corrupt(x0, times, uniforms)
    logits = model(torch.cat([batch.tokens[:, :1], xt], 1), times)[:, 1:]
    return general_kl(model.transition, logits.double().log_softmax(-1), x0, xt, times).sum()


def test_float32_terms_are_those_of_float64():
    for family in ("spectral", "clusters", "gaussian", "uniform"):
        model = make_model(family)
        with torch.no_grad():
            single = bound_terms(model, make_batch(), Draw(1))
            double = bound_terms(model.double(), make_batch(), Draw(1))
        for a, b in zip(single, double, strict=True):
            assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)


@each_family
def test_one_draw_is_learned_by_heart(family):
    """The same windows under the same noise: both terms fall far below where they start."""
    model = make_model(family, trained=False, auxiliary_loss_weight=0.1)
    batch, step = make_batch(4), Step(0, 0.0, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(120):
        loss = ADAPTER.training_loss(model, batch, step)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        history.append(loss.metrics)
    for name in ("nll", "ce"):
        assert float(history[-1][name]) < 0.25 * float(history[0][name])


@pytest.mark.parametrize("family", ["uniform-information", "spectral", "clusters"])
def test_statistics_of_the_data_travel_with_the_weights(family):
    model = make_model(family)
    torch.manual_seed(5)
    fresh = D3PM(config(family))
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = ADAPTER.nll(model, make_batch(), Draw(2)).nats
        assert torch.equal(ADAPTER.nll(fresh, make_batch(), Draw(2)).nats, expected)


def test_graph_without_data_is_refused():
    with pytest.raises(AssertionError, match="prepare_model"):
        ADAPTER.nll(D3PM(config("spectral")), make_batch(), Draw(0))


def test_vectors_of_tokens_used_alike_are_neighbours():
    """Tokens 2i and 2i+1 are interchangeable in the text, so they are each other's nearest."""
    generator = seeded_generator(3)
    base = torch.arange(600) % 6
    tokens = 2 * base + torch.randint(2, (20, 600), generator=generator)
    vectors = cooccurrence_vectors([tokens], 12)
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-1)
    assert similarity.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]


def test_clusters_hold_similar_tokens():
    centers = torch.randn(4, 6, generator=seeded_generator(4), dtype=torch.float64) * 5
    group = torch.arange(16) % 4
    noise = torch.randn(16, 6, generator=seeded_generator(5), dtype=torch.float64)
    order = cluster_order(unit_rows(centers[group] + 0.1 * noise), 4)
    assert order.sort().values.tolist() == list(range(16))
    assert all(len(set(group[run].tolist())) == 1 for run in order.view(4, 4))


def test_vectors_from_a_file_need_one_row_per_token(tmp_path):
    import numpy as np

    path = tmp_path / "vectors.npy"
    np.save(path, np.ones((5, 3)))
    settings = {"transition_type": "nearest_neighbor", "nearest_neighbors": 5}
    for name, message in ((str(path), "24 rows"), ("missing.npy", "neither ppmi nor")):
        model = D3PM(config("absorbing", nn_embeddings=name, **settings))
        with pytest.raises(ConfigError, match=message):
            ADAPTER.prepare_model(model, [make_batch()])
    generator = np.random.default_rng(0)
    np.save(path, generator.standard_normal((VOCAB, 4)))
    model = D3PM(config("absorbing", nn_embeddings=str(path), **settings))
    ADAPTER.prepare_model(model, [make_batch()])
    assert bool(model.transition.tau.isfinite().all())


def test_roles_give_muon_the_blocks_alone():
    model = make_model("absorbing")
    roles = ADAPTER.parameter_roles(model)
    assert set(roles) == {name for name, _ in model.named_parameters()}
    parts = ("qkv", "out", "up", "down")
    matrices = {name for name, role in roles.items() if role == "matrix"}
    assert matrices == {f"net.blocks.{i}.{part}.weight" for i in range(2) for part in parts}
    assert roles["net.head.weight"] == "head"


def test_model_builds_without_memory_for_counting():
    with torch.device("meta"):
        for family in FAMILIES:
            D3PM(config(family))


def test_flops_are_counted_by_hand():
    tiny = config("absorbing")
    blocks, head = 2 * 12 * WIDTH**2, VOCAB * WIDTH
    attention = 12 * 2 * WIDTH * LENGTH
    expected = 6 * (blocks + head / 2) + attention
    assert ADAPTER.flops_per_token(tiny, LENGTH) == expected
    spectral = ADAPTER.flops_per_token(config("spectral"), LENGTH)
    assert spectral == 6 * (blocks + head) + attention + 4 * VOCAB**2


def test_absorbing_loss_is_the_masked_cross_entropy_over_the_masked_share():
    """T KL_t = (1 / u) sum of masked losses at u = t / T, on the same masks."""
    model = make_model("absorbing")
    batch = make_batch()
    x0 = batch.tokens[:, 1:]
    for t in (1, 5, 12):
        times = torch.full((6,), t)
        uniforms = torch.rand(6, LENGTH, generator=seeded_generator(t), dtype=torch.float64)
        xt = model.transition.corrupt(x0, times, uniforms)
        with torch.no_grad():
            logits = model(torch.cat([batch.tokens[:, :1], xt], 1), times)[:, 1:].double()
        losses = torch.nn.functional.cross_entropy(logits.mT, x0, reduction="none")
        expected = (losses * (xt == VOCAB)).sum(1) * 12 / t
        kl = general_kl(model.transition, logits.log_softmax(-1), x0, xt, times)
        assert_close(12 * kl.sum(1), expected, rtol=1e-6, atol=1e-6)
