"""Checks and small texts for models that learn to predict several tokens from every position.

B batch, T sequence, V vocabulary; horizons i = 1 .. n, of which 1 is the next token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanozoo_core.commands import cli
from nanozoo_core.config import compose_config, model_config, resolve
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.contract import Batch, SamplingSettings, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.generation.speculative import Tally
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.speculation import decoded_rows
from nanozoo_core.testing.training import gradients, move, train_on_batches
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import train

VOCAB = 31
LENGTH = 32
STEP = Step(number=0, progress=0.0, seed=0)
SHAPE = {"model_dim": 32, "num_heads": 2}
SMALL = {"vocab_size": VOCAB, "seq_len": 48} | SHAPE
LARGE = {
    "vocab_size": 50304,
    "seq_len": 1024,
    "num_layers": 12,
    "model_dim": 768,
    "num_heads": 6,
}

Generate = Callable[..., tuple[str, str]]
"""`nanozoo generate` of a run with some flags: what it printed, and what it said beside it."""


def build_moved(
    name: str, settings: dict[str, Any], *, moved: float, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A model whose weights are all away from zero, unless moved=0."""
    torch.manual_seed(0)
    model = load_adapter(name).make_model(model_config(name, settings)).to(dtype)
    move(model, moved)
    return model


def random_tokens(rows: int, length: int, seed: int = 0, vocab_size: int = VOCAB) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, length), generator=generator)


def random_batch(rows: int = 4, length: int = 24, lookahead: int = 1, seed: int = 0) -> Batch:
    return batch_of(random_tokens(rows, length + lookahead, seed), lookahead=lookahead)


def new_document(batch: Batch, row: int, place: int) -> Tensor:
    """The batch's documents (B, T + n), where another one begins at a place of one row."""
    documents = batch.documents.clone()
    documents[row, place:] = 1
    return documents


def control_of(config: ControlConfig) -> ControlModel:
    """The control of the same sizes, fresh from the same seed."""
    torch.manual_seed(0)
    return ControlModel(config)


def plain_gradients(config: ControlConfig, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the control, moved as `build_moved` moves by 0.1."""
    plain = control_of(config)
    move(plain, 0.1)
    adapter = DefaultModelAdapter(ControlConfig, ControlModel)
    loss = adapter.training_loss(plain, batch, STEP).value
    return loss, gradients(plain, loss)


def check_starts_as_the_control(model: Any) -> None:
    """With one seed, all weights that the control has are the same."""
    ours = dict(model.named_parameters())
    for name, parameter in control_of(model.config).named_parameters():
        assert torch.equal(ours[name], parameter), name


def check_counting(
    adapter: DefaultModelAdapter, model: nn.Module, all_logits: Callable[[Batch], Tensor]
) -> None:
    """Of x_{t+1} = x_t + 1 mod 12, horizon i learns x_t + i, and all drafts then stand.

    Args: model: of 12 tokens and three horizons; all_logits: (3, B, T, 12) of a batch.
    """

    def counting(seed: int) -> Batch:
        starts = torch.randint(12, (8, 1), generator=torch.Generator().manual_seed(seed))
        return batch_of((starts + torch.arange(LENGTH + 3)) % 12, lookahead=3)

    train_on_batches(adapter, model, [counting(seed) for seed in range(150)])
    batch = counting(1000)
    with torch.no_grad():
        logits = all_logits(batch)
    assert len(logits) == 3
    for horizon, found in enumerate(logits, start=1):
        assert torch.equal(found.argmax(-1), (batch.inputs + horizon) % 12)
        targets, _ = batch.ahead(horizon)
        assert float(nn.functional.cross_entropy(found.flatten(0, 1), targets.flatten())) < 0.02
    drafter, tally = adapter.drafter(model), Tally()
    assert drafter is not None
    prompts, lengths = batch.inputs[:, :8], torch.full((8,), 8)
    greedy = SamplingSettings(temperature=0)
    decoded_rows(drafter, prompts, lengths, greedy, max_tokens=25, tally=tally)
    assert (tally.acceptance, tally.tokens_per_pass) == (1, 3)


def check_a_run_drafts(
    name: str,
    diagnostic: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[str, Generate]:
    """A short run of a model of three layers records `diagnostic` and what its drafts are worth,
    and generates the same text with them and without. Returns: that text, and how to generate
    more."""
    monkeypatch.setenv("NANOZOO_CACHE", str(folder / "cache"))
    text = folder / "text"
    text.mkdir()
    for number in range(8):
        (text / f"{number}.txt").write_text(f"one two three four {number} " * 60)
    composed = compose_config(
        [
            *(f"model={name}", "device=cpu", "data.corpus=text", f"data.path='{text}'"),
            *("data.tokenizer=bytes", "data.seq_len=32", "train.batch_tokens=128"),
            *("train.max_steps=5", "eval.bytes=1000", "eval.every=0", "log.tensorboard=false"),
            *("model_cfg.num_layers=3", "model_cfg.model_dim=16", "model_cfg.num_heads=2"),
            f"run_dir='{folder / 'run'}'",
        ]
    )
    run = train(resolve(composed)).folder
    diagnostics = RunFolder(run).read_result()["diagnostics"]
    assert {diagnostic, "acceptance_greedy", "tokens_per_pass_greedy"} <= set(diagnostics)
    capsys.readouterr()

    def generate(*flags: str) -> tuple[str, str]:
        cli.main(["generate", str(run), "--temperature", "0", "--max-tokens", "40", *flags])
        captured = capsys.readouterr()
        return captured.out, captured.err

    plain, drafted = generate(), generate("--speculative")
    assert plain[0] == drafted[0]
    assert plain[1] == ""
    assert "passes" in drafted[1]
    assert "drafts accepted" in drafted[1]
    return plain[0], generate


def check_rows_are_independent(adapter: DefaultModelAdapter, model: nn.Module) -> None:
    """Every loss of a batch is the mean of those of its rows."""
    batch = random_batch()
    whole = adapter.training_loss(model, batch, STEP)
    parts = []
    for row in range(4):
        one = batch_of(batch.tokens[row : row + 1], first_row=row, num_rows=4)
        parts.append(adapter.training_loss(model, one, STEP))
    for name, value in whole.metrics.items():
        mean = torch.stack([part.metrics[name] for part in parts]).mean()
        torch.testing.assert_close(value, mean)


def check_every_parameter_gets_gradient(adapter: DefaultModelAdapter, model: nn.Module) -> None:
    """No part of a moved model is left out of the training loss."""
    found = gradients(model, adapter.training_loss(model, random_batch(), STEP).value)
    assert all(gradient.abs().max() > 0 for gradient in found.values())
