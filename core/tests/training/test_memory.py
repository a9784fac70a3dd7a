"""Sizes that no memory holds: refused before anything is allocated, and never wrongly."""

from __future__ import annotations

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError, all_divisors, divisors
from nanozoo_core.machine.memory import addressable, total_memory_bytes
from nanozoo_core.training import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("room_for", [1.0, 0.99])
def test_the_estimate_is_a_lower_bound(room_for: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds just the parameters is enough, one that lacks a hundredth is not."""
    adapter, config = load_adapter("toy"), model_config("toy", {"model_dim": 32})
    count = sum(p.numel() for p in adapter.make_model(config).parameters())
    monkeypatch.setattr(memory, "total_memory_bytes", lambda _: int(4 * count * room_for))
    if room_for == 1:
        memory.require_room_for_model(adapter, "toy", config, CPU, each=4)
        return
    with pytest.raises(ConfigError, match=r"toy with .*model_cfg\.model_dim=32.* has at least"):
        memory.require_room_for_model(adapter, "toy", config, CPU, each=4)


@pytest.mark.parametrize(
    "sizes", [{"model_dim": 10**9}, {"vocab_size": 10**12}, {"mlp_ratio": 1e30}]
)
def test_absurd_sizes_are_refused_at_once(sizes: dict[str, object]) -> None:
    config = model_config("toy", sizes)
    (key,) = sizes
    with pytest.raises(ConfigError, match=f"toy with .*model_cfg.{key}="):
        memory.require_room_for_model(load_adapter("toy"), "toy", config, CPU, each=4)


def test_other_errors_of_a_model_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), addressable("x"):
        raise RuntimeError("shapes differ")


def test_counting_draws_no_random_number() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    config = model_config("toy")
    memory.require_room_for_model(load_adapter("toy"), "toy", config, CPU, each=4)
    assert torch.equal(before, torch.get_rng_state())


def test_this_machine_knows_its_memory() -> None:
    found = total_memory_bytes(CPU)
    assert found is None or found > 2**28


def test_divisors_of_large_numbers_are_found_at_once() -> None:
    assert all_divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert all_divisors(1) == [1]
    assert all_divisors(10**18)[-1] == 10**18
    assert divisors(2**60).startswith("1, 2, 4, 8, 16, 32, 64, 128, ...")
