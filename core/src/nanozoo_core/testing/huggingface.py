"""Checks of the way to transformers and back, for the packages that have one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.errors import CheckpointError
from nanozoo_core.testing.laws import assert_same_tensors


def tokens() -> Tensor:
    """(2, 32) of 97."""
    return torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(0))


def assert_written_back(source: Mapping[str, Tensor], back: Mapping[str, Tensor]) -> None:
    """Weights read from transformers and written again are theirs to the bit, but for a head that
    repeats the embedding, which need not be written."""
    assert set(source) - set(back) <= {"lm_head.weight"}
    assert_same_tensors(back, {name: source[name] for name in source if name in back})


class HuggingFaceLaws:
    """What holds for a model of transformers, the fixture `theirs`, and for what the package's
    module `way` makes of it, the fixture `ours`; which read `tokens`."""

    way: ModuleType
    depth: str
    """Their name for the number of layers."""

    @torch.no_grad()
    def test_logits_agree(self, theirs: Any, ours: Any) -> None:
        expected = theirs(tokens()).logits
        torch.testing.assert_close(ours(tokens()), expected, rtol=0, atol=1e-5)

    def test_weights_make_the_round_trip_bit_for_bit(self, theirs: Any, ours: Any) -> None:
        assert_written_back(theirs.state_dict(), self.way.to_hf_state_dict(ours))

    @torch.no_grad()
    def test_transformers_loads_what_is_saved(self, theirs: Any, ours: Any, tmp_path: Path) -> None:
        self.way.save_pretrained(ours, tmp_path / "first")
        model = self.way.load_pretrained(tmp_path / "first").eval()
        self.way.save_pretrained(model, tmp_path / "second")
        loaded = type(theirs).from_pretrained(tmp_path / "second").eval()
        expected = ours(tokens())
        torch.testing.assert_close(loaded(tokens()).logits, expected, rtol=0, atol=1e-5)

    def test_weights_of_another_shape_are_refused(self, ours: Any, tmp_path: Path) -> None:
        self.way.save_pretrained(ours, tmp_path)
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {self.depth: config[self.depth] - 1}))
        with pytest.raises(CheckpointError, match="do not fit the config"):
            self.way.load_pretrained(tmp_path)

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            self.way.load_pretrained(tmp_path)
