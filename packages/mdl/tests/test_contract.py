from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nanozoo_core.commands import cli
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import TINY, ToyVocabulary
from nanozoo_core.testing.diffusion.contract import DiffusionContract
from nanozoo_core.testing.diffusion.models import AS_PUBLISHED


class TestContract(DiffusionContract):
    model = "mdl"
    tiny = TINY | AS_PUBLISHED | {"sampler": "ancestral_cache", "num_sampling_steps": 8}
    more_settings = (
        {"sampler": "confidence"},
        {"sampler": "first_hitting", "num_sampling_steps": 64},
    )
    gradient_steps = 3  # zero head, then zero output matrices, then what lies behind them
    entropy_steps = 600
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    noise_levels = (0.1, 0.9)
    key_forms = (
        {"sampler": "first_hitting", "num_sampling_steps": 64},  # the shipped sampler
        {},
        {"sampler": "first_hitting", "num_sampling_steps": 64, "time_sampler": "t"},
        {"sampler": "first_hitting", "num_sampling_steps": 64, "time_conditioning": True},
        {"continuous_time": False, "num_timesteps": 6},
        {"adaln_when_unconditioned": True},
    )
    decided_keys = {  # noqa: RUF012
        "continuous_time": "it and num_timesteps need each other, so that neither moves alone",
    }

    def is_told_the_noise(self, config: Any) -> bool:
        return config.time_conditioning or config.adaln_when_unconditioned

    def test_command_line_fills_the_middle_and_traces(
        self, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = str(self.run(self.overrides(corpus, tmp_path / "run", **{"train.max_steps": 2})))
        page = tmp_path / "steps.html"
        given = ("--prompt", "the cat ", "--suffix", " flat", "--max-tokens", "7")
        capsys.readouterr()
        cli.main(["generate", run, *given, "--trace", str(page), "--num-samples", "2"])
        first, second = capsys.readouterr().out.rstrip("\n").split("\n" + "-" * 80 + "\n")
        assert first != second
        for text in (first, second):
            assert text.startswith("the cat ")
            assert text.endswith(" flat")
        shown = page.read_text()
        assert '"caption":"seed 0"' in shown
        assert '"caption":"seed 1"' in shown

        one_by_one = ("model_cfg.sampler=first_hitting", "model_cfg.num_sampling_steps=64")
        for extra, message in (
            (("--max-tokens", "32"), "max_tokens=32 leaves no room .* use at most 31"),
            ((*one_by_one, "--num-steps", "4"), "num_steps=4 has no effect"),
        ):
            with pytest.raises(SystemExit):
                cli.main(["generate", run, *given, *extra])
            assert re.search(message, capsys.readouterr().err)


class TestBlockContract(DiffusionContract):
    """The same in blocks of two tokens, of which the three of the enumerable source make two."""

    model = "mdl"
    tiny = (
        TINY
        | AS_PUBLISHED
        | {"block_size": 2, "sampler": "ancestral_cache", "num_sampling_steps": 8}
    )
    more_settings = (
        {"sampler": "confidence"},
        {"sampler": "first_hitting", "num_sampling_steps": 64},
    )
    gradient_steps = 3
    entropy_steps = 600
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    noise_levels = (0.1, 0.9)

    def is_told_the_noise(self, config: Any) -> bool:
        return config.time_conditioning or config.adaln_when_unconditioned

    def test_a_change_leaves_earlier_predictions_untouched(self) -> None:
        """Those of earlier blocks: its own, whose first is the context's, and all later ones see
        it."""
        _, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        tokens = self.random_tokens(self.toy_vocab, 2)
        for place, first in ((0, 0), (2, 0), (3, 3), (16, 15), (32, 31)):
            changed = tokens.clone()
            changed[:, place] = (changed[:, place] + 1) % self.toy_vocab
            with torch.no_grad():
                difference = (model(tokens) - model(changed)).abs().amax((0, 2))
            assert float(difference[:first].sum()) == 0
            assert float(difference[first:].min()) > 0

    def test_cached_decoding_equals_full_recomputation(self) -> None:
        """Keys and values of finished blocks are kept."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        window = [1, 2, 3, 4, 5, 6, *[None] * 20]
        states = [
            list(adapter.denoise(model, window, settings, seeded_generator(4)))
            for settings in (
                SamplingSettings(num_steps=40),
                SamplingSettings(num_steps=40, use_cache=False),
            )
        ]
        assert states[0] == states[1]
        assert None not in states[0][-1]

    def test_command_line_writes_on_and_refuses_to_fill_the_middle(
        self, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = str(self.run(self.overrides(corpus, tmp_path / "run", **{"train.max_steps": 2})))
        capsys.readouterr()
        cli.main(["generate", run, "--prompt", "the cat ", "--max-tokens", "50"])
        assert capsys.readouterr().out.startswith("the cat ")
        with pytest.raises(SystemExit):
            cli.main(
                ["generate", run, "--prompt", "the ", "--suffix", " flat", "--max-tokens", "7"]
            )
        assert "block_size=2 writes block by block" in capsys.readouterr().err

    # What costs seconds in the plain form already differs from it in nothing but the network's
    # reading, which the quick tests of this class and of test_blocks.py check.

    @pytest.mark.slow
    def test_a_small_set_is_learned_by_heart(self) -> None:
        super().test_a_small_set_is_learned_by_heart()

    @pytest.mark.slow
    def test_a_known_source_is_approached_and_never_beaten(self) -> None:
        super().test_a_known_source_is_approached_and_never_beaten()

    @pytest.mark.slow
    def test_needs_no_other_model(self, corpus: Path, tmp_path: Path) -> None:
        super().test_needs_no_other_model(corpus, tmp_path)

    @pytest.mark.slow
    def test_split_run_equals_whole_run(self, corpus: Path, tmp_path: Path) -> None:
        super().test_split_run_equals_whole_run(corpus, tmp_path)

    @pytest.mark.slow
    def test_needs_no_float64_of_the_device(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        super().test_needs_no_float64_of_the_device(corpus, tmp_path, monkeypatch)

    @pytest.mark.slow
    def test_probabilities_of_all_texts_sum_to_one(self) -> None:
        super().test_probabilities_of_all_texts_sum_to_one()

    @pytest.mark.slow
    def test_a_checkpoint_scores_as_the_run_did(self, corpus: Path, tmp_path: Path) -> None:
        super().test_a_checkpoint_scores_as_the_run_did(corpus, tmp_path)

    @pytest.mark.slow
    def test_trains_in_float16_as_in_float32(self, corpus: Path, tmp_path: Path) -> None:
        super().test_trains_in_float16_as_in_float32(corpus, tmp_path)

    @pytest.mark.slow
    def test_an_overflow_in_float16_leaves_no_trace(self, corpus: Path, tmp_path: Path) -> None:
        super().test_an_overflow_in_float16_leaves_no_trace(corpus, tmp_path)
