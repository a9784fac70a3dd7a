"""What a short training by AdamW reaches, in the form of 2017 and as the control, beside gpt2."""

import pytest

from nanozoo_core.testing.source_code import held_out_bits, trained

STEPS = 80
RATES = (3e-3, 1e-2)


def bits(model, seed, rate, **changes):
    optim = {"name": "adamw", "lr": rate, "warmup": 0.1, "decay_fraction": 0.7}
    return held_out_bits(*trained(model, seed, STEPS, optim, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_four_layers_of_2017_and_the_control_learn_as_fast_as_gpt2(seed):
    """Norms before the layers pay with depth; gpt2's small embeddings start slowly."""
    pytest.importorskip("nanozoo_gpt2", reason="needs gpt2 as well, as `nox -s slow` installs it")
    gpt2 = min(bits("gpt2", seed, rate) for rate in RATES)
    first = min(bits("vanilla", seed, rate, preset="v0") for rate in RATES)
    control = min(bits("vanilla", seed, rate) for rate in RATES)
    assert first < gpt2 + 0.1
    assert control < gpt2 - 0.2
