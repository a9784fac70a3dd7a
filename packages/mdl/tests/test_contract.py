from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.commands import cli
from nanozoo_core.testing import TINY
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
