"""What a short training by the optimiser of the paper reaches beside gpt2 and the control."""

import pytest

from nanozoo_core.testing.source_code import held_out_bits, trained

STEPS = 80
NEEDS = "needs it as well, as `nox -s slow` installs it"


def bits(model, seed, rate, warmup):
    optim = {"name": "adamw", "lr": rate, "warmup": warmup, "decay_fraction": 0.7}
    return held_out_bits(*trained(model, seed, STEPS, optim))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_with_adamw_it_learns_faster_than_gpt2_and_the_control(seed):
    """Which have the better of two rates and a warm-up over a tenth of the run."""
    pytest.importorskip("nanozoo_gpt2", reason=NEEDS)
    pytest.importorskip("nanozoo_vanilla", reason=NEEDS)
    ours = bits("ngpt", seed, 1.5e-2, 0.0)
    assert ours < min(bits("gpt2", seed, rate, 0.1) for rate in (3e-3, 1e-2)) - 0.3
    assert ours < min(bits("vanilla", seed, rate, 0.1) for rate in (3e-3, 1e-2)) - 0.05


@pytest.mark.slow
def test_it_needs_no_warm_up():
    assert bits("ngpt", 0, 1.5e-2, 0.0) < bits("ngpt", 0, 1.5e-2, 0.1) + 0.03
