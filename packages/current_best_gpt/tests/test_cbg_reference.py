"""The model against the equations of the record, written out in float64: logits, loss, gradients.

Every parameter is moved from its start, so that what begins at zero or one takes part.
"""

from typing import Any

import pytest
import torch
from cbg_models import PLAIN, SEPARATOR, make_config
from cbg_reference import Reference, reference_loss

from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_current_best_gpt import schedule

ADAPTER = load_adapter("current_best_gpt")
LENGTH = 10

# Every list of layers differs from every other.
ALL: dict[str, Any] = {
    "vocab_size": 23,
    "num_layers": 6,
    "model_dim": 48,
    "num_heads": 6,  # so that the heads of a pair differ in parity
    "mlp_ratio": 1.5,
    "bigram_rows": 11,
    "bigram_sign_rows": 7,
    "document_mask": True,
    "window_pattern": "SLL-SL",
    "paired_layers": (0, 4),
    "value_embed_layers": (1, 4, 5),
    "xsa_layers": (1, 2),
    "attn_gate_layers": (2, 5),
    "dc_layers": (5,),
    "dc_window": 4,
    "snapshot_layer": 2,
    "skip": (1, 3),
    "gate_dim": 9,
    "gate_split_layer": 2,
    "mudd_dim": 5,
    "untie_at": 0.0,
    "stage_starts": (0.0, 0.5),
    "windows": ((3, 40), (3, 6)),  # so that YaRN finds fast and slow rotations
    "yarn": True,
    "mtp_weights": (((1.0, 0.5, 0.25), (1.0, 0.5, 0.0)), ((0.9, 0.4, 0.2), (0.8, 0.2, 0.1))),
    "prefix_weight": ((0.25, 0.25), (0.3, 0.1)),
}
WINDOWS = {"windows": ((3, 6),)}
OFF: dict[str, Any] = PLAIN | {"windows": ((LENGTH, LENGTH),)}
PAIRS: dict[str, Any] = WINDOWS | {"paired_layers": (1, 2), "num_heads": 6, "model_dim": 48}
TABLES = {"value_embed_layers": (1, 3)}
SNAPSHOT = {"snapshot_layer": 1}
MUDD = {"mudd": True, "mudd_dim": 5}

# Each ingredient put into the plain decoder.
ALONE: dict[str, dict[str, Any]] = {
    "none": {},
    "smear": {"smear": True},
    "smear across documents": {"smear": True, "reset_at_document": False},
    "bigram": {"bigram_rows": 11, "bigram_sign_rows": 7},
    "bigram across documents": {"bigram_rows": 11, "reset_at_document": False},
    "bigram, no attention first": {"bigram_rows": 11, "window_pattern": "-LLL"},
    "x0": {"x0_injection": True},
    "documents": {"document_mask": True},
    "windows": WINDOWS | {"window_pattern": "SLSL"},
    "last windows": WINDOWS | {"eval_window_long": 9},
    "pairs": PAIRS,
    "pairs of documents": PAIRS | {"document_mask": True},
    "tables": TABLES,
    "tables without gates": TABLES | {"value_gates": False},
    "constant gates": {"mudd": True, "attn_gate_layers": (0, 2), "gates_per_token": False},
    "fixed gains": {"attn_gate_layers": (0, 2), "learned_gains": False},
    "XSA": {"xsa_layers": (1, 2)},
    "XSA of values with tables": TABLES | {"xsa_layers": (1,)},
    "gates of heads": {"attn_gate_layers": (0, 2)},
    "mix of heads": {"dc_layers": (1,), "dc_window": 4},
    "mix of heads of documents": {"dc_layers": (1,), "dc_window": 4, "document_mask": True},
    "offset": {"key_offset": True, "window_pattern": "SLSL"},
    "offset across documents": {"key_offset": True, "reset_at_document": False},
    "shared input": SNAPSHOT | {"shared_attention_input": True},
    "backout": SNAPSHOT | {"backout": 0.5},
    "skip": {"window_pattern": "LL-L", "skip": (0, 2)},
    "MUDD": MUDD,
    "MUDD and snapshot": MUDD | SNAPSHOT,
    "MUDD and tables": MUDD | TABLES,
    "MUDD and odd heads": MUDD | TABLES | {"num_heads": 3, "model_dim": 36, "qk_head_group": 1},
    "MUDD and injection": MUDD | {"x0_injection": True, "bigram_rows": 11},
    "MUDD and skip": MUDD | {"window_pattern": "LL-L", "skip": (0, 2)},
    "gates from two streams": {"attn_gate_layers": (0, 1, 2, 3), "gate_split_layer": 2},
    "stream gain": {"residual_scale": 1.3},
    "no QK-norm": {"qk_norm": False},
    "full rotary": {"rope_fraction": 1.0},
    "score scale": {"attn_scale": 0.7},
    "gelu": {"activation": "gelu"},
    "softcap": {"softcap": (23.0, 5.0, 7.5)},
    "untied": {"untie_at": 0.0},
    "YaRN": {"stage_starts": (0.0, 0.5), "windows": ((3, 40), (3, 6)), "yarn": True},
    "further targets": {"mtp_weights": (((1.0, 0.5, 0.25), (1.0, 0.5, 0.0)),)},
    "prefix": {"prefix_weight": ((0.25, 0.1),)},
}
# Each ingredient taken out of the whole.
WITHOUT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "smear": {"smear": False},
    "bigram": {"bigram_rows": 0, "bigram_sign_rows": 1024},
    "x0": {"x0_injection": False},
    "resets": {"reset_at_document": False, "document_mask": False},
    "pairs": {"paired_layers": ()},
    "tables": {"value_embed_layers": ()},
    "value gates": {"value_gates": False},
    "gates of tokens": {
        "gates_per_token": False,
        "mudd_dim": 32,
        "gate_dim": 64,
        "gate_split_layer": None,
    },
    "learned gains": {"learned_gains": False},
    "XSA": {"xsa_layers": ()},
    "gates of heads": {"attn_gate_layers": ()},
    "mix of heads": {"dc_layers": (), "dc_window": 32},
    "offset": {"key_offset": False},
    "shared input": {"shared_attention_input": False},
    "snapshot": {"shared_attention_input": False, "snapshot_layer": None, "backout": 0.0},
    "skip": {"skip": None},
    "MUDD": {"mudd": False, "mudd_dim": 32},
    "second gates": {"gate_split_layer": None},
    "QK-norm": {"qk_norm": False},
    "softcap": {"softcap": None},
    "untied head": {"untie_at": None},
    "YaRN": {"yarn": False},
}
CASES = {f"all but {name}": (ALL, changes) for name, changes in WITHOUT.items()}
CASES |= {f"only {name}": (OFF, changes) for name, changes in ALONE.items()}


