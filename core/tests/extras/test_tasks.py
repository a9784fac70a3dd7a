"""Runs under lm-evaluation-harness, with a task and data of our own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from nanozoo_core.data.tokenizers import train_bpe
from nanozoo_core.errors import ConfigError
from nanozoo_core.training.harness import RunLM, evaluate_tasks
from nanozoo_core.training.runs import LoadedRun

WINDOW = 32


@pytest.fixture
def lm(run: LoadedRun) -> RunLM:
    return RunLM(run, batch_tokens=100)


def request(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@torch.no_grad()
def log_probs(run: LoadedRun, text: list[int]) -> torch.Tensor:
    """log p of every token but the first, given all before it."""
    logits = run.model(torch.tensor([text]))[0, :-1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(text[1:])[:, None])[:, 0]


def test_a_continuation_is_scored_given_its_context(run: LoadedRun, lm: RunLM) -> None:
    pairs = [("def f", "(x)"), ("", "import os"), ("a", "b"), ("def f", "(y): return y")]
    found = lm.loglikelihood([request("loglikelihood", *pair) for pair in pairs], True)
    for (context, continuation), (score, _) in zip(pairs, found, strict=True):
        text = [256, *context.encode(), *continuation.encode()]
        expected = log_probs(run, text)[-len(continuation) :].sum()
        assert score == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("continuation", ["s", "self"])
def test_a_token_that_would_span_context_and_continuation_is_cut_there(
    run: LoadedRun, lm: RunLM, continuation: str
) -> None:
    run.vocabulary = train_bpe(["(s"] * 99, vocab_size=258)
    assert len(run.vocabulary.encode("print(s")) == len(run.vocabulary.encode("print("))
    pair = ("print(", continuation)
    ((score, _),) = lm.loglikelihood([request("loglikelihood", *pair)], True)
    text = [run.vocabulary.separator, *(b for part in pair for b in run.vocabulary.encode(part))]
    expected = log_probs(run, text)[-len(continuation) :].sum()
    assert score == pytest.approx(float(expected), abs=1e-4)


def test_nothing_is_certain_to_follow(lm: RunLM) -> None:
    assert lm.loglikelihood([request("loglikelihood", "def f", "")], True) == [(0.0, True)]


@torch.no_grad()
def test_the_greedy_continuation_is_known_as_such(run: LoadedRun, lm: RunLM) -> None:
    logits = run.model(torch.tensor([[256, 65]]))[0, -1]
    best, worst = int(logits.argmax()), int(logits.argmin())
    greedy = lm._loglikelihood_tokens([(None, [256, 65], [best])], True)
    other = lm._loglikelihood_tokens([(None, [256, 65], [worst])], True)
    assert greedy[0][1] is True
    assert other[0][1] is False


def test_a_long_context_loses_its_start(run: LoadedRun, lm: RunLM) -> None:
    context, continuation = "x" * 50, "yz"
    ((score, _),) = lm.loglikelihood([request("loglikelihood", context, continuation)], True)
    text = [256, *context.encode(), *continuation.encode()][-WINDOW - 1 :]
    assert score == pytest.approx(float(log_probs(run, text)[-2:].sum()), abs=1e-4)
    with pytest.raises(ConfigError, match="continuation of 40 tokens, more than the 32"):
        lm.loglikelihood([request("loglikelihood", "a", "b" * 40)], True)


def test_a_whole_text_is_scored_once_in_windows(run: LoadedRun, lm: RunLM) -> None:
    text = bytes(range(97, 97 + 26)).decode() * 3  # 78 tokens: windows of 32, 32 and 14
    tokens = [256, *text.encode()]
    found = lm.loglikelihood_rolling([request("loglikelihood_rolling", text)], True)
    expected = sum(
        float(log_probs(run, tokens[start : start + WINDOW + 1])[-count:].sum())
        for start, count in ((0, 32), (32, 32), (46, 14))
    )
    assert found == [pytest.approx(expected, abs=1e-3)]


def test_text_ends_before_the_first_stop(lm: RunLM) -> None:
    (whole,) = lm.generate_until([request("generate_until", "def", {"max_gen_toks": 20})], True)
    assert whole
    stop = whole[len(whole) // 2]
    wishes = {"max_gen_toks": 20, "until": [stop, "\0never"]}
    (cut,) = lm.generate_until([request("generate_until", "def", wishes)], True)
    assert cut == whole[: whole.index(stop)]


def test_repeated_sampling_draws_anew_and_heeds_the_cuts(lm: RunLM) -> None:
    wishes = {"max_gen_toks": 20, "do_sample": True}
    repeated = [request("generate_until", "def", wishes)] * 4
    texts = lm.generate_until(repeated, True)
    assert len(set(texts)) == 4
    assert lm.generate_until(repeated, True) == texts
    greedy = lm.generate_until([request("generate_until", "def", {"max_gen_toks": 20})], True)
    for cut in ({"top_k": 1}, {"top_p": 1e-9}):
        one = [request("generate_until", "def", wishes | cut)]
        assert lm.generate_until(one, True) == greedy


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """A multiple-choice task over four questions of our own."""
    rows = [
        {"question": f"def f{n}(", "choices": ["a", "bc", "xyz"], "answer": n % 3} for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ours.yaml").write_text(
        "task: ours\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: question\n"
        "doc_to_choice: choices\n"
        "doc_to_target: answer\n"
        "target_delimiter: ''\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return tmp_path


def test_a_local_task_is_run(
    run: LoadedRun, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task_folder / "cache"))
    results = evaluate_tasks(run, ["ours"], include_path=task_folder)
    right = 0
    for n in range(4):
        scores = [
            float(
                log_probs(run, [256, *f"def f{n}(".encode(), *choice.encode()])[
                    -len(choice) :
                ].sum()
            )
            for choice in ("a", "bc", "xyz")
        ]
        right += scores.index(max(scores)) == n % 3
    assert results["ours"]["acc"] == right / 4


def test_unknown_tasks_and_bounds_are_refused(run: LoadedRun, task_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no task our; did you mean 'ours'"):
        evaluate_tasks(run, ["our"], include_path=task_folder)
    run.adapter.likelihood = "upper"
    with pytest.raises(ConfigError, match="toy bounds its likelihood"):
        evaluate_tasks(dataclasses.replace(run), ["ours"], include_path=task_folder)
