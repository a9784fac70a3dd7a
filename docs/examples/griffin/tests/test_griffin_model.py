"""Laws of Griffin alone."""

import math

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.decoding import check_ragged_rows
from nanozoo_griffin.model import Griffin
from nanozoo_griffin.recurrence import RGLRU

SMALL = {"num_layers": 3, "model_dim": 32, "num_heads": 2, "recurrent_dim": 24, "mlp_dim": 48,
         "window": 5, "vocab_size": 11}  # fmt: skip


def test_the_recurrence_is_that_of_the_paper():
    """Channel by channel and position by position, with whole gate matrices (equations 1 to 4)."""
    torch.manual_seed(0)
    lru = RGLRU(6, 3).double().requires_grad_(False)
    torch.nn.init.normal_(lru.recurrence_gate.bias)
    torch.nn.init.normal_(lru.input_gate.bias)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    gates = {}
    for name in ("recurrence", "input"):
        gate = getattr(lru, f"{name}_gate")
        whole = torch.block_diag(*gate.weight)
        gates[name] = torch.sigmoid(x @ whole.T + gate.bias)
    expected = torch.zeros(2, 9, 6, dtype=torch.float64)
    for b in range(2):
        for channel in range(6):
            a, h = 1 / (1 + math.exp(-float(lru.decay[channel]))), 0.0
            for t in range(9):
                a_t = a ** (8 * float(gates["recurrence"][b, t, channel]))
                entering = float(gates["input"][b, t, channel] * x[b, t, channel])
                h = a_t * h + math.sqrt(1 - a_t**2) * entering
                expected[b, t, channel] = h
    found, last = lru(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected[:, -1], rtol=1e-12, atol=1e-12)


def test_decays_start_where_the_paper_puts_them():
    torch.manual_seed(0)
    start = torch.sigmoid(RGLRU(4096, 1).decay) ** 8
    assert 0.8999 < float(start.min()) < 0.901
    assert 0.998 < float(start.max()) < 0.9991


def test_ragged_prompts_go_on_past_the_window():
    torch.manual_seed(0)
    model = Griffin(model_config("griffin", SMALL)).double().eval()
    tokens = torch.randint(11, (3, 30))
    lengths = torch.tensor([3, 14, 7])
    check_ragged_rows(load_adapter("griffin"), model, tokens, lengths, steps=12)


def test_the_memory_of_decoding_does_not_grow():
    model = Griffin(model_config("griffin", SMALL))
    report = load_adapter("griffin").report(model)
    assert report["cache_bytes_per_token"] == 0
    recurrent = 24 * (3 + 1)
    assert report["state_bytes"] == 4 * (2 * recurrent + 2 * 5 * 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "rx"}, "pattern=rx must be made of r and a"),
        ({"num_gate_blocks": 5}, "num_gate_blocks=5 does not divide model_cfg.recurrent_dim=176"),
        ({"num_heads": 5}, "num_heads=5 does not divide"),
        ({"conv_kernel": 1}, "conv_kernel=1 must be at least 2"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_config("griffin", changes)
