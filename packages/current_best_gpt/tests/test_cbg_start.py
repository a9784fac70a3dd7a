"""What every parameter, and every coefficient per token, is at first."""

import math

import pytest
import torch
from cbg_models import FULL, make_model, tokens_of

WIDTH = 96
STREAM_GAIN = math.sqrt(1.1)


@pytest.fixture(scope="module")
def model():
    model = make_model(FULL, vocab_size=400, model_dim=WIDTH, gate_dim=32, mudd_dim=24)
    return model.requires_grad_(False)


def expected_deviation(name):
    """None: a bias, which `coefficients` shows."""
    matrix = 0.5 / math.sqrt(WIDTH)
    by_end = {
        "embedding.weight": 0.005,
        "head.weight": 0.005,
        "bigram.table.weight": 0.0,
        "qkv.weight": matrix,
        "out.weight": matrix,
        "up.weight": matrix,
        "down.weight": 0.0,
        "w1": 1 / math.sqrt(3 * WIDTH),  # uniform within 1 / sqrt(WIDTH)
        "w2": 0.0,
        "value_gate": 0.0,
        "smear_gate": 0.0,
        "smear_scale": 0.0,
    }
    if name.startswith("tables."):
        return 0.01
    return next((value for end, value in by_end.items() if name.endswith(end)), None)


CONSTANTS = {
    "gains": [0.5, 1.0],
    "keep": [STREAM_GAIN] * 2,
    "add": [1.0] * 2,
    "skip": [-1.5],
    "gate_scale": [0.1],
}


def test_every_parameter_has_the_deviation_of_the_record(model):
    for name, parameter in model.named_parameters():
        constant = CONSTANTS.get(name.rpartition(".")[2])
        if constant is not None:
            assert parameter.tolist() == pytest.approx(constant), name
            continue
        deviation = expected_deviation(name)
        if deviation is None:
            assert name.endswith(".bias"), name
            continue
        size = parameter.square().mean().sqrt()
        assert float(size) == pytest.approx(deviation, rel=0.05), name
        assert abs(float(parameter.mean())) <= 4 * deviation / math.sqrt(parameter.numel()), name


def test_what_is_uniform_keeps_its_limits(model):
    for name, parameter in model.named_parameters():
        if name.endswith(("qkv.weight", "out.weight", "up.weight", "w1")):
            limit = math.sqrt(3) * expected_deviation(name)
            assert 0.95 * limit < float(parameter.abs().max()) <= limit * (1 + 1e-6), name


def test_head_and_embedding_are_equal_at_first(model):
    assert torch.equal(model.head.weight, model.embedding.weight)


def test_coefficients_begin_as_the_constants_of_the_record(model):
    gates, mixes = model.coefficients(tokens_of(1, 8))
    found = {(n, name): part for n, own in gates.items() for name, part in own.items()}
    expected = {
        (0, "x0"): 0.0,
        (0, "bigram"): 0.05,
        (1, "x0"): 0.0,
        (1, "bigram"): 0.05,
        (1, "xsa"): 0.0,
        (1, "attention"): 0.25,
        (2, "skip"): 0.5,
        (3, "attention"): 0.25,
        (3, "dc_read"): 1.0,
        (3, "dc_write"): 0.0,
    }
    assert found.keys() == expected.keys()
    last = {
        **{f"mudd_value_{source}": 0.0 for source in ("start", "snapshot", "stream")},
        **{f"mudd_stream_{source}": 0.0 for source in ("start", "snapshot", "stream")},
        "mudd_table": 2.0,
        "mudd_keep": STREAM_GAIN,
        "mudd_add": 1.0,
        "mudd_x0": 0.0,
        "mudd_bigram": 0.05,
        "mudd_mlp_keep": STREAM_GAIN,
        "mudd_mlp_add": 1.0,
        **{f"head_{source}": 0.0 for source in ("start", "entry", "table", "skip")},
        "head_snapshot": -0.5,
    }
    assert mixes.keys() == last.keys()
    for key, part in (found | mixes).items():
        right = torch.full_like(part, (expected | last)[key])
        torch.testing.assert_close(part, right, msg=str(key))


def test_the_backout_begins_with_its_share_taken_out():
    model = make_model(FULL, mudd=False, mudd_dim=32, backout=0.3)
    assert model.backout.tolist() == pytest.approx([-0.3])
