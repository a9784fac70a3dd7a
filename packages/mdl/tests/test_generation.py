"""Infilling, text of any length and the samplers of whole models; their laws are core's tests."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.diffusion.laws import SamplerLaws
from nanozoo_core.testing.diffusion.models import sampler_models, watch
from nanozoo_core.testing.statistics import chi_square, chi_square_limit

SAMPLERS = ("ancestral", "ancestral_cache", "first_hitting", "confidence", "remask")
TIMED = {"time_conditioning": True, "cond_dim": 8}
VARIANTS = {
    f"{sampler}{suffix}": {"sampler": sampler, **changes}
    for sampler in SAMPLERS
    for suffix, changes in (("", {}), ("-timed", TIMED))
}


BLOCKS = {
    "blocks": {"block_size": 5, "sampler": "first_hitting"},
    "blocks-timed": {"block_size": 4, "sampler": "ancestral_cache", **TIMED},
    "blocks-remask": {
        "block_size": 4,
        "sampler": "remask",
        "remask_cap": 0.5,
        "num_sampling_steps": 8,
    },
    "tokens": {"block_size": 1, "sampler": "ancestral", "num_sampling_steps": 2},
}


class TestBlockSamplers(SamplerLaws):
    models = sampler_models("mdl", BLOCKS, {})

    test_network_reads_windows_of_the_trained_length = None  # but blocks

    def test_known_tokens_stay_wherever_they_stand_and_no_hole_is_left(self, variant):
        """Of a text that goes on, and of a block with a gap, which is the last."""
        model = self.models.make(variant).eval()
        gap = [8, None, 9] if model.config.block_size > 2 else [8, 9, None]
        for window in ([1, 2, *[None] * 11], [3, 4, 5, 6, 7, *gap]):
            results = set()
            for seed in range(10):
                steps = []
                filled = self.infill(model, window, seed, on_step=steps.append)
                assert self.are_tokens(filled)
                for state in [*steps, filled]:
                    pairs = zip(window, state, strict=True)
                    assert all(known in (None, got) for known, got in pairs)
                assert [steps[0], steps[-1]] == [window, filled]
                results.add(tuple(filled))
            assert len(results) > 4

    def test_remasking_takes_all_its_steps(self):
        """In the last block too, where a text without masks need not be the last one."""
        model = self.models.make("blocks-remask", remask_cap=1.0).eval()
        began_anew = 0
        for seed in range(20):
            steps = []
            self.infill(model, [1, 2, None, None], seed, num_steps=6, on_step=steps.append)
            began_anew += any(None not in step for step in steps[:-1])
        assert began_anew > 3

    def test_texts_appear_from_left_to_right_block_by_block(self):
        model = self.models.make("blocks").eval()
        steps = []
        self.infill(model, [1, 2, *[None] * 10], 0, on_step=steps.append)
        assert len(steps) == 11
        for state in steps:
            missing = [place for place, token in enumerate(state) if token is None]
            done = 5 * ((missing[0] - 1) // 5) if missing else 12
            assert None not in state[:done]
            assert all(token is None for token in state[done + 6 :])


class TestSamplers(SamplerLaws):
    models = sampler_models("mdl", VARIANTS, {})

    @pytest.mark.parametrize("suffix", ["", "-timed"])
    def test_cached_sampler_equals_the_plain_one_in_fewer_runs(self, suffix):
        plain, cached = (
            self.models.make(name + suffix).eval() for name in ("ancestral", "ancestral_cache")
        )
        runs = watch(plain), watch(cached)
        texts = [self.infill(model, self.after(1), 3, num_steps=200) for model in (plain, cached)]
        assert texts[0] == texts[1]
        assert len(runs[0]) == 200
        assert 1 < len(runs[1]) <= self.models.seq_len

    def test_first_hitting_takes_a_step_per_token_and_refuses_another_number(self):
        model = self.models.make("first_hitting").eval()
        runs = watch(model)
        self.infill(model, self.after(1), 0)
        assert len(runs) == self.models.seq_len
        with pytest.raises(ConfigError, match=r"num_steps=5 has no effect .*use ancestral_cache"):
            self.infill(model, self.after(1), 0, num_steps=5)

    def test_samplers_agree_on_the_law_of_one_hole(self):
        """One token from its conditional, whichever sampler draws it."""
        window: list[int | None] = [1, 2, None, *range(4, self.models.seq_len + 2)]
        with torch.no_grad():
            seen = [self.models.vocab_size if token is None else token for token in window]
            masked = torch.tensor([seen])
            law = self.models.make().eval()(masked)[0, 2].double().softmax(-1)
        for sampler in SAMPLERS:
            model = self.models.make(sampler).eval()
            steps = None if sampler == "first_hitting" else 2
            drawn = [self.infill(model, window, seed, num_steps=steps)[2] for seed in range(500)]
            counts = torch.bincount(torch.tensor(drawn), minlength=self.models.vocab_size)
            assert chi_square(counts, law) < chi_square_limit(19)

    @pytest.mark.parametrize("sampler", ["ancestral", "ancestral_cache", "confidence", "remask"])
    def test_greedy_drawing_in_one_step_takes_the_likeliest_tokens(self, sampler):
        model = self.models.make(sampler, num_sampling_steps=1).eval()
        filled = self.infill(model, self.after(1), 4, temperature=0)
        window = torch.tensor([[1, *[self.models.vocab_size] * self.models.seq_len]])
        with torch.no_grad():
            expected = model(window, torch.ones(1))[0, 1:].argmax(-1)
        assert filled[1:] == expected.tolist()

    def test_network_is_told_the_noise_of_each_step(self):
        """-log alpha at t = 1, 3/4, 1/2, 1/4 of the cosine schedule."""
        model = self.models.make("ancestral-timed", alpha_type="cosine").eval()
        told = []
        model.net.time_embedding.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
        self.infill(model, self.after(1), 0, num_steps=4)
        expected = [14.0, *(-math.log(math.cos(math.pi / 8 * n)) for n in (3, 2, 1))]
        assert [float(sigma[0]) for sigma in told] == pytest.approx(expected, rel=1e-5)

    def test_masks_fall_by_the_named_schedule(self):
        """After half of the time cos^2 leaves half of the masks, and cos 1 - 1 / sqrt 2 of them."""
        for alpha_type, share in (("cosine", 1 - math.sqrt(0.5)), ("cosine_sq", 0.5)):
            model = self.models.make("ancestral", alpha_type=alpha_type).eval()
            left = 0
            for seed in range(200):
                steps = []
                self.infill(model, self.after(1), seed, num_steps=2, on_step=steps.append)
                halfway = next(step for step in steps if step != steps[0])
                left += sum(token is None for token in halfway)
            num_masks = 200 * self.models.seq_len
            error = math.sqrt(share * (1 - share) / num_masks)
            assert abs(left / num_masks - share) < 4 * error

    def test_remasking_hides_at_most_the_share_asked_for(self):
        """In a step, of the tokens drawn before it."""
        for cap in (0.1, 1.0):
            model = self.models.make("remask", remask_cap=cap).eval()
            hidden = drawn = 0
            for seed in range(30):
                steps = []
                self.infill(model, self.after(1), seed, num_steps=8, on_step=steps.append)
                for old, new in pairwise(steps[3:6]):
                    known = [b for a, b in zip(old[1:], new[1:], strict=True) if a is not None]
                    drawn += len(known)
                    hidden += known.count(None)
            share = hidden / drawn
            if cap == 1.0:
                assert share > 0.5
            else:
                assert abs(share - cap) < 4 * math.sqrt(cap * (1 - cap) / drawn)

    def test_greedy_confidence_lifts_the_surest_first(self):
        """By the probability that the model gives, which a greedy choice would set to one."""
        model = self.models.make("confidence").eval()
        steps = []
        self.infill(model, self.after(1), 0, temperature=0, num_steps=2, on_step=steps.append)
        window = torch.tensor([[1, *[self.models.vocab_size] * self.models.seq_len]])
        with torch.no_grad():
            surest = model(window, torch.ones(1))[0, 1:].softmax(-1).amax(-1).topk(6).indices
        lifted = [place for place, token in enumerate(steps[1][1:]) if token is not None]
        assert lifted == sorted(surest.tolist())