class Numerals(ToyVocabulary):
    """Each token is the bytes of its number: "1" begins "10" .. "19"; the separator has none."""

    def decode_bytes(self, tokens):
        return b"".join(str(token).encode() for token in tokens if token != SEPARATOR)


@pytest.fixture(autouse=True)
def _float64():
    """Constants that a model makes at its construction are float64 too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(base, changes):
    """A model whose every parameter has moved, and its reference's weights."""
    config = make_config(base, **changes)
    torch.manual_seed(0)
    model = ADAPTER.build(config, Numerals(config.vocab_size)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.3 if parameter.ndim < 2 else 0.2
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    buffers = {name: buffer.double() for name, buffer in model.named_buffers()}
    return model, dict(model.named_parameters()) | buffers


def tokens_of(config, count=LENGTH):
    """A row of three documents, of which the last is longer than the windows."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, config.vocab_size, (1, count), generator=generator)
    tokens[0, 1:3] = SEPARATOR
    return tokens


def assert_close(found, expected, what):
    found, expected = found.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max()))
    worst = float((found - expected).abs().max())
    assert worst <= 1e-9 * scale, f"{what}: {worst}"


@pytest.mark.parametrize(("base", "changes"), CASES.values(), ids=CASES)
def test_logits_loss_and_gradients_are_those_of_the_record(base, changes):
    model, weights = make(base, changes)
    config = model.config
    progress = 0.7
    stage = schedule.stage_at(config, progress)
    model.set_stage(stage)
    tokens = tokens_of(config, LENGTH + config.num_targets)
    rows = tokens.tolist()
    reference = Reference(weights, config, separator=SEPARATOR, stage=stage)
    expected = reference.logits([row[:LENGTH] for row in rows])
    found = model(tokens[:, :LENGTH])
    assert_close(found, expected, "logits")

    prefixes = weights["prefixes"].int().tolist() if "prefixes" in weights else None
    expected_loss = reference_loss(expected, rows, config, progress=progress, prefixes=prefixes)
    batch = batch_of(tokens, lookahead=config.num_targets)
    loss = ADAPTER.training_loss(model, batch, Step(number=0, progress=progress, seed=0)).value
    assert_close(loss, expected_loss, "loss")

    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected_loss, parameters, allow_unused=True)
    for name, gradient, right in zip(names, gradients, wanted, strict=True):
        assert (gradient is None) == (right is None), name
        if right is not None:
            assert_close(gradient, right, name)
            assert right.abs().max() > 0, f"{name} takes no part"


@pytest.mark.parametrize("base", [OFF | {"eval_window_long": 20}, ALL], ids=["plain", "all"])
def test_scores_after_training_are_those_of_the_record(base):
    model, weights = make(base, {"eval_window_long": 42})
    stage = model.config.num_stages
    model.set_stage(stage)
    tokens = tokens_of(model.config)
    reference = Reference(weights, model.config, separator=SEPARATOR, stage=stage)
    with torch.no_grad():
        assert_close(model(tokens), reference.logits(tokens.tolist()), "logits")
