"""One model at work in this process, and a whole `nanozoo bench` with a process for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nanozoo_core.commands import cli
from nanozoo_core.comparing.bench.contestant import Block, Decoding, Facts, Training
from nanozoo_core.comparing.bench.parts import REST, kind_of, shares, told
from nanozoo_core.comparing.bench.report import Entry, Spread, describe, row
from nanozoo_core.comparing.bench.request import Assignment, Request, parse
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.training import checkpoint
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import train


@pytest.fixture
def data(corpus: Path) -> list[str]:
    return [
        *("data.corpus=text", f"data.path='{corpus}'", "device=cpu", "log.tensorboard=false"),
    ]


def assignment(task: str, words: list[str], model: str = "models=toy") -> Assignment:
    return parse([model, f"what={task}", "decode_tokens=5", *words]).assignments[0]


def test_a_piece_of_training_is_a_step_and_the_run_starts_over_at_its_end(data: list[str]) -> None:
    contestant = Training(assignment("train", [*data, "train.max_steps=4"]))
    weight = contestant.trainer.model.head.weight
    before = weight.detach().clone()
    assert [contestant.piece() for _ in range(7)] == [128] * 7
    assert contestant.trainer.state.step < 4
    assert not torch.equal(weight, before)


def test_a_piece_of_decoding_is_a_text_of_the_length_asked_for(data: list[str]) -> None:
    contestant = Decoding(assignment("decode", data))
    block = contestant.block(1e-9)
    assert (block.pieces, block.tokens) == (1, 5)
    assert contestant.piece() == 5
    assert contestant.facts().bytes_per_token == pytest.approx(1, rel=1e-2)  # less separators
    assert contestant.facts().tokenizer == "bytes"


def test_decoding_holds_no_state_of_an_optimiser(
    data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_rest: object) -> None:
        raise AssertionError("an optimiser is made")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", refuse)
    assert Decoding(assignment("decode", data)).piece() == 5
    with pytest.raises(AssertionError, match="an optimiser is made"):
        Training(assignment("train", data))


def test_a_run_brings_its_settings_and_weights(data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    composed = compose_config(["model=toy", "train.max_steps=2", f"run_dir={run}", *data])
    train(resolve(composed))
    contestant = Decoding(assignment("decode", ["model_cfg.num_heads=4"], f"models=old:{run}"))
    stored = checkpoint.read_tensors(RunFolder(run).latest_checkpoint(), "model")
    assert torch.equal(contestant.setup.model.head.weight, stored["head.weight"])
    assert contestant.setup.model_cfg.num_heads == 4


def entry(label: str, speeds: list[float], *, task: str = "train", per_token: float = 1) -> Entry:
    facts = Facts(
        report={"params": 1e6},
        flops_per_token=6e6,
        batch_tokens=128,
        seq_len=32,
        bytes_per_token=per_token,
        tokenizer="bytes" if per_token == 1 else "bpe",
        data_fingerprint="f",
        device="cpu",
        dtype="float32",
        peak_flops=None,
    )
    blocks = tuple(Block(1, int(10 * speed), 10.0) for speed in speeds)
    return Entry(Assignment(label, task, label, ()), facts, blocks, 2**21)


def test_ratios_are_taken_round_by_round_and_in_bytes() -> None:
    """Rounds of 2 and 8 bytes/s beside 4 and 4: ratios 0.5 and 2, whose median is 1.25."""
    first = entry("a", [4, 4])
    other = entry("b", [1, 4], per_token=2)
    assert other.bytes_per_second == Spread(5, 2, 8)
    assert other.ratio(first) == Spread(1.25, 0.5, 2)
    assert first.ratio(first) == Spread(1, 1, 1)


def test_mfu_is_of_training_where_the_peak_is_known() -> None:
    """100 tokens/s at 6e6 FLOPs each is 6e8 of 1.2e9."""
    assert entry("a", [100]).mfu(1.2e9) == 0.5
    assert entry("a", [100]).mfu(None) is None
    assert entry("a", [100], task="decode").mfu(1.2e9) is None


def test_the_table_holds_the_others_against_the_first() -> None:
    words = Assignment("a", "train", "a", ()), Assignment("b", "train", "b", ())
    request = Request(words, ("train",), seconds=1, rounds=2, folder=Path())
    entries = [entry("a", [1000, 3000]), entry("b", [500, 1500], per_token=4)]
    text = describe(request, entries)
    head, first, second = (line.split("  ") for line in text.splitlines()[1:4])
    assert "times a" in "  ".join(head)
    assert "2,000 (1,000 to 3,000)" in "  ".join(first)
    assert "2.000 (2.000 to 2.000)" in "  ".join(second)
    assert "compare bytes/s" in text


def test_without_the_first_model_there_is_no_ratio() -> None:
    words = Assignment("a", "train", "a", ()), Assignment("b", "train", "b", ())
    request = Request(words, ("train",), seconds=1, rounds=2, folder=Path())
    other = entry("b", [500, 1500])
    assert row(other, None, request)["ratio_to_first"] is None
    assert "1,000 (500 to 1,500)" in describe(request, [other])


def test_a_model_that_fails_leaves_the_others_their_report(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    words = ["bench", "models=toy,bad:toy", "what=train", "seconds=0.001", "rounds=2", *data]
    with pytest.raises(SystemExit):
        cli.main([*words, "bad.device=cuda", f"folder={folder}", "--profile"])
    captured = capsys.readouterr()
    assert "error: bad, train: device=cuda is not available" in captured.err
    assert "written to" in captured.out
    report = json.loads((folder / "bench.json").read_text())
    (result,) = report["results"]
    assert list(report["failures"]) == ["bad, train"]
    assert result["label"] == "toy"
    assert len(result["blocks"]) == 2
    assert result["tokens_per_second"]["least"] > 0
    assert result["peak_memory_bytes"] > 2**20
    trace = json.loads((folder / "toy_train.trace.json").read_text())
    spans = {event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"}
    assert "aten::mm" in spans
    assert sum(result["parts"].values()) == pytest.approx(1)
    assert result["parts"]["products"] > 0
    assert "Where the time goes:\n  toy: " in captured.out


def test_the_time_of_a_profile_is_told_by_kinds_of_operations() -> None:
    times = [("aten::mm", 30.0), ("aten::addmm", 20.0), ("aten::_fused_adamw_", 25.0),
             ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", 15.0),
             ("aten::select", 10.0)]  # fmt: skip
    found = shares(times)
    assert found == {"products": 0.5, "optimiser": 0.25, "attention": 0.15, REST: 0.1}
    assert told(found) == "products 50 %, optimiser 25 %, attention 15 %, the rest 10 %"
    assert shares([]) == {}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::_softmax_backward_data", "softmax and exponentials"),
        ("aten::native_layer_norm_backward", "norms and activations"),
        ("aten::_to_copy", REST),  # what it calls copies
        ("aten::copy_", "copies, casts and fills"),
        ("aten::bmm", "products"),
        ("aten::mul", REST),
        ("aten::embedding_dense_backward", "gathers and sums"),
    ],
)
def test_an_operation_is_of_one_kind(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind
