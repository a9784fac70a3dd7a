from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.errors import NanozooError
from nanozoo_megabyte.model import Megabyte
from nanozoo_megabyte.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "seq_len": 32,
    "patch_size": 4,
    "global_byte_dim": 8,
    "num_global_layers": 2,
    "num_global_heads": 2,
    "local_dim": 16,
    "num_local_layers": 3,
    "num_local_heads": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "rope": {"pos_emb": "rope"},
    "previous byte": {"local_first_input": "prev_byte"},
    "no context token": {"use_first_input": False},
    "previous byte, no context token": {
        "local_first_input": "prev_byte",
        "use_first_input": False,
    },
    "tied": {"tie_embeddings": True},
    "convolutions": {"patch_conv": True},
    "across": {"cross_patch": 2},
    "all": {"pos_emb": "both", "cross_patch": 4, "patch_conv": True},
    "patches of one": {"patch_size": 1},
    "patches of three": {"patch_size": 3, "seq_len": 33, "cross_patch": 1},
}
each_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=list(VARIANTS))


def build(settings: dict[str, Any] | None = None, *, noise: float = 0.1) -> Megabyte:
    """A model whose small weights are given noise, so that every part matters."""
    torch.manual_seed(0)
    model = Megabyte(model_config("megabyte", SMALL | (settings or {}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def text(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(20, (batch, length), generator=torch.Generator().manual_seed(seed))


def changed_at(model: Megabyte, tokens: Tensor, place: int) -> list[int]:
    """The positions whose logits move when tokens[:, place] changes."""
    other = tokens.clone()
    other[:, place] = (other[:, place] + 1) % 20
    with torch.no_grad():
        moved = (model(tokens) - model(other)).abs().amax((0, 2))  # (T,)
    return (moved > 1e-5).nonzero()[:, 0].tolist()


def silence(model: Megabyte) -> Megabyte:
    """Cuts the path from the global model to the local one."""
    nn.init.zeros_(model.to_local.weight)
    return model


# -- the definition, one prediction at a time -----------------------------------------------------


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def run(stack: Transformer, x: Tensor) -> Tensor:
    """Pre-norm blocks on one sequence (S, D), position by position."""
    for block in stack.blocks:
        size = x.shape[1] // stack.num_heads
        q, k, v = (block.attention.qkv.weight @ norm(x).T).T.chunk(3, dim=1)
        rows = []
        for i in range(len(x)):
            heads = []
            for h in range(stack.num_heads):
                cut = slice(h * size, (h + 1) * size)
                weights = (k[: i + 1, cut] @ q[i, cut] / math.sqrt(size)).softmax(0)
                heads.append(weights @ v[: i + 1, cut])
            rows.append(block.attention.out.weight @ torch.cat(heads))
        x = x + torch.stack(rows)
        hidden = F.relu(norm(x) @ block.mlp.up.weight.T).square()
        x = x + hidden @ block.mlp.down.weight.T
    return norm(x)


@torch.no_grad()
def predict(model: Megabyte, context: int, past: list[int]) -> Tensor:
    """Logits of the byte after `past`, the modelled sequence so far, in the paper's form."""
    size = model.patch_size
    patch, place = divmod(len(past), size)
    assert model.position is not None
    embedded = [
        model.global_embedding.weight[byte] + model.position.weight[t]
        for t, byte in enumerate(past[: patch * size])
    ]
    patches = [torch.cat(embedded[i * size : (i + 1) * size]) for i in range(patch)]
    o = run(model.global_model, torch.stack([model.global_pad, *patches]))[-1]
    a = []
    for p in range(place + 1):
        per_byte = len(o) // size
        condition = model.to_local.weight @ o[p * per_byte : (p + 1) * per_byte]
        if p > 0:
            before = model.local_embedding.weight[past[patch * size + p - 1]]
        elif patch == 0:
            before = model.local_embedding.weight[context]
        else:
            before = model.local_pad
        a.append(condition + before)
    return model.head.weight @ run(model.local_model, torch.stack(a))[-1]


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_definition(tied: bool) -> None:
    model, tokens = build({"tie_embeddings": tied}), text(1, 32)
    found = model(tokens).detach()[0]
    x = tokens[0].tolist()
    expected = torch.stack([predict(model, x[0], x[1 : t + 1]) for t in range(32)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_definition_tells_a_second_shift() -> None:
    """Shifting once more predicts x_{t+1} from x_{<t}: no longer the same function."""
    model, x = build(), text(1, 32)[0].tolist()
    found = model(torch.tensor([x]))[0, 10]
    assert (found - predict(model, x[0], x[1:10])).abs().max() > 1e-2


# -- causality ------------------------------------------------------------------------------------


@each_variant
def test_a_token_moves_the_predictions_behind_it_alone(settings: dict[str, Any]) -> None:
    model, tokens = build(settings), text(2, 27)
    length = 27
    for place in range(1, length):
        assert changed_at(model, tokens, place) == list(range(place, length))


@pytest.mark.parametrize("use", [True, False])
def test_the_context_token_counts_in_the_first_patch_alone(use: bool) -> None:
    model, tokens = build({"use_first_input": use}), text(2, 27)
    assert changed_at(model, tokens, 0) == ([0, 1, 2, 3] if use else [])


def test_without_the_global_model_a_byte_stays_in_its_patch() -> None:
    """tokens[t] is the byte x_{t-1}: the last of a patch is read by the global model alone."""
    model, tokens = silence(build()), text(2, 24)
    for place in range(1, 24):
        patch, p = divmod(place, 4)
        assert changed_at(model, tokens, place) == (
            [] if p == 0 else [*range(place, 4 * patch + 4)]
        )


def test_the_previous_byte_joins_patches_without_the_global_model() -> None:
    model, tokens = silence(build({"local_first_input": "prev_byte"})), text(2, 24)
    assert changed_at(model, tokens, 8) == [8, 9, 10, 11]
    assert changed_at(model, tokens, 9) == [9, 10, 11]


def test_the_last_bytes_of_a_patch_are_seen_across_the_border() -> None:
    """Each of three layers looks over one border. A byte that is not the last of its patch needs a
    layer to get there."""
    model, tokens = silence(build({"cross_patch": 1})), text(2, 24)
    assert changed_at(model, tokens, 3) == list(range(3, 16))
    assert changed_at(model, tokens, 2) == list(range(2, 12))


# -- degenerate forms -----------------------------------------------------------------------------


def test_patches_of_one_byte_are_a_byte_decoder_and_a_network_on_each_byte() -> None:
    model, tokens = build({"patch_size": 1, "use_first_input": False}), text(2, 9)
    assert model.position is not None
    e = model.global_embedding(tokens[:, 1:]) + model.position.weight[:8]
    u = torch.cat([model.global_pad.expand(2, 1, -1), e], dim=1)
    expected = []
    for row in u.detach():
        for o in run(model.global_model, row):
            alone = model.to_local.weight @ o + model.local_pad
            expected.append(model.head.weight @ run(model.local_model, alone[None])[0])
    found = model(tokens).flatten(0, 1)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_window_of_one_patch_is_the_local_model_and_a_vector_for_each_place() -> None:
    model, tokens = build({"patch_size": 16}), text(2, 16)
    places = model.conditions(run(model.global_model, model.global_pad[None])[0])
    inputs = model.local_embedding(tokens) + places
    expected = torch.stack([run(model.local_model, row) for row in inputs])
    torch.testing.assert_close(model.features(tokens), expected, rtol=1e-5, atol=1e-5)


@each_variant
def test_the_end_of_a_window_within_a_patch_changes_nothing(settings: dict[str, Any]) -> None:
    model, tokens = build(settings), text(2, 30)
    whole = model(tokens).detach()
    for length in (1, 2, 3, 4, 5, 11, 29):
        found = model(tokens[:, :length]).detach()
        torch.testing.assert_close(found, whole[:, :length], rtol=1e-5, atol=1e-5)


def test_a_window_longer_than_the_position_table_is_refused() -> None:
    with pytest.raises(NanozooError, match=r"33 tokens is longer than model_cfg\.seq_len=32"):
        build()(text(1, 33))


# -- start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_both_summands_of_the_local_input_start_equally_large(tied: bool) -> None:
    settings = {"vocab_size": 258, "global_byte_dim": 32, "local_dim": 96, "tie_embeddings": tied}
    model = build(settings, noise=0)
    o = model.global_model(torch.randn(2, 8, 128))
    condition, byte = model.conditions(o).detach(), model.local_embedding.weight.detach()
    ratio = float((condition.square().mean() / byte.square().mean()).sqrt())
    assert 0.5 < ratio < 2


def test_the_last_patch_is_never_read_by_the_global_model() -> None:
    model = build()
    model(text(2, 32)).square().sum().backward()
    assert model.position is not None
    moved = model.position.weight.grad.abs().amax(1) > 0  # type: ignore[union-attr]
    assert moved.tolist() == [True] * 28 + [False] * 4


# -- decoding -------------------------------------------------------------------------------------


@torch.no_grad()
def prefilled(model: Megabyte, tokens: Tensor, lengths: Tensor) -> Any:
    cache = model.init_cache(len(tokens), tokens.shape[1])
    model(tokens[:, : int(lengths.max())], cache)
    cache.crop(lengths)
    return cache


@torch.no_grad()
def assert_goes_on(
    model: Megabyte, cache: Any, tokens: Tensor, lengths: Tensor, count: int, at_once: int = 1
) -> None:
    """The next `count` tokens of every row, some at once, score as in a forward pass."""
    full = model(tokens)
    rows = torch.arange(len(tokens))[:, None]
    for start in range(0, count, at_once):
        places = lengths[:, None] + start + torch.arange(at_once)
        found = model(tokens[rows, places], cache)
        torch.testing.assert_close(found, full[rows, places], rtol=1e-4, atol=1e-4)


@each_variant
def test_cached_decoding_of_ragged_rows_equals_the_forward_pass(settings: dict[str, Any]) -> None:
    model, tokens = build(settings), text(3, 32)
    lengths = torch.tensor([1, 10, 16])
    assert_goes_on(model, prefilled(model, tokens, lengths), tokens, lengths, 16)


@each_variant
def test_a_cache_cut_back_goes_on_from_there(settings: dict[str, Any]) -> None:
    model, tokens = build(settings), text(3, 32)
    lengths = torch.tensor([9, 17, 24])
    cache = prefilled(model, tokens, lengths)
    assert_goes_on(model, cache, tokens, lengths, 6, at_once=3)
    for cut in ([15, 22, 29], [14, 20, 28], [12, 19, 27], [3, 0, 20]):
        lengths = torch.tensor(cut)
        cache.crop(lengths)
        assert cache.lengths.tolist() == cut
        assert_goes_on(model, cache, tokens, lengths, 2, at_once=2)
        lengths = lengths + 2


def test_the_global_model_runs_once_per_patch() -> None:
    model, tokens = build(), text(1, 32)
    cache, calls = prefilled(model, tokens, torch.tensor([8])), []
    model.global_model.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    with torch.no_grad():
        for t in range(8, 32):
            model(tokens[:, t : t + 1], cache)
    assert calls == [(1, 1, 32)] * 6


def test_a_full_cache_says_so() -> None:
    model, tokens = build(), text(2, 9)
    cache = model.init_cache(2, 8)
    with pytest.raises(ValueError, match="the cache holds 8 tokens per row; 9 are asked"):
        model(tokens, cache)


# -- learning -------------------------------------------------------------------------------------


def train(model: Megabyte, windows: list[Tensor], lr: float) -> float:
    """The mean loss of the last ten steps, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for number, tokens in enumerate(windows):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2 - 2 * number / len(windows))
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return sum(losses[-10:]) / 10


def test_a_counting_sequence_is_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    counting = [
        (torch.randint(20, (8, 1), generator=generator) + torch.arange(33)) % 20 for _ in range(150)
    ]
    assert train(build(noise=0).train(), counting, lr=1e-2) < 0.05


def test_what_lies_a_patch_and_a_byte_back_is_learned_through_the_global_model() -> None:
    """x_t = x_{t-5} with patches of four: no byte of the same patch says anything about it."""
    generator = torch.Generator().manual_seed(0)
    seeds = [torch.randint(8, (16, 5), generator=generator) for _ in range(150)]
    windows = [seed.repeat(1, 5) for seed in seeds]  # (16, 25)
    settings = {"vocab_size": 8, "seq_len": 24}
    # Of the 24 scored tokens the first four are free, and in each later patch nothing is.
    least = 4 / 24 * math.log(8)
    assert train(build(settings, noise=0).train(), windows, lr=1e-2) < least + 0.15
    deaf = build(settings, noise=0).train()
    deaf.conditions = lambda o: torch.zeros(*o.shape[:-1], 4, 16)  # type: ignore[method-assign]
    assert train(deaf, windows[:60], lr=1e-2) > 0.7 * math.log(8)
