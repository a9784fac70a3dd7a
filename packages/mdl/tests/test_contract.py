from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.commands import cli
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing import TINY, ToyVocabulary
from nanozoo_core.testing.diffusion.contract import DiffusionContract
from nanozoo_core.testing.diffusion.models import AS_PUBLISHED


class TestContract(DiffusionContract):
    model = "mdl"
    tiny = TINY | AS_PUBLISHED | {"sampler": "ancestral_cache", "num_sampling_steps": 8}
    more_settings = ({"sampler": "confidence"}, {"sampler": "first_hitting"})
    gradient_steps = 3  # zero head, then zero output matrices, then what lies behind them
    entropy_steps = 600
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    noise_levels = (0.1, 0.9)

    def is_told_the_noise(self, config: Any) -> bool:
        return config.time_conditioning or config.adaln_when_unconditioned

    def test_cached_decoding_equals_full_recomputation(self) -> None:
        """No cache outlives a change anywhere in a bidirectional window; what is skipped are steps
        that change nothing."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        window = [1, None, None, 3, None, None, None, 2]
        states = [
            list(adapter.denoise(model, window, settings, seeded_generator(4)))
            for settings in (
                SamplingSettings(num_steps=40),
                SamplingSettings(num_steps=40, use_cache=False),
            )
        ]
        assert states[0] == states[1]

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
