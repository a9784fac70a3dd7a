"""A run in Python: text, scores, bits of tokens, metrics and logits."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nanozoo_core
from nanozoo_core.commands import cli
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation import decoding_dtype
from nanozoo_core.likelihood import in_bits
from nanozoo_core.python import generation
from nanozoo_core.testing.rounding import counted_products

TEXT = "word1 word2 caf\xe9 word3\n" * 9  # longer than a window of 32 bytes


def test_generate_writes_what_the_command_writes(
    run: nanozoo_core.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run.generate("word", max_tokens=9, seed=4)
    words = ["generate", str(run.folder), "--prompt", "word", "--max-tokens", "9", "--seed", "4"]
    cli.main([*words, "--device", "cpu"])
    assert capsys.readouterr().out == f"{found}\n"
    assert (found.prompt, found.suffix, found.seed) == ("word", "", 4)
    assert "".join(run.stream("word", max_tokens=9, seed=4)) == found.text
    assert run.generate("word", max_tokens=9, seed=5).text != found.text


def test_samples_of_the_command_are_texts_of_following_seeds(
    run: nanozoo_core.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MOST_TOGETHER", 2)
    words = ["generate", str(run.folder), "--prompt", "word", "--max-tokens", "9", "--seed", "4"]
    cli.main([*words, "--device", "cpu", "--num-samples", "3", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    texts = [run.generate("word", max_tokens=9, seed=seed).text for seed in (4, 5, 6)]
    assert [(row["seed"], row["text"]) for row in rows] == list(zip((4, 5, 6), texts, strict=True))
    cli.main([*words, "--device", "cpu", "--num-samples", "2"])
    line = "-" * 80
    assert capsys.readouterr().out == f"word{texts[0]}\n{line}\nword{texts[1]}\n"


def test_float32_is_what_a_small_model_has_and_bfloat16_can_be_asked_for(
    run: nanozoo_core.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_dtype, "LEAST_WEIGHTS", 1)
    settings = {"max_tokens": 40, "temperature": 0.0}
    plain = run.generate("word", **settings).text
    assert run.generate("word", **settings, dtype="float32").text == plain
    with counted_products() as count:
        assert run.generate("word", **settings, dtype="bfloat16").text
        assert count[0] > 0
        assert "".join(run.stream("word", **settings, dtype="bfloat16"))
    with counted_products() as count:
        assert run.generate("word", **settings).text == plain
    assert count[0] == 0


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"top_p": 0.0}, "top_p=0.0 must be in (0, 1]"),
        ({"suffix": "z"}, "toy writes from left to right"),
        ({"num_steps": 2}, "toy draws each token at once"),
        ({"speculative": True}, "proposes tokens ahead, which toy"),
    ],
)
def test_what_the_model_cannot_write_is_refused_at_once(
    run: nanozoo_core.Run, settings: dict[str, object], part: str
) -> None:
    with pytest.raises(nanozoo_core.ConfigError) as caught:
        run.stream("word", **settings)
    assert part in str(caught.value)


@pytest.fixture(scope="module")
def small_run(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> nanozoo_core.Run:
    """Another one in the same vocabulary, trained less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        folder = tmp_path_factory.mktemp("small") / "mine"
        settings = small | {"train": {"max_steps": 1}, "seed": 5}
        done = nanozoo_core.train("toy", run_dir=folder, **settings)
        return nanozoo_core.load_run(done.folder, device="cpu")


def test_a_smaller_run_drafts(
    run: nanozoo_core.Run, small_run: nanozoo_core.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run.generate("word", max_tokens=40, temperature=0).text
    drafted = run.generate("word", max_tokens=40, temperature=0, draft=small_run, num_drafts=3)
    assert drafted.text == plain
    words = ["generate", str(run.folder), "--prompt", "word", "--max-tokens", "40", "--device=cpu"]
    cli.main([*words, "--temperature", "0", "--draft", str(small_run.folder), "--num-drafts", "2"])
    said = capsys.readouterr()
    assert said.out == f"word{plain}\n"
    assert "tokens in" in said.err
    assert "drafts accepted: " in said.err


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"speculative": True}, "--draft does not go with --speculative"),
        ({"use_cache": False}, "--draft does not go with --no-cache"),
        ({"num_drafts": 0}, "num_drafts=0 must be at least 1"),
    ],
)
def test_settings_that_do_not_go_with_drafts_are_refused(
    run: nanozoo_core.Run, settings: dict[str, Any], part: str
) -> None:
    with pytest.raises(nanozoo_core.ConfigError, match=part):
        run.stream("word", draft=run, **settings)


