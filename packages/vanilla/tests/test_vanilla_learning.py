"""What a short training reaches beside gpt2."""

import pytest

from nanozoo_core.testing.source_code import held_out_bits, trained

STEPS = 120


def bits(model, seed, rate, **changes):
    optim = {"name": "adamw", "lr": rate, "warmup": 0.1, "decay_fraction": 0.7}
    return held_out_bits(*trained(model, seed, STEPS, optim, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_at_four_layers_the_form_of_2017_learns_as_gpt2_does(seed):
    pytest.importorskip("nanozoo_gpt2", reason="it is installed with all packages")
    ...
