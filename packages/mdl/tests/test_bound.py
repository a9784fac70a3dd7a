"""The bound that training and validation print, on the enumerable source and on whole models."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.diffusion.bounds import network_loss
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion import exact_masked_bound
from nanozoo_core.testing.sources import batch_of
from nanozoo_mdl.adapter import MDLMAdapter
from nanozoo_mdl.config import MDLMConfig
from nanozoo_mdl.model import MDLM

VOCAB, LENGTH = 24, 10
ADAPTER = MDLMAdapter(MDLMConfig, MDLM)
VARIANTS = {
    "plain": {},
    "times": {"time_sampler": "t"},
    "iid": {"stratified": False},
    "cosine-timed": {"alpha_type": "cosine", "time_conditioning": True, "cond_dim": 8},
    "squared-timed": {"alpha_type": "cosine_sq", "time_conditioning": True, "cond_dim": 8},
    "adaln": {"adaln_when_unconditioned": True, "cond_dim": 8},
    "tied": {"tie_embeddings": True},
    "steps": {"continuous_time": False, "num_timesteps": 6},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def config(variant: str = "plain", **changes: object) -> MDLMConfig:
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "seq_len": LENGTH,
        "model_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
    }
    return model_config("mdl", settings | VARIANTS[variant] | changes)


def make_model(variant: str = "plain", *, trained: bool = True, **changes: object) -> MDLM:
    """`trained` moves it away from the zeros it starts with."""
    torch.manual_seed(0)
    model = MDLM(config(variant, **changes))
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batch(windows: int = 6, scored: Tensor | None = None, seed: int = 1) -> Batch:
    tokens = torch.randint(VOCAB, (windows, LENGTH + 1), generator=seeded_generator(seed))
    return dataclasses.replace(batch_of(tokens), scored=scored)


class Table(nn.Module):
    """Stands in for the network: its features are log-probabilities, its head nothing.

    With `blur` it mixes in an even guess, the more the later the time.
    """

    def __init__(self, blur: float = 0.0) -> None:
        super().__init__()
        self.blur = blur
        self.output_weight = torch.eye(3, dtype=torch.float64)
        self.output_bias = torch.zeros(3, dtype=torch.float64)

    def features(self, tokens: Tensor, time: Tensor) -> Tensor:
        """(B, 4, 3) for a context token and three of the toy."""
        guess = self.blur * (1 - (-time.double()).exp())[:, None, None]  # of sigma: 1 - alpha
        known = toy.masked_denoiser(tokens[:, 1:]).exp()
        mixed = ((1 - guess) * known + guess / 3).log()
        return nn.functional.pad(mixed, (0, 0, 1, 0))


def toy_model(blur: float = 0.0, **changes: object) -> MDLM:
    settings: dict[str, object] = {"vocab_size": 3, "seq_len": 3, "model_dim": 4, "num_heads": 1}
    model = MDLM(model_config("mdl", settings | changes))
    model.net = Table(blur)  # type: ignore[assignment]
    return model


def toy_batch(num_windows: int) -> Batch:
    picks = toy.joint().multinomial(num_windows, True, generator=seeded_generator(1))
    return batch_of(torch.cat([torch.zeros(num_windows, 1).long(), toy.sequences()[picks]], 1))


def toy_nats(model: MDLM, num_windows: int = 20_000) -> tuple[float, float]:
    """Mean of the shipped estimator over sequences of the source, and its standard error, with
    -log p of the sequence, whose mean is the entropy, as a control variate."""
    batch = toy_batch(num_windows)
    codes = (batch.tokens[:, 1:] * torch.tensor([9, 3, 1])).sum(1)
    with torch.no_grad():
        nats = ADAPTER.nll(model, batch, Draw(0)).nats + toy.joint()[codes].log()
    return toy.ENTROPY + float(nats.mean()), float(nats.std()) / math.sqrt(num_windows)


# -- the toy source -------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha_type", ["linear", "cosine", "cosine_sq"])
def test_perfect_network_scores_the_entropy(alpha_type):
    mean, error = toy_nats(toy_model(alpha_type=alpha_type))
    assert abs(mean - toy.ENTROPY) < 3 * error


STEPS = {1: 3.112186, 2: 2.837457, 4: 2.708758, 8: 2.646575, 16: 2.616025, 64: 2.593349}


@pytest.mark.parametrize(("num_timesteps", "expected"), STEPS.items())
def test_bound_of_few_steps_is_the_enumerated_one(num_timesteps, expected):
    model = toy_model(continuous_time=False, num_timesteps=num_timesteps)
    mean, error = toy_nats(model)
    assert abs(mean - expected) < 3 * error
    keep = 1 - torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    loss = network_loss(model.net, torch.zeros(27, 1).long(), 3, model.time_input)
    exact = float(toy.joint() @ exact_masked_bound(loss, toy.sequences(), keep))
    assert exact == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("blur", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("alpha_type", ["linear", "cosine", "cosine_sq"])
def test_no_network_scores_below_the_entropy(blur, alpha_type):
    """Perfect or not, reading the time or not: the alarm for a bound that is none."""
    mean, error = toy_nats(toy_model(blur, alpha_type=alpha_type))
    assert mean > toy.ENTROPY - 3 * error
    if blur > 0.5:
        assert mean > toy.ENTROPY + 3 * error


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_training_estimators_agree_with_the_score(blur):
    """By count, by time from 0, and without strata: one bound, also for a timed network."""
    batch = toy_batch(20_000)
    score, error = toy_nats(toy_model(blur))
    for changes in ({}, {"time_sampler": "t", "t_min": 0.0}, {"stratified": False}):
        model = toy_model(blur, **changes)
        losses = []
        for number in range(20):
            rows = slice(1000 * number, 1000 * (number + 1))
            part = dataclasses.replace(batch_of(batch.tokens[rows]))
            with torch.no_grad():
                loss = ADAPTER.training_loss(model, part, Step(number, 0.0, 0))
            losses.append(3 * float(loss.value))
        means = torch.tensor(losses, dtype=torch.float64)
        own = float(means.std()) / math.sqrt(len(means))
        assert abs(float(means.mean()) - score) < 3 * math.hypot(own, error)


def test_training_from_a_later_time_is_no_score():
    """t_min = 0.1 loses a tenth of the integral; the validation of the same model does not."""
    model = toy_model(time_sampler="t", t_min=0.1)
    with torch.no_grad():
        loss = ADAPTER.training_loss(model, toy_batch(20_000), Step(0, 0.0, 0))
    assert 3 * float(loss.value) == pytest.approx(2.3671, abs=0.05)
    mean, error = toy_nats(model)
    assert abs(mean - toy.ENTROPY) < 3 * error


# -- whole models ---------------------------------------------------------------------------------


def test_even_predictions_cost_ln_v_in_every_draw():
    """k form: the weight is 1/k times k losses of ln V. t form: in the mean alone."""
    model = make_model(trained=False)
    batch = make_batch(10)
    with torch.no_grad():
        nats = ADAPTER.nll(model, batch, Draw(0)).nats
        loss = ADAPTER.training_loss(model, batch, Step(0, 0.0, 0)).value
        by_time = make_model("times", trained=False, t_min=0.0)
        timed = [
            float(ADAPTER.training_loss(by_time, batch, Step(n, 0.0, 0)).value) for n in range(100)
        ]
    assert_close(nats, torch.full_like(nats, LENGTH * math.log(VOCAB)), rtol=1e-6, atol=0)
    assert float(loss) == pytest.approx(math.log(VOCAB), rel=1e-6)
    mean, error = torch.tensor(timed).mean(), torch.tensor(timed).std() / 10
    assert error > 1e-3
    assert abs(float(mean) - math.log(VOCAB)) < 4 * float(error)


@each_variant
def test_every_parameter_gets_a_gradient(variant):
    model = make_model(variant)
    ADAPTER.training_loss(model, make_batch(40), Step(0, 0.0, 0)).value.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0, name
    mask_row = model.net.embedding.weight.grad
    assert mask_row is not None
    assert float(mask_row[VOCAB].abs().sum()) > 0


def test_only_the_head_gets_a_gradient_in_the_first_step():
    model = make_model(trained=False)
    ADAPTER.training_loss(model, make_batch(), Step(0, 0.0, 0)).value.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    assert reached == {"net.head.weight", "net.head.bias"}


@each_variant
def test_score_does_not_depend_on_how_windows_are_batched(variant):
    model = make_model(variant)
    scored = torch.ones(6, LENGTH, dtype=torch.bool)
    scored[-1, 4:] = False
    batch = make_batch(scored=scored)
    with torch.no_grad():
        whole = ADAPTER.nll(model, batch, Draw(3))
        parts = [ADAPTER.nll(model, part(batch, slice(i, i + 2)), Draw(3)) for i in (0, 2, 4)]
    assert whole.num_tokens == sum(p.num_tokens for p in parts) == 54
    assert_close(torch.cat([p.nats for p in parts]), whole.nats, rtol=1e-5, atol=1e-5)


@each_variant
def test_training_loss_is_the_mean_over_micro_batches(variant):
    model = make_model(variant)
    batch = make_batch()
    whole = ADAPTER.training_loss(model, batch, Step(4, 0.5, 0)).value
    halves = [
        ADAPTER.training_loss(model, part(batch, rows), Step(4, 0.5, 0, micro_step=i)).value
        for i, rows in enumerate((slice(0, 3), slice(3, 6)))
    ]
    assert_close(sum(halves) / 2, whole, rtol=1e-5, atol=1e-5)


def part(batch: Batch, rows: slice) -> Batch:
    scored = None if batch.scored is None else batch.scored[rows]
    return dataclasses.replace(
        batch,
        tokens=batch.tokens[rows],
        documents=batch.documents[rows],
        rows=batch.rows[rows],
        scored=scored,
    )


def test_training_and_validation_draw_different_noise():
    """The same seed and number give a step and a draw noise of their own."""
    model, batch = make_model(), make_batch(1)
    with torch.no_grad():
        scores = {float(ADAPTER.nll(model, batch, Draw(0, n)).nats / LENGTH) for n in range(4)}
        losses = {
            float(ADAPTER.training_loss(model, batch, Step(n, 0.0, 0)).value) for n in range(4)
        }
        again = float(ADAPTER.nll(model, batch, Draw(0, 2)).nats / LENGTH)
    assert len(scores | losses) == 8
    assert again in scores


def watched(model: MDLM) -> list[Tensor]:
    """The windows that the network reads from now on."""
    seen: list[Tensor] = []
    features = model.net.features

    def spy(tokens: Tensor, time: Tensor | None = None) -> Tensor:
        seen.append(tokens)
        return features(tokens, time)

    model.net.features = spy  # type: ignore[method-assign]
    return seen


def test_context_and_unscored_tokens_are_never_masked():
    model = make_model()
    seen = watched(model)
    scored = torch.ones(6, LENGTH, dtype=torch.bool)
    scored[:, 6:] = False
    batch = make_batch(scored=scored)
    for number in range(20):
        with torch.no_grad():
            ADAPTER.nll(model, batch, Draw(0, number))
    for tokens in seen:
        assert torch.equal(tokens[:, 0], batch.tokens[:, 0])
        assert torch.equal(tokens[:, 7:], batch.tokens[:, 7:])
        assert int((tokens == VOCAB).sum()) > 0


def test_a_visible_token_reaches_both_sides_and_a_hidden_one_neither():
    model = make_model()
    window = make_batch(1).tokens
    place = LENGTH // 2
    hidden = window.clone()
    hidden[:, [place - 2, place + 2]] = VOCAB
    changed = hidden.clone()
    changed[:, place] = (changed[:, place] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(hidden) - model(changed)).abs().amax(-1)[0]
    assert min(float(difference[place - 2]), float(difference[place + 2])) > 1e-4
    # What stands under a mask is an input of nothing: only the loss there reads it.
    masked = torch.zeros(1, LENGTH, dtype=torch.bool)
    masked[0, place] = True
    other = window.clone()
    other[:, place + 1] = (other[:, place + 1] + 1) % VOCAB
    seen = watched(model)
    loss = network_loss(model.net, window[:, :1], VOCAB)
    with torch.no_grad():
        loss(window[:, 1:], masked, torch.zeros(1))
        loss(other[:, 1:], masked, torch.zeros(1))
    assert torch.equal(seen[0], seen[1])


def test_logits_of_clean_tokens_change_no_loss():
    """Carry-over: the loss and its gradient read the masked rows alone."""
    model = make_model()
    batch = make_batch(1)
    masked = torch.zeros(1, LENGTH, dtype=torch.bool)
    masked[0, 3] = True
    losses = network_loss(model.net, batch.tokens[:, :1], VOCAB)(
        batch.tokens[:, 1:], masked, torch.zeros(1)
    )
    assert float(losses[0, 3].detach()) > 0
    assert float(losses[~masked].detach().abs().sum()) == 0


def test_loss_is_that_of_the_released_code_for_its_schedule():
    """Its weight d_sigma / expm1(sigma) of the log-linear noise is 1/t: the sum over masked tokens
    at one time for all, over L."""
    model = make_model()
    batch = make_batch(4)
    t = torch.tensor([0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    masked = torch.rand(4, LENGTH, generator=seeded_generator(2), dtype=torch.float64) < t[:, None]
    sigma = -torch.log1p(-t)
    weight = (1 / (1 - t)) / torch.expm1(sigma)
    assert_close(weight, model.schedule.weight(t), rtol=1e-12, atol=0)
    corrupted = torch.where(masked, VOCAB, batch.tokens[:, 1:])
    with torch.no_grad():
        logits = model(torch.cat([batch.tokens[:, :1], corrupted], 1))[:, 1:]
        losses = nn.functional.cross_entropy(logits.mT, batch.tokens[:, 1:], reduction="none")
        ours = network_loss(model.net, batch.tokens[:, :1], VOCAB)(batch.tokens[:, 1:], masked, t)
    assert_close(ours, losses * masked, rtol=1e-5, atol=1e-5)


def test_inspection_runs_from_one_masked_token_to_all():
    model = make_model()
    found = ADAPTER.inspect(model, [make_batch()], None)  # type: ignore[arg-type]
    (curve,) = found.pictures
    points = curve.series["masked tokens"]  # type: ignore[union-attr]
    assert points[0][0] == pytest.approx(1 / LENGTH)
    assert points[-1][0] == 1
    window = make_batch().tokens
    everything = torch.cat([window[:, :1], torch.full((6, LENGTH), VOCAB)], 1)
    with torch.no_grad():
        logits = model(everything)[:, 1:]
        expected = nn.functional.cross_entropy(logits.mT, window[:, 1:])
    assert found.metrics["nats_all_masked"] == pytest.approx(float(expected), rel=1e-5)


def test_flops_are_counted_by_hand():
    blocks, head = 2 * 12 * 32**2, VOCAB * 32
    expected = 6 * (blocks + head / 2) + 12 * 2 * 32 * LENGTH
    assert ADAPTER.flops_per_token(config(), LENGTH) == expected


def test_roles_give_muon_the_blocks_alone():
    model = make_model("adaln")
    roles = ADAPTER.parameter_roles(model)
    parts = ("qkv", "out", "up", "down")
    matrices = {name for name, role in roles.items() if role == "matrix"}
    assert matrices == {f"net.blocks.{i}.{part}.weight" for i in range(2) for part in parts}
    assert roles["net.head.weight"] == "head"
