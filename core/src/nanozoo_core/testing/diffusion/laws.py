"""Laws of every diffusion model, which each package checks on small models of its own.

class TestBound(BoundLaws):
    models = SmallModels("sedd", VARIANTS, {"cond_dim": 8})

B windows, L scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nanozoo_core.config import TrainingConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw, Loss, PartialText, SamplingSettings, Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.diffusion.sampling import copies
from nanozoo_core.errors import ConfigError
from nanozoo_core.generation.denoising import denoised
from nanozoo_core.generation.text import draw_text
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.diffusion.models import (
    TRAINING_AS_PUBLISHED,
    Changes,
    SmallModels,
    reached,
    watch,
)

Refusals = Sequence[tuple[Changes, str]]


class Laws:
    """Each test that takes a `variant` runs with all of them, or with those that begin evenly."""

    models: SmallModels
    uneven: ClassVar[Sequence[str]] = ()
    """Variants that do not begin with even predictions."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", self.models.variants)
        if "even_variant" in metafunc.fixturenames:
            even = [name for name in self.models.variants if name not in self.uneven]
            metafunc.parametrize("even_variant", even)


class BoundLaws(Laws):
    """Training, score and statistics of whole models."""

    bound_alone: ClassVar[Changes] = {}
    """Settings with which training sees nothing but the bound."""

    def share_of_rows(self, variant: str) -> float:
        """How many rows of a window meet the head."""
        return 0.5

    def further_flops(self, variant: str) -> float:
        """Beside those of the network."""
        return 0.0

    def loss(self, model: Any, batch: Batch, number: int = 0, micro_step: int = 0) -> Loss:
        step = Step(number, 0.0, 0, micro_step=micro_step)
        return self.models.adapter.training_loss(model, batch, step)

    @torch.no_grad()
    def nats(self, model: Any, batch: Batch, number: int = 0) -> Tensor:
        return self.models.adapter.nll(model, batch, Draw(0, number)).nats

    # -- the score --------------------------------------------------------------------------------

    def test_first_score_is_that_of_even_predictions(self, even_variant: str) -> None:
        """ln V per token: in each draw where masks alone are predicted, else in the mean."""
        model = self.models.make(even_variant, moved=False)
        in_each = self.share_of_rows(even_variant) == 0.5
        nats = self.nats(model, self.models.windows(6 if in_each else 3500))
        expected = self.models.seq_len * math.log(self.models.vocab_size)
        if in_each:
            assert_close(nats, torch.full_like(nats, expected), rtol=1e-6, atol=0)
        else:
            error = float(nats.std()) / math.sqrt(len(nats))
            assert abs(float(nats.mean()) - expected) < 3 * error
            assert error < 0.03 * expected

    def test_score_does_not_depend_on_how_windows_are_batched(self, variant: str) -> None:
        model, adapter = self.models.make(variant), self.models.adapter
        batch = self.models.windows(scored=self.models.scored_before(4, -1))
        model = model.double()  # products of another number of rows are rounded differently
        with torch.no_grad():
            whole = adapter.nll(model, batch, Draw(3))
            parts = [adapter.nll(model, batch.take(slice(i, i + 2)), Draw(3)) for i in (0, 2, 4)]
        assert whole.num_tokens == sum(p.num_tokens for p in parts) == 54
        assert_close(torch.cat([p.nats for p in parts]), whole.nats, rtol=1e-9, atol=1e-9)

    def test_float32_scores_are_those_of_float64(self, variant: str) -> None:
        model, batch = self.models.make(variant), self.models.windows()
        single = self.nats(model, batch, 1)
        assert_close(single, self.nats(model.double(), batch, 1), rtol=1e-4, atol=1e-4)

    def test_bfloat16_scores_stay_within_a_percent(self, variant: str) -> None:
        """Products have 8 bits; softmax, sums and cancelling terms are wider."""
        model, batch = self.models.make(variant), self.models.windows(40)
        expected = self.nats(model, batch, 1)
        with torch.autocast("cpu", torch.bfloat16):
            found = self.nats(model, batch, 1)
        assert not torch.equal(found, expected)
        assert_close(found.sum(), expected.sum(), rtol=1e-2, atol=0)

    def test_unscored_tokens_stay_clean_and_cost_nothing(self, variant: str) -> None:
        model = self.models.make(variant)
        seen = watch(model)
        batch = self.models.windows(scored=self.models.scored_before(6))
        for number in range(20):
            self.nats(model, batch, number)
        if self.share_of_rows(variant) == 0.5:
            assert all(bool((tokens == self.models.vocab_size).any()) for tokens in seen)
        for number in range(5):
            self.loss(model, batch, number)
        length = self.models.seq_len + 1  # behind it a network may read the clean text as well
        for tokens in seen:
            assert torch.equal(tokens[:, 0], batch.tokens[:, 0])
            assert torch.equal(tokens[:, 7:length], batch.tokens[:, 7:])
        none = self.models.windows(scored=self.models.scored_before(0))
        assert float(self.nats(model, none).abs().sum()) == 0.0
        assert float(self.loss(model, none).value.detach()) == 0.0

    # -- training ---------------------------------------------------------------------------------

    def test_range_of_noise_in_training_leaves_the_score_as_it_is(self, variant: str) -> None:
        """The bound covers all noise whatever training saw, to the last bit."""
        whole = self.models.make(variant)
        restricted = self.models.make(variant, train_noise_min=0.2, train_noise_max=0.6)
        restricted.load_state_dict(whole.state_dict())
        batch = self.models.windows(40)
        assert torch.equal(self.nats(whole, batch, 1), self.nats(restricted, batch, 1))
        losses = [float(self.loss(model, batch).value.detach()) for model in (whole, restricted)]
        assert (losses[0] != losses[1]) == self.has_range(variant)

    def has_range(self, variant: str) -> bool:
        """Whether there is more than one level of noise."""
        return True

    def test_two_draws_of_each_window_are_two_windows_of_one_draw(self, variant: str) -> None:
        twice = self.models.make(variant, train_draws=2)
        once = self.models.make(variant)
        once.load_state_dict(twice.state_dict())
        batch = self.models.windows(scored=self.models.scored_before(4, -1))
        found = self.loss(twice, batch, 3).value
        assert_close(self.loss(once, copies(batch, 2), 3).value, found, rtol=1e-6, atol=0)
        halves = [self.loss(twice, batch.take(slice(i, i + 3)), 3) for i in (0, 3)]
        shares = [batch.take(slice(i, i + 3)).num_scored / batch.num_scored for i in (0, 3)]
        parts = [share * half.value for share, half in zip(shares, halves, strict=True)]
        assert_close(sum(parts), found, rtol=1e-5, atol=1e-5)
        assert torch.equal(self.nats(once, batch), self.nats(twice, batch))
        length = self.models.seq_len
        flops = [self.models.adapter.flops_per_token(m.config, length) for m in (once, twice)]
        assert flops[1] == 2 * flops[0]

    def test_training_loss_is_the_mean_over_micro_batches(self, variant: str) -> None:
        model, batch = self.models.make(variant), self.models.windows()
        whole = self.loss(model, batch, 4).value
        halves = [self.loss(model, batch.take(slice(3 * i, 3 * i + 3)), 4, i).value for i in (0, 1)]
        assert_close(sum(halves) / 2, whole, rtol=1e-5, atol=1e-5)

    def test_every_parameter_gets_a_gradient(self, variant: str) -> None:
        model = self.models.make(variant)
        self.loss(model, self.models.windows(40)).value.backward()
        assert reached(model) == {name for name, _ in model.named_parameters()}
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        if self.share_of_rows(variant) == 0.5:
            assert model.mask_id == self.models.vocab_size
        if model.mask_id is not None:
            assert float(model.net.embedding.weight.grad[model.mask_id].abs().sum()) > 0

    def test_only_the_head_learns_in_the_first_step(self) -> None:
        model = self.models.make(moved=False)
        self.loss(model, self.models.windows()).value.backward()
        assert reached(model) == {"net.head.weight", "net.head.bias"}

    def test_training_and_scoring_never_share_noise(self) -> None:
        """A step and a draw of one seed and number have noise of their own, the same each time."""
        model, batch = self.models.make(**self.bound_alone), self.models.windows()

        def score(number: int) -> float:
            return float(self.nats(model, batch, number).sum()) / batch.num_scored

        def loss(number: int) -> float:
            return float(self.loss(model, batch, number).value.detach())

        scores, losses = ([of(number) for number in range(4)] for of in (score, loss))
        assert [score(2), loss(2)] == [scores[2], losses[2]]
        assert len({*scores, *losses}) == 8
        assert min(abs(a - b) for a, b in zip(scores, losses, strict=True)) > 1e-4

    # -- statistics -------------------------------------------------------------------------------

    def test_score_is_marked_as_an_upper_bound(self) -> None:
        assert self.models.adapter.likelihood == "upper"

    def test_roles_give_muon_the_blocks_alone(self, variant: str) -> None:
        model = self.models.make(variant)
        if model.net.time_embedding is not None:  # wide enough for Muon, if it were asked
            model = self.models.make(variant, cond_dim=64)
        matrices = {f"net.blocks.{i}.{part}.weight" for i in (0, 1) for part in
                    ("qkv", "out", "up", "down")}  # fmt: skip
        expected = {
            name: "matrix" if name in matrices else "vector" for name, _ in model.named_parameters()
        }
        expected["net.embedding.weight"] = "embedding"
        if model.net.head is not None:
            expected["net.head.weight"] = "head"
        assert self.models.adapter.parameter_roles(model) == expected

    def test_flops_are_counted_by_hand(self, variant: str) -> None:
        width, length = self.models.model_dim, self.models.seq_len
        blocks, head = 2 * 12 * width**2, self.models.vocab_size * width
        expected = 6 * (blocks + self.share_of_rows(variant) * head) + 12 * 2 * width * length
        found = self.models.adapter.flops_per_token(self.models.config(variant), length)
        assert found == expected + self.further_flops(variant)


