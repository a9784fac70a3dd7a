"""The bound that training and validation print, on the enumerable source and on whole models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from nanozoo_core.config import model_config
from nanozoo_core.contract import Draw, Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.diffusion.bounds import network_loss
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import toy
from nanozoo_core.testing.diffusion.exact import exact_masked_bound
from nanozoo_core.testing.diffusion.laws import BoundLaws
from nanozoo_core.testing.diffusion.models import TRAINING_AS_PUBLISHED, SmallModels, watch
from nanozoo_core.testing.sources import batch_of
from nanozoo_mdl.model import MDLM

COSINE = {"time_conditioning": True, "cond_dim": 8, "sampler": "ancestral"}
VARIANTS = {
    "plain": {},
    "times": {"time_sampler": "t"},
    "iid": {"stratified": False},
    "cosine-timed": COSINE | {"alpha_type": "cosine"},
    "squared-timed": COSINE | {"alpha_type": "cosine_sq"},
    "adaln": {"adaln_when_unconditioned": True, "cond_dim": 8},
    "tied": {"tie_embeddings": True},
    "steps": {"continuous_time": False, "num_timesteps": 6},
    "published": {"locality": 0.0},
    "blocks": {"block_size": 4},
    "blocks-timed": {"block_size": 3, "time_conditioning": True, "cond_dim": 8},
    "blocks-steps": {"block_size": 4, "continuous_time": False, "num_timesteps": 6},
    "blocks-times": {"block_size": 5, "time_sampler": "t"},
    "tokens": {"block_size": 1},
}
MODELS = SmallModels("mdl", VARIANTS, {})
VOCAB, LENGTH = MODELS.vocab_size, MODELS.seq_len
ADAPTER = load_adapter("mdl")


class TestBound(BoundLaws):
    models = MODELS
    uneven = ("tied",)

    def has_range(self, variant: str) -> bool:
        """A block of one token has one mask."""
        return variant != "tokens"

    def further_flops(self, variant: str) -> float:
        """Windows of 10 in blocks: clean text of all but the last one beside them, which noised
        tokens see and whose tokens see each other, and (N - 1) / 2 more masked tokens of 10."""
        settings = VARIANTS[variant]
        size = settings.get("block_size", LENGTH)
        num_blocks = math.ceil(LENGTH / size)
        num_clean, width = size * (num_blocks - 1), MODELS.model_dim
        weights = 2 * 12 * width**2 * num_clean / LENGTH
        pairs = (LENGTH * num_clean + num_clean**2) / LENGTH
        masked = 0 if settings.get("time_sampler") == "t" else (num_blocks - 1) / 2 / LENGTH
        return 6 * (weights + masked * VOCAB * width) + 12 * 2 * width * pairs


def toy_model(blur: float = 0.0, **changes: object) -> MDLM:
    """Its network knows the source. With `blur` it mixes in an even guess, the more the later the
    time."""

    def table(windows: Tensor, sigma: Tensor) -> Tensor:
        guess = blur * (1 - (-sigma.double()).exp())[:, None, None]  # of sigma: 1 - alpha
        return ((1 - guess) * toy.masked_denoiser(windows).exp() + guess / 3).log()

    settings: dict[str, object] = {"vocab_size": 3, "seq_len": 3, "model_dim": 4, "num_heads": 1}
    settings["sampler"] = "ancestral"  # which reads alpha_type
    model = MDLM(model_config("mdl", settings | TRAINING_AS_PUBLISHED | changes))
    model.net = toy.TableNetwork(table)  # type: ignore[assignment]
    return model


def toy_nats(model: MDLM, num_windows: int = 20_000) -> tuple[float, float]:
    """Mean of the shipped estimator over sequences of the source, and its standard error, with
    -log p of the sequence, whose mean is the entropy, as a control variate."""
    batch = toy.batch(num_windows)
    with torch.no_grad():
        nats = ADAPTER.nll(model, batch, Draw(0)).nats
        nats = nats + toy.joint()[toy.code(batch.tokens[:, 1:])].log()
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
    batch = toy.batch(20_000)
    score, error = toy_nats(toy_model(blur))
    for changes in ({}, {"time_sampler": "t", "t_min": 0.0}, {"stratified": False}):
        model = toy_model(blur, **changes)
        losses = []
        for number in range(20):
            rows = batch_of(batch.tokens[1000 * number : 1000 * (number + 1)])
            with torch.no_grad():
                loss = ADAPTER.training_loss(model, rows, Step(number, 0.0, 0))
            losses.append(3 * float(loss.value))
        means = torch.tensor(losses, dtype=torch.float64)
        own = float(means.std()) / math.sqrt(len(means))
        assert abs(float(means.mean()) - score) < 3 * math.hypot(own, error)


def test_training_from_a_later_time_is_no_score():
    """t_min = 0.1 loses a tenth of the integral; the validation of the same model does not."""
    model = toy_model(time_sampler="t", t_min=0.1)
    with torch.no_grad():
        loss = ADAPTER.training_loss(model, toy.batch(20_000), Step(0, 0.0, 0))
    assert 3 * float(loss.value) == pytest.approx(2.3671, abs=0.05)
    mean, error = toy_nats(model)
    assert abs(mean - toy.ENTROPY) < 3 * error


# -- whole models ---------------------------------------------------------------------------------


def test_even_predictions_cost_ln_v_in_training():
    """k form: the weight is 1/k times k losses of ln V. t form: in the mean alone."""
    batch = MODELS.windows(10)
    model, by_time = MODELS.make(moved=False), MODELS.make("times", moved=False, t_min=0.0)
    with torch.no_grad():
        loss = ADAPTER.training_loss(model, batch, Step(0, 0.0, 0)).value
        timed = [
            float(ADAPTER.training_loss(by_time, batch, Step(n, 0.0, 0)).value) for n in range(100)
        ]
    assert float(loss) == pytest.approx(math.log(VOCAB), rel=1e-6)
    mean, error = torch.tensor(timed).mean(), torch.tensor(timed).std() / 10
    assert error > 1e-3
    assert abs(float(mean) - math.log(VOCAB)) < 4 * float(error)


def test_a_visible_token_reaches_both_sides_and_a_hidden_one_neither():
    model = MODELS.make()
    window = MODELS.windows(1).tokens
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
    seen = watch(model)
    loss = network_loss(model.net, window[:, :1], VOCAB)
    with torch.no_grad():
        loss(window[:, 1:], masked, torch.zeros(1))
        loss(other[:, 1:], masked, torch.zeros(1))
    assert torch.equal(seen[0], seen[1])


def test_logits_of_clean_tokens_change_no_loss():
    """Carry-over: the loss and its gradient read the masked rows alone."""
    model = MODELS.make()
    batch = MODELS.windows(1)
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
    model = MODELS.make()
    batch = MODELS.windows(4)
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
    model = MODELS.make()
    found = ADAPTER.inspect(model, [MODELS.windows()], None)  # type: ignore[arg-type]
    (curve,) = found.pictures
    points = curve.series["masked tokens"]  # type: ignore[union-attr]
    assert points[0][0] == pytest.approx(1 / LENGTH)
    assert points[-1][0] == 1
    window = MODELS.windows().tokens
    everything = torch.cat([window[:, :1], torch.full((6, LENGTH), VOCAB)], 1)
    with torch.no_grad():
        logits = model(everything)[:, 1:]
        expected = nn.functional.cross_entropy(logits.mT, window[:, 1:])
    assert found.metrics["nats_all_masked"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("alpha_type", "alpha"),
    [
        ("linear", lambda t: 1 - t),
        ("cosine", lambda t: math.cos(math.pi / 2 * t)),
        ("cosine_sq", lambda t: math.cos(math.pi / 2 * t) ** 2),
    ],
)
def test_network_is_told_sigma_of_the_named_schedule(alpha_type, alpha):
    """-log alpha(t), up to 14, by the score and by a plain forward pass."""
    model = MODELS.make("cosine-timed", alpha_type=alpha_type)
    times = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    expected = [-math.log(max(alpha(t), math.exp(-14))) for t in times.tolist()]
    assert model.time_input(times).tolist() == pytest.approx(expected, rel=1e-9)
    tokens = MODELS.windows(4).tokens
    with torch.no_grad():
        assert_close(model(tokens, times), model.net(tokens, torch.tensor(expected)))


def test_strata_hold_every_number_of_masks_once():
    """Of as many windows as there are scored tokens; training can do without, the score cannot."""
    batch = MODELS.windows(LENGTH)
    evenly = list(range(1, LENGTH + 1))
    for variant in ("plain", "iid"):
        model = MODELS.make(variant)
        seen = watch(model)
        with torch.no_grad():
            ADAPTER.nll(model, batch, Draw(0))
            ADAPTER.training_loss(model, batch, Step(0, 0.0, 0))
        scored, trained = (sorted((tokens == VOCAB).sum(1).tolist()) for tokens in seen)
        assert scored == evenly
        assert (trained == evenly) == (variant == "plain")


def test_inspection_asks_at_the_noise_of_each_share():
    """Whatever the schedule, sigma is -log of the clean share; even predictions cost ln V there."""
    model = MODELS.make("squared-timed", moved=False)
    told = []
    model.net.time_embedding.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    found = ADAPTER.inspect(model, [MODELS.windows(3)], None)
    (curve,) = found.pictures
    shares, losses = zip(*curve.series["masked tokens"], strict=True)
    assert losses == pytest.approx([math.log(VOCAB)] * len(losses), rel=1e-6)
    expected = [-math.log(max(1 - share, math.exp(-14))) for share in shares]
    assert [float(sigma[0]) for sigma in told] == pytest.approx(expected, rel=1e-5)
