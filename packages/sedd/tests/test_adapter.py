"""Training loss and score of whole models, and of exact tables in the network's place."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import toy_scores as exact
from torch import Tensor, nn
from torch.testing import assert_close

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.diffusion.bounds import MaskDraw, network_draw_sum
from nanozoo_core.diffusion.sampling import draw_noise
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import ToyVocabulary, toy
from nanozoo_core.testing.sources import batch_of
from nanozoo_sedd import uniform
from nanozoo_sedd.adapter import SEDDAdapter
from nanozoo_sedd.config import SEDDConfig
from nanozoo_sedd.model import SEDD
from nanozoo_sedd.uniform_graph import UniformGraph

VOCAB, LENGTH, WIDTH = 24, 10, 32
ADAPTER = SEDDAdapter(SEDDConfig, SEDD)
FAMILIES = {
    "absorbing": {},
    "agnostic": {"time_conditioning": False},
    "timed": {"time_sampler": "t"},
    "geometric": {"time_sampler": "t", "noise_schedule": "geometric"},
    "uniform": {"transition_type": "uniform"},
    "uniform-loglinear": {"transition_type": "uniform", "noise_schedule": "loglinear"},
    "denoiser": {"transition_type": "uniform", "score_param": "denoiser"},
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def config(family: str = "absorbing", **changes: object) -> SEDDConfig:
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "seq_len": LENGTH,
        "model_dim": WIDTH,
        "num_layers": 2,
        "num_heads": 2,
        "cond_dim": 8,
    }
    return model_config("sedd", settings | FAMILIES[family] | changes)


def make_batch(windows: int = 6, scored: Tensor | None = None, seed: int = 1) -> Batch:
    tokens = torch.randint(VOCAB, (windows, LENGTH + 1), generator=seeded_generator(seed))
    return dataclasses.replace(batch_of(tokens), scored=scored)


def make_model(family: str, *, trained: bool = True, **changes: object) -> SEDD:
    """`trained` moves it away from the zeros it starts with."""
    torch.manual_seed(0)
    model = SEDD(config(family, **changes))
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


def train(model: SEDD, batch: Batch, number: int = 0) -> Tensor:
    return ADAPTER.training_loss(model, batch, Step(number, 0.0, 0)).value


# -- laws of every kind of model ------------------------------------------------------------------


@each_family
def test_first_score_is_that_of_even_predictions(family):
    """ln V per token: for each draw with masks, else in the mean."""
    model = make_model(family, trained=False)
    with torch.no_grad():
        windows = 6 if model.config.is_absorbing else 3000
        nats = ADAPTER.nll(model, make_batch(windows), Draw(0)).nats
    expected = LENGTH * math.log(VOCAB)
    if model.config.is_absorbing:
        assert_close(nats, torch.full_like(nats, expected), rtol=1e-5, atol=0)
    else:
        error = float(nats.std()) / math.sqrt(len(nats))
        assert abs(float(nats.mean()) - expected) < 3 * error
        assert error < 0.03 * expected


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
def test_training_loss_is_the_mean_over_micro_batches(family):
    model, batch = make_model(family), make_batch()
    whole = train(model, batch)
    halves = [train(model, part(batch, rows)) for rows in (slice(0, 3), slice(3, 6))]
    assert_close(sum(halves) / 2, whole, rtol=1e-5, atol=1e-5)


@each_family
def test_every_parameter_gets_a_gradient(family):
    model = make_model(family)
    train(model, make_batch(40)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0, name
    if model.config.is_absorbing:
        mask_row = model.net.embedding.weight.grad[model.mask_id]
        assert float(mask_row.abs().sum()) > 0


def test_only_the_head_learns_in_the_first_step():
    model = make_model("absorbing", trained=False)
    train(model, make_batch()).backward()
    reached = {n for n, p in model.named_parameters() if float(p.grad.abs().sum()) > 0}
    assert reached == {"net.head.weight", "net.head.bias"}


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
        train(model, batch)
    for tokens in seen:
        assert torch.equal(tokens[:, 0], batch.tokens[:, 0])
        assert torch.equal(tokens[:, 7:], batch.tokens[:, 7:])
    none = make_batch(scored=torch.zeros(6, LENGTH, dtype=torch.bool))
    with torch.no_grad():
        assert float(ADAPTER.nll(model, none, Draw(0)).nats.abs().sum()) == 0.0
        assert float(train(model, none)) == 0.0


@each_family
def test_float32_scores_are_those_of_float64(family):
    model = make_model(family)
    with torch.no_grad():
        single = ADAPTER.nll(model, make_batch(), Draw(1)).nats
        double = ADAPTER.nll(model.double(), make_batch(), Draw(1)).nats
    assert_close(single, double, rtol=1e-4, atol=1e-4)


@each_family
def test_bfloat16_scores_stay_within_a_percent(family):
    """Products have 8 bits; softmax, sums and cancelling terms are wider."""
    model, batch = make_model(family), make_batch(40)
    with torch.no_grad():
        expected = ADAPTER.nll(model, batch, Draw(1)).nats
        with torch.autocast("cpu", torch.bfloat16):
            found = ADAPTER.nll(model, batch, Draw(1)).nats
    assert not torch.equal(found, expected)
    assert_close(found.sum(), expected.sum(), rtol=1e-2, atol=0)


@each_family
def test_one_draw_is_learned_by_heart(family):
    """The same windows under the same noise: the loss falls far below where it starts."""
    model = make_model(family, trained=False)
    batch = make_batch(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    # The loss rests at 0.3 of its start up to step 130, and later jumps up now and then, at steps
    # that depend on rounding, and so on the number of threads.
    for _ in range(200):
        loss = train(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert min(history[-20:]) < 0.25 * history[0]


@pytest.mark.parametrize("family", ["timed", "geometric", "uniform", "denoiser"])
def test_training_over_all_times_estimates_the_score_but_for_its_ends(family):
    """Two estimators of one integral: by time, and (with masks) by the number of masks."""
    model = make_model(family, t_min=0.0, **({"noise_eps": 0.0} if family == "timed" else {}))
    batch, losses, scores = make_batch(120), [], []
    with torch.no_grad():
        for n in range(16):
            losses.append(float(train(model, batch, n)))
            if model.config.is_absorbing:
                nats = ADAPTER.nll(model, batch, Draw(0, n)).nats
            else:
                graph = UniformGraph(model)
                noise = graph.noise(Draw(0, n), batch)
                nats = graph.terms(batch, noise).integral
            scores.append(float(nats.sum()) / (120 * LENGTH))
    one, two = torch.tensor(losses), torch.tensor(scores)
    error = math.hypot(float(one.std()), float(two.std())) / 4
    assert abs(float(one.mean() - two.mean())) < 4 * error
    assert error < 0.1


def test_strata_are_for_training_alone():
    batch = make_batch()
    models = [make_model("timed", stratified=stratified) for stratified in (True, False)]
    with torch.no_grad():
        losses = [float(train(model, batch)) for model in models]
        scores = [ADAPTER.nll(model, batch, Draw(0)).nats for model in models]
    assert losses[0] != losses[1]
    assert torch.equal(*scores)


def test_training_and_scoring_never_share_noise():
    model, batch = make_model("absorbing"), make_batch()
    with torch.no_grad():
        loss = float(train(model, batch))
        assert loss == float(train(model, batch))
        score = ADAPTER.nll(model, batch, Draw(0)).nats.sum() / batch.num_scored
    assert abs(loss - float(score)) > 1e-3


# -- the network's place taken by logits ----------------------------------------------------------


def with_logits(family: str, logits_of, vocab_size: int = VOCAB, **changes: object) -> SEDD:
    """A model whose a is logits_of(window (B, S), sigma (B,)) (B, S, V)."""
    model = make_model(family, vocab_size=vocab_size, **changes)
    model.net.head = nn.Linear(vocab_size, vocab_size, dtype=torch.float64)
    nn.init.eye_(model.net.head.weight)
    nn.init.zeros_(model.net.head.bias)
    model.net.features = logits_of  # type: ignore[method-assign]
    return model


def random_logits(tokens: Tensor, time: Tensor) -> Tensor:
    generator = seeded_generator(4)
    return torch.randn(*tokens.shape, VOCAB, generator=generator, dtype=torch.float64)


def normalised_logits(tokens: Tensor, time: Tensor) -> Tensor:
    return random_logits(tokens, time).log_softmax(-1) + math.log(VOCAB)


def masked_diffusion_loss(model: SEDD, batch: Batch, step: Step, logits: Tensor) -> tuple:
    """MDLM's loss, d sigma / (e^sigma - 1) times the cross-entropy of masked tokens (arXiv
    2406.07524, eq. 10, and its code), per token; and the same with S - 1 - log S in its place."""
    noise = draw_noise(step, batch.rows, batch.num_rows, LENGTH)
    t_min = model.config.t_min
    t = t_min + (1 - t_min) * (1 - noise.level)
    sigma, rate = model.schedule.sigma(t), model.schedule.sigma_rate(t)
    masked = noise.uniforms < 1 - torch.exp(-sigma)[:, None]
    weight = masked * (1 - t_min) * (rate / torch.expm1(sigma))[:, None]
    cross_entropy = nn.functional.cross_entropy(
        logits[:, 1:].transpose(1, 2), batch.window[:, 1:], reduction="none"
    )
    log_mass = logits[:, 1:].logsumexp(-1) - math.log(VOCAB)
    penalty = log_mass.exp() - 1 - log_mass
    return (weight * cross_entropy).sum() / (6 * LENGTH), (weight * penalty).sum() / (6 * LENGTH)


@pytest.mark.parametrize("family", ["timed", "geometric"])
def test_loss_with_a_normalised_measure_is_that_of_masked_diffusion(family):
    model, batch = with_logits(family, normalised_logits), make_batch()
    step = Step(5, 0.0, 0)
    expected, penalty = masked_diffusion_loss(
        model, batch, step, normalised_logits(batch.window, torch.zeros(6))
    )
    assert float(penalty) < 1e-12
    assert_close(ADAPTER.training_loss(model, batch, step).value.double(), expected, rtol=1e-6,
                 atol=0)  # fmt: skip


@pytest.mark.parametrize("family", ["timed", "geometric"])
def test_loss_of_any_measure_lies_above_by_the_penalty_on_its_mass(family):
    model, batch = with_logits(family, random_logits), make_batch()
    step = Step(5, 0.0, 0)
    expected, penalty = masked_diffusion_loss(
        model, batch, step, random_logits(batch.window, torch.zeros(6))
    )
    assert float(penalty) > 0.01
    found = ADAPTER.training_loss(model, batch, step).value.double()
    assert_close(found, expected + penalty, rtol=1e-6, atol=0)


def test_logits_at_clean_positions_change_nothing():
    seen = []

    def spoiled(tokens: Tensor, time: Tensor) -> Tensor:
        seen.append(tokens)
        logits = random_logits(tokens, time)
        return torch.where((tokens == VOCAB)[..., None], logits, 30.0)

    batch = make_batch()
    nats = [
        ADAPTER.nll(with_logits("absorbing", form), batch, Draw(2)).nats
        for form in (random_logits, spoiled)
    ]
    assert bool((seen[0] == VOCAB).any())
    assert torch.equal(*nats)


# -- the toy source, exact scores -----------------------------------------------------------------


def toy_logits(model_family: str, tokens: Tensor, sigma: Tensor) -> Tensor:
    """a of a network that knows the toy, for windows with one context token."""
    if model_family == "absorbing":
        rows = exact.masked_log_measure(tokens[:, 1:]) + math.log(toy.VOCAB_SIZE)
    else:
        rows = exact.uniform_log_scores_of(tokens[:, 1:], sigma.double().expand(len(tokens)))
    return torch.cat([torch.zeros(len(tokens), 1, 3, dtype=torch.float64), rows], dim=1)


def toy_batch(num_windows: int, seed: int) -> Batch:
    chosen = toy.joint().multinomial(num_windows, True, generator=seeded_generator(seed))
    context = torch.zeros(num_windows, 1, dtype=torch.int64)
    return batch_of(torch.cat([context, exact.SEQUENCES[chosen]], dim=1))


TOY_CASES = [
    ("absorbing", {}),
    ("absorbing", {"noise_eps": 0.09}),
    ("absorbing", {"noise_schedule": "geometric", "sigma_min": 0.5, "sigma_max": 1.0}),
    ("absorbing", {"time_sampler": "t", "t_min": 0.4}),
    ("uniform", {}),
    ("uniform", {"sigma_min": 0.2, "sigma_max": 2.0}),
    ("uniform", {"noise_schedule": "loglinear", "noise_eps": 0.09, "t_min": 0.4}),
]


@pytest.mark.parametrize(("family", "changes"), TOY_CASES, ids=str)
def test_score_of_exact_scores_is_the_entropy_whatever_the_settings(family, changes):
    """The alarm of a bound that is none: noise that does not reach its ends, a term left out. With
    noise_eps=0.1 and no prior, masks would read 2.28 nats, below the entropy of 2.586."""
    model = with_logits(
        family, lambda x, sigma: toy_logits(family, x, sigma), toy.VOCAB_SIZE, **changes
    )
    batch = toy_batch(2000, seed=5)
    with torch.no_grad():
        nats = torch.stack([ADAPTER.nll(model, batch, Draw(0, n)).nats for n in range(3)])
    truth = -toy.joint()[exact.code(batch.tokens[:, 1:])].log()
    gaps = nats.mean(0) - truth
    error = float(gaps.std()) / math.sqrt(len(gaps))
    # With a decoder the integral ends at sigma_min, where paths no longer tell x_0 exactly.
    slack = 0.2 if changes.get("sigma_min") == 0.2 else 0.0
    assert -3 * error < float(gaps.mean()) < 3 * error + slack
    assert error < 0.1


@pytest.mark.parametrize("sigma", [1e-6, 12.0, 20.0])
@pytest.mark.parametrize("family", ["absorbing", "uniform", "denoiser"])
def test_extreme_noise_leaves_float32_losses_and_gradients_finite(family, sigma):
    model = make_model(family)
    with torch.no_grad():
        model.net.head.bias.normal_(std=5.0)
    noise = torch.tensor([sigma], dtype=torch.float64)
    batch = make_batch(1)
    context, tokens = batch.window[:, :1], batch.window[:, 1:]
    if family == "absorbing":
        masked = torch.arange(LENGTH)[None] < 3
        weight = 1 / torch.expm1(noise)
        draw = MaskDraw(masked, -torch.expm1(-noise), weight)
        loss = network_draw_sum(
            model.net, context, VOCAB, tokens, draw, lambda t: model.told(-torch.log1p(-t)),
            normalised=False,
        )  # fmt: skip
    else:
        corrupted = torch.where(torch.arange(LENGTH)[None] < 3, (tokens + 1) % VOCAB, tokens)
        sums = model.score_sums(corrupted, tokens, noise, context)
        loss = uniform.score_entropy(sums, corrupted == tokens, noise, VOCAB).sum()
    assert bool(loss.isfinite())
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_inspection_shows_what_the_bound_is_made_of():
    """Its means are the score: with masks also that of the normalised model, which is never above;
    under uniform noise the terms."""
    batch, vocabulary = make_batch(60), ToyVocabulary(VOCAB)
    found = ADAPTER.inspect(make_model("absorbing").eval(), [batch], vocabulary)
    raw, normalised = (
        found.metrics[f"{name}_nats_per_token"] for name in ("bound", "bound_normalised")
    )
    assert normalised < raw
    (curves,) = found.pictures
    for one, two in zip(curves.series["bound"], curves.series["bound_normalised"], strict=True):
        assert one[1] > two[1]
    in_bits = found.metrics["bound_bits_per_byte"]  # every token of the toy vocabulary is one byte
    assert in_bits == pytest.approx(raw / math.log(2), rel=1e-9)

    model = make_model("uniform", sigma_min=0.01, sigma_max=2.0).eval()
    found = ADAPTER.inspect(model, [batch], vocabulary)
    prior = found.metrics["prior_nats_per_token"]
    assert prior == pytest.approx(uniform.prior_kl(model.schedule, VOCAB), rel=1e-6)
    assert found.metrics["reconstruction_nats_per_token"] > 0.01
    assert found.metrics["integral_nats_per_token"] > 1.0


def test_roles_give_muon_the_blocks_alone():
    model = make_model("absorbing")
    roles = ADAPTER.parameter_roles(model)
    assert set(roles) == {name for name, _ in model.named_parameters()}
    parts = ("qkv", "out", "up", "down")
    matrices = {name for name, role in roles.items() if role == "matrix"}
    assert matrices == {f"net.blocks.{i}.{part}.weight" for i in range(2) for part in parts}


def test_flops_are_counted_by_hand():
    blocks, head = 2 * 12 * WIDTH**2, VOCAB * WIDTH
    attention = 12 * 2 * WIDTH * LENGTH
    assert ADAPTER.flops_per_token(config(), LENGTH) == 6 * (blocks + head / 2) + attention
    uniform_flops = ADAPTER.flops_per_token(config("uniform"), LENGTH)
    assert uniform_flops == 6 * (blocks + head) + attention