class LearningLaws(Laws):
    """What a short training reaches."""

    num_steps = 200
    changes: ClassVar[Changes] = {}
    """Settings of the training."""

    def test_one_draw_is_learned_by_heart(self, variant: str) -> None:
        """The same windows under the same noise: the loss, and each of its terms where they are
        shown apart, falls far below where it starts."""
        model, batch = (
            self.models.make(variant, moved=False, **self.changes),
            self.models.windows(4),
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        history = []
        for _ in range(self.num_steps):
            loss = self.models.adapter.training_loss(model, batch, Step(0, 0.0, 0))
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
            history.append(loss.metrics or {"loss": loss.value.detach()})
        # The loss jumps up now and then, at steps that depend on rounding, and so on the number of
        # threads; so its lowest of the last steps is what counts.
        for name, first in history[0].items():
            assert min(float(found[name]) for found in history[-20:]) < 0.25 * float(first)


class SamplerLaws(Laws):
    """Texts of whole models, from windows with holes and prompts."""

    def infill(self, model: Any, window: PartialText, seed: int, **settings: Any) -> list[int]:
        chosen, generator = SamplingSettings(**settings), seeded_generator(seed)
        return denoised(self.models.adapter, model, [], window, [], chosen, generator)

    def blocks(self, model: Any, prompt: list[int], max_tokens: int, seed: int) -> list[list[int]]:
        settings = SamplingSettings(max_tokens=max_tokens)
        adapter, generator = self.models.adapter, seeded_generator(seed)
        return list(draw_text(adapter, model, prompt, settings, generator))

    def after(self, token: int) -> list[int | None]:
        """A window of holes behind one token."""
        return [token, *[None] * self.models.seq_len]

    def are_tokens(self, text: Sequence[int | None]) -> bool:
        return all(token in range(self.models.vocab_size) for token in text)

    def test_known_tokens_stay_wherever_they_stand_and_no_hole_is_left(self, variant: str) -> None:
        model = self.models.make(variant).eval()
        holes = (1, 2, 4, 7, 8, 9, 11)
        window = [None if i in holes else i + 1 for i in range(self.models.seq_len + 1)]
        results = set()
        for seed in range(25):
            steps: list[PartialText] = []
            filled = self.infill(model, window, seed, on_step=steps.append)
            assert self.are_tokens(filled)
            for state in [*steps, filled]:
                assert all(known in (None, got) for known, got in zip(window, state, strict=True))
            assert steps[0] == window
            assert steps[-1] == filled
            assert len(steps) > 1
            results.add(tuple(filled))
        assert len(results) > 10

    def test_window_without_holes_stays(self, variant: str) -> None:
        window = list(range(self.models.seq_len))
        assert self.infill(self.models.make(variant), window, 0) == window

    @pytest.mark.parametrize("max_tokens", [1, 7, 12, 40])
    def test_text_goes_on_to_any_length(self, variant: str, max_tokens: int) -> None:
        model = self.models.make(variant).eval()
        blocks = self.blocks(model, [3, 4], max_tokens, 1)
        text = [token for block in blocks for token in block]
        assert len(text) == max_tokens
        assert self.are_tokens(text)
        assert len(blocks[0]) == min(max_tokens, self.models.seq_len - 1)
        chunk = model.config.chunk_size
        assert all(len(block) == chunk for block in blocks[1:-1])
        assert len(blocks) == 1 or len(blocks[-1]) <= chunk

    def test_network_reads_windows_of_the_trained_length(self, variant: str) -> None:
        """Whatever is asked for: a few tokens, a gap, or text beyond a window."""
        model = self.models.make(variant).eval()
        seen = watch(model)
        self.blocks(model, [3, 4], 3, 1)
        self.infill(model, [1, None, None, 2], 0)
        self.blocks(model, [*range(self.models.seq_len + 3)], 2, 1)
        assert len(seen) > 3
        assert {tokens.shape[1] for tokens in seen} == {self.models.seq_len + 1}

    def test_text_is_a_function_of_the_seed(self, variant: str) -> None:
        model = self.models.make(variant).eval()
        assert self.blocks(model, [1], 20, 1) == self.blocks(model, [1], 20, 1)
        assert self.blocks(model, [1], 20, 1) != self.blocks(model, [1], 20, 2)

    def test_empty_prompt_is_refused(self) -> None:
        with pytest.raises(ValueError, match="separator"):
            self.blocks(self.models.make(), [], 3, 0)

    def test_greedy_and_cut_sampling_run_with_zero_probabilities(self, variant: str) -> None:
        model = self.models.make(variant).eval()
        for settings in ({"temperature": 0}, {"top_k": 1, "top_p": 0.5}):
            assert self.are_tokens(self.infill(model, self.after(1), 5, **settings))


class ConfigLaws:
    """Every refusal names its key, its value and what would be right."""

    model: str
    refusals: Refusals
    """Settings of the package that are wrong, and what is said of them."""
    wrong: Changes
    """One setting of the package that is wrong."""
    paper_sizes: Sequence[tuple[Changes, float]]
    """Settings at the paper's scale, with the millions of parameters."""
    shared_refusals: ClassVar[Refusals] = [
        ({"model_dim": 128, "num_heads": 5}, r"num_heads=5 does not divide .*model_dim=128"),
        ({"model_dim": 12, "num_heads": 4}, r"num_heads=4 makes heads of odd width 3"),
        ({"num_layers": 0}, r"num_layers=0 must be at least 1"),
        ({"vocab_size": 1}, r"vocab_size=1 must be at least 2"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"locality": -0.5}, r"locality=-0.5 must not be negative"),
        ({"train_noise_min": 0.7}, r"train_noise_min=0.7 and .*train_noise_max=0.6 must be"),
        ({"train_noise_max": 1.5}, r"train_noise_max=1.5 must be in \[0, 1\], the first below"),
        ({"train_draws": 0}, r"train_draws=0 must be at least 1"),
        ({"seq_len": 64, "sar_chunk_size": 64}, r"sar_chunk_size=64 must be .*seq_len=64"),
    ]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "refusal" in metafunc.fixturenames:
            metafunc.parametrize("refusal", [*self.shared_refusals, *self.refusals], ids=str)
        if "paper_size" in metafunc.fixturenames:
            metafunc.parametrize("paper_size", self.paper_sizes, ids=str)

    def made(self, **changes: object) -> Any:
        """The config that ships, changed."""
        return model_config(self.model, changes)

    def test_wrong_setting_is_refused(self, refusal: tuple[Changes, str]) -> None:
        changes, message = refusal
        with pytest.raises(ConfigError, match=message):
            self.made(**changes)

    def test_all_problems_are_reported_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            self.made(num_layers=0, dropout=2.0, **self.wrong)
        assert len(caught.value.problems) == 3

    def test_window_longer_than_the_model_is_refused(self) -> None:
        data = {"seq_len": 512}
        training = from_defaults(TrainingConfig, model=self.model, model_cfg={}, data=data)
        (problem,) = self.made(seq_len=256).check_training(training)
        assert "data.seq_len=512" in problem
        assert self.made(seq_len=512).check_training(training) == []

    def test_a_quarter_of_the_window_is_new_where_text_goes_on(self) -> None:
        assert self.made(seq_len=256).chunk_size == 64

    def test_size_at_paper_scale(self, paper_size: tuple[Changes, float]) -> None:
        changes, millions = paper_size
        scale = {"model_dim": 768, "num_layers": 12, "num_heads": 12}
        settings = {**scale, **TRAINING_AS_PUBLISHED, **changes}
        config = self.made(vocab_size=50257, seq_len=1024, **settings)
        with torch.device("meta"):
            model = load_adapter(self.model).make_model(config)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
