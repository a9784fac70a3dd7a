"""A model that has nothing but a forward pass: it is scored, decodes and is counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nanozoo_core.contract import Draw
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation import autoregressive
from nanozoo_core.nn.accounting import recurrence_flops, window_flops
from nanozoo_core.nn.attention import attend
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.decoding import drawn_tokens
from nanozoo_core.testing.sources import batch_of

V, D = 11, 12


@dataclass(frozen=True)
class PlainConfig:
    vocab_size: int = V
    model_dim: int = D
    num_layers: int = 2
    seq_len: int = 32
    looks_at_values: bool = False
    attends: bool = False


class PlainModel(nn.Module):
    """Two layers of a GRU, and one of attention without weights of its own if asked."""

    max_context = None

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(V, D)
        self.gru = nn.GRU(D, D, config.num_layers, batch_first=True)
        self.head = nn.Linear(D, V, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.config.looks_at_values:
            assert int(tokens.max()) < V
        x = self.gru(self.embedding(tokens))[0]
        if self.config.attends:
            x = x + attend(x[:, None], x[:, None], x[:, None])[:, 0]
        return self.head(x)


ADAPTER = DefaultModelAdapter(PlainConfig, PlainModel)
GRU_WEIGHTS = 2 * 6 * D**2


def test_it_decodes_without_a_cache_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    autoregressive._say_that_all_is_read_again.cache_clear()
    torch.manual_seed(0)
    model = ADAPTER.build(PlainConfig(), ToyVocabulary(V)).eval()
    with caplog.at_level(logging.WARNING):
        found = drawn_tokens(ADAPTER, model, [1, 2], max_tokens=6, temperature=0)
        drawn_tokens(ADAPTER, model, [1, 2], max_tokens=6, temperature=0)
    (record,) = caplog.records
    assert "PlainModel has no init_cache" in record.getMessage()
    text = [1, 2]
    for _ in range(6):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    assert found == text[2:]


def test_it_is_scored_and_reported() -> None:
    torch.manual_seed(0)
    model = ADAPTER.build(PlainConfig(), ToyVocabulary(V))
    tokens = torch.randint(V, (2, 9))
    nats = ADAPTER.nll(model, batch_of(tokens), Draw(0)).nats
    log_p = model(tokens[:, :-1]).double().log_softmax(-1).gather(-1, tokens[:, 1:, None])
    torch.testing.assert_close(nats, -log_p.sum((1, 2)), rtol=1e-5, atol=0)
    assert ADAPTER.report(model).keys() == {"params", "params_non_embedding"}


@pytest.mark.parametrize("looks_at_values", [False, True], ids=["on_meta", "on_the_cpu"])
def test_no_attention_is_counted_where_there_is_none(looks_at_values: bool) -> None:
    config = PlainConfig(looks_at_values=looks_at_values)
    before = torch.random.get_rng_state()
    assert ADAPTER.flops_per_token(config, 32) == 6 * (GRU_WEIGHTS + V * D)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_attention_is_counted_where_it_is_in_full() -> None:
    found = ADAPTER.flops_per_token(PlainConfig(attends=True), 32)
    assert found == 6 * (GRU_WEIGHTS + V * D) + window_flops(D, 32, None)


def test_flops_of_windows_and_recurrences_by_hand() -> None:
    """A query and a key of 8 channels: a product and a sum in each, for the score and for the value
    it brings; forward once and backward twice."""
    assert window_flops(8, 100, None) == 3 * 2 * 2 * 8 * 100
    assert window_flops(8, 100, 15) == 3 * 2 * 2 * 8 * 16
    assert window_flops(8, 10, 15) == window_flops(8, 10, None)
    assert recurrence_flops(8) == 3 * 2 * 8
    assert recurrence_flops(8, conv_kernel=4) == 3 * (2 * 8 + 2 * 8 * 4)
