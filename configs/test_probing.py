"""Every model takes part in `nanozoo probe`: it trains, is asked, and knew nothing before."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nanozoo_core import registry
from nanozoo_core.probing import member
from nanozoo_core.probing.request import parse

WORDS = ("control=none", "tokens=1500", "samples=32", "rates=1e-3", "seconds=600")


def small(model: str, task: str) -> member.Member:
    (one,) = parse([f"models={model}", f"tasks={task}", *WORDS]).members
    return dataclasses.replace(one, windows=8)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["parity", "mqar"])
@pytest.mark.parametrize("model", list(registry.model_modules()))
def test_a_model_is_probed(model: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few steps all numbers are there, none above what so few steps can teach, and the
    model is not said to read the future."""
    monkeypatch.setattr(member, "DEPTHS", (1, 2))
    monkeypatch.setattr(member, "HOLE_TUNING_SAMPLES", 4)
    monkeypatch.setattr(member, "HOLE_SAMPLES", 16)
    found: dict[str, Any] = member.run(small(model, task), tell=str)
    bar = max(found["guess"], found["chance"]) + 4 * (0.25 / 16) ** 0.5
    assert 0 <= found["untrained"] <= bar
    assert 0 <= found["score"] <= bar
    assert found["steps"] >= 2
    assert found["leak"] is None
