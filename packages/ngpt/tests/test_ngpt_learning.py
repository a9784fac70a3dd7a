"""What a short training reaches beside gpt2 and the control, all with the optimiser of the paper."""

import pytest

from nanozoo_core.testing.source_code import held_out_bits, trained

NEEDS = "needs it as well, as `nox -s slow` installs it"
STEPS = 80


def bits(model, seed, rate, warmup, **changes):
    optim = {"name": "adamw", "lr": rate, "warmup": warmup, "decay_fraction": 0.7}
    return held_out_bits(*trained(model, seed, STEPS, optim, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_with_adamw_it_learns_faster_than_gpt2_and_the_control(seed):
    """The others at the best of three rates, their warm-up a tenth of the run."""
    pytest.importorskip("nanozoo_gpt2", reason=NEEDS)
    pytest.importorskip("nanozoo_vanilla", reason=NEEDS)
    ours = bits("ngpt", seed, 1.5e-2, 0.0)
    for other in ("gpt2", "vanilla"):
        assert ours < min(bits(other, seed, rate, 0.1) for rate in (1e-3, 3e-3, 1e-2)) - 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_it_needs_no_warm_up(seed):
    assert bits("ngpt", seed, 1.5e-2, 0.0) < bits("ngpt", seed, 1.5e-2, 0.1) + 0.03