def test_a_run_that_cannot_draft_is_refused(
    run: nanozoo_core.Run, small_run: nanozoo_core.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal() -> str:
        with pytest.raises(nanozoo_core.ConfigError) as caught:
            run.stream("word", draft=small_run)
        return str(caught.value)

    with monkeypatch.context() as patch:
        patch.setattr(small_run.loaded, "vocabulary", SimpleNamespace(equals=lambda other: False))
        assert f"data.tokenizer={run.folder}" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(type(run.model), "init_cache", refuse_to_forget(type(run.model)))
        assert "is a run of toy, which cannot take back 4 tokens" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(small_run.model, "max_context", 7)
        assert "reads 7 tokens at most and" in refusal()


def refuse_to_forget(model: type[Any]) -> Callable[..., Any]:
    """What a model's `init_cache` would be if its cache kept no history."""
    plain = model.init_cache

    def init_cache(self: Any, batch_size: int, max_length: int) -> Any:
        def crop(lengths: torch.Tensor) -> None:
            if not torch.equal(lengths, cache.lengths):
                raise nanozoo_core.NanozooError("no history")

        cache = plain(self, batch_size, max_length)
        cache.crop = crop
        return cache

    return init_cache


def test_evaluate_scores_what_the_command_scores(
    run: nanozoo_core.Run, trained: nanozoo_core.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run.evaluate()
    assert found.bits_per_byte == pytest.approx(trained.val_bpb, rel=1e-9)
    cli.main(["evaluate", str(run.folder), "--device", "cpu"])
    assert json.loads(capsys.readouterr().out) == found.values
    assert run.evaluate(bytes=200).score.num_bytes == 200


def test_the_bits_of_tokens_are_those_of_the_score(run: nanozoo_core.Run) -> None:
    found = run.bits_per_byte(TEXT)
    assert b"".join(found.bytes) == TEXT.encode()
    score = run.evaluate(TEXT).score
    assert sum(found.bits) == pytest.approx(in_bits(score.nats_per_token * score.num_tokens))
    assert found.bits_per_byte == pytest.approx(score.bits_per_byte, rel=1e-9)
    assert score.num_bytes == len(TEXT.encode())


def test_the_bits_of_tokens_are_those_of_the_logits(run: nanozoo_core.Run) -> None:
    tokens = run.tokens("word1 word")
    with torch.no_grad():
        logits = run.model(tokens)  # (1, T, V)
    assert logits.shape == (1, 11, run.vocabulary.size)
    probs = logits[0, :-1].double().log_softmax(-1)
    bits = in_bits(-probs.gather(1, tokens[0, 1:, None])[:, 0])
    found = run.bits_per_byte("word1 word")
    assert found.ids == tuple(tokens[0, 1:].tolist())
    torch.testing.assert_close(torch.tensor(found.bits).double(), bits, rtol=1e-5, atol=1e-5)


def test_texts_are_documents_of_their_own(run: nanozoo_core.Run) -> None:
    """The separator between them is scored, too."""
    two = run.evaluate(["word1", b"word2"]).score
    assert (two.num_bytes, two.num_tokens) == (10, 11)
    assert run.evaluate("word1word2").score.num_tokens == 10
    for nothing in ("", [], [b""]):
        with pytest.raises(nanozoo_core.ConfigError, match="there is no text to score"):
            run.evaluate(nothing)
    with pytest.raises(nanozoo_core.ConfigError, match="there is no text to score"):
        run.bits_per_byte("")


def test_the_heat_map_shows_the_text(run: nanozoo_core.Run) -> None:
    """A character of several tokens stands whole; signs of HTML are text."""
    page = run.bits_per_byte("<b>\xe9")._repr_html_()
    spans = [part.partition(">")[2].partition("</span>")[0] for part in page.split("<span")[1:]]
    assert spans == ["&lt;", "b", "&gt;", "\xe9", ""]
    broken = run.bits_per_byte(b"\xff<")
    assert broken.strings == ("\\xff", "<")
    assert "\\xff" in broken._repr_html_()
    table = run.bits_per_byte("ab").table()
    assert (table["token"], table["bytes"]) == (["a", "b"], [1, 1])


def test_a_bound_has_no_bits_of_tokens(
    run: nanozoo_core.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DefaultModelAdapter, "scores_tokens", False)
    with pytest.raises(nanozoo_core.ConfigError, match="toy bounds the likelihood"):
        run.bits_per_byte("word")


def test_running_out_of_memory_is_a_sentence(
    run: nanozoo_core.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("of 8 GiB")

    monkeypatch.setattr(DefaultModelAdapter, "token_nats", fail)
    for use in (lambda: run.evaluate("word"), lambda: run.bits_per_byte("word")):
        with pytest.raises(nanozoo_core.OutOfMemoryError, match="takes a smaller batch_tokens=N"):
            use()


def test_metrics_are_columns(run: nanozoo_core.Run) -> None:
    found = run.metrics()
    assert {len(column) for column in found.values()} == {4}  # three steps and a validation
    assert found["step"] == [1, 2, 3, 3]
    assert math.isnan(found["val_bpb"][0])
    assert found["val_bpb"][3] == run.result()["val_bpb"]


def test_a_path_may_be_a_text_and_a_wrong_one_is_a_sentence(
    trained: nanozoo_core.Result, tmp_path: Path
) -> None:
    run = nanozoo_core.load_run(str(trained.folder), device="cpu", checkpoint=3)
    assert repr(run) == f"<Run {trained.folder}: toy at step 3 on cpu>"
    for wrong in (tmp_path / "nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(nanozoo_core.CheckpointError, match="nowhere is not a run folder"):
            nanozoo_core.load_run(wrong)
    with pytest.raises(nanozoo_core.ConfigError, match="NUL"):
        nanozoo_core.load_run("a\0b")
    assert os.fspath(run.folder) == str(trained.folder)
