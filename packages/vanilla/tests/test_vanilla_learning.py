"""What a short training by AdamW reaches in the form of 2017 beside GPT-2's."""

import pytest

from nanozoo_core.testing.source_code import held_out_bits, trained

STEPS = 80


def bits(model, seed, rate, **changes):
    optim = {"name": "adamw", "lr": rate, "warmup": 0.1, "decay_fraction": 0.7}
    return held_out_bits(*trained(model, seed, STEPS, optim, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_four_layers_of_2017_start_faster_than_gpt2(seed):
    """Norms before the layers pay with depth, and gpt2's small embeddings start slowly. Either has
    the better of two rates."""
    pytest.importorskip("nanozoo_gpt2", reason="needs gpt2 as well, as `nox -s slow` installs it")
    first = min(bits("vanilla", seed, rate, preset="v0") for rate in (3e-3, 1e-2))
    assert first < min(bits("gpt2", seed, rate) for rate in (3e-3, 1e-2)) - 0.2
