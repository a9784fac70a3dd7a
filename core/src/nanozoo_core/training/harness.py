"""Runs under EleutherAI's lm-evaluation-harness: `nanozoo evaluate RUN --tasks lambada_openai`.

Documents start with a separator in training, so every text here does too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.errors import ConfigError, suggest
from nanozoo_core.generation.text import generate_tokens
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.machine.terminal import has_bars
from nanozoo_core.training.runs import LoadedRun

NEW_TOKENS = 256
Scored = tuple[float, bool]


class RunLM(TemplateLM):
    """A run as the harness sees a model: log-likelihoods of token sequences, and greedy text."""

    def __init__(self, run: LoadedRun, *, batch_tokens: int) -> None:
        super().__init__()
        self.run = run
        self.batch_tokens = batch_tokens
        limit = run.max_context
        self.max_length = int(limit or run.config.data.seq_len)
        self._device = run.device

    @property
    def eot_token_id(self) -> int:
        return self.run.vocabulary.separator

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_options: Any
    ) -> list[int]:
        tokens = self.run.vocabulary.encode(string)
        return tokens if add_special_tokens is False else [self.eot_token_id, *tokens]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of what follows it: those that the whole text has, where its
        beginning has those of the context; otherwise, as a token would span both, each alone."""
        stripped = context.rstrip()  # as in the harness: a token begins with the space before it
        context, continuation = stripped, context[len(stripped) :] + continuation
        whole, before = self.tok_encode(context + continuation), self.tok_encode(context)
        if whole[: len(before)] == before:
            return before, whole[len(before) :]
        return before, self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[object, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_options: Any,
    ) -> list[Scored]:
        """(log p(continuation | context) in nats, whether it is the greedy one) of each request, as
        much of the context as fits the window."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        for _, continuation in pairs:
            if len(continuation) > self.max_length:
                raise ConfigError(
                    f"a task asks for a continuation of {len(continuation)} tokens, more than the "
                    f"{self.max_length} that {self.run.config.model} reads at once"
                )
        texts = [
            [*context, *continuation][-self.max_length - 1 :] for context, continuation in pairs
        ]
        scores: list[Scored] = [(0.0, True)] * len(pairs)
        with tqdm(total=len(pairs), desc="scoring", disable=disable_tqdm or not has_bars()) as bar:
            for places in self._batches(texts):
                logits = self._logits([texts[place][:-1] for place in places])
                for row, place in enumerate(places):
                    scores[place] = _score(logits[row], texts[place], len(pairs[place][1]))
                bar.update(len(places))
        return scores

    def _batches(self, texts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Places of texts of similar length, as many at once as `batch_tokens` allows."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        while order:
            size = max(1, self.batch_tokens // max(1, len(texts[order[0]])))
            yield order[:size]
            order = order[size:]

    @torch.no_grad()
    def _logits(self, rows: Sequence[list[int]]) -> Tensor:
        """(B, T, V) after each token of some texts, padded behind, where no model looks."""
        length = max(len(row) for row in rows)
        padded = [row + [self.eot_token_id] * (length - len(row)) for row in rows]
        adapter, model = self.run.adapter, self.run.model
        tokens = torch.tensor(padded, device=self.run.device)
        if not adapter.has_cache(model):
            logits: Tensor = model(tokens)
            return logits
        return adapter.append(model, tokens, adapter.init_cache(model, len(rows), length))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts in nats, each token once, in windows that overlap only where the
        last one is filled up with context."""
        windows: list[tuple[object, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            tokens = self.tok_encode(text, add_special_tokens=False)
            pieces = get_rolling_token_windows(
                tokens, prefix_token=self.eot_token_id, max_seq_len=self.max_length, context_len=1
            )
            for context, continuation in map(make_disjoint_window, pieces):
                windows.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(
            owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True
        ):
            totals[owner] += score
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text after each context until one of its `until` strings; greedy unless it asks to
        sample. A request that is repeated draws anew."""
        texts = []
        times_asked: Counter[str] = Counter()
        for request in tqdm(requests, desc="writing", disable=disable_tqdm or not has_bars()):
            context, wishes = request.args
            stops = wishes.get("until") or []
            stops = [stops] if isinstance(stops, str) else stops
            sampled = bool(wishes.get("do_sample"))
            settings = SamplingSettings(
                max_tokens=wishes.get("max_gen_toks", NEW_TOKENS),
                temperature=wishes.get("temperature", 1.0) if sampled else 0.0,
                top_k=wishes.get("top_k") or 0,
                top_p=wishes.get("top_p") or 1.0,
                seed=times_asked[context],
            )
            times_asked[context] += 1
            texts.append(self._write(context, settings, stops))
        return texts

    def _write(self, context: str, settings: SamplingSettings, stops: Sequence[str]) -> str:
        run = self.run
        tokens: list[int] = []
        text = ""
        for new in generate_tokens(run.adapter, run.model, run.vocabulary, context, settings):
            tokens += new
            text = run.vocabulary.decode(tokens)
            ends = [text.index(stop) for stop in stops if stop and stop in text]
            if ends:
                return text[: min(ends)]
        return text


def _score(logits: Tensor, text: list[int], count: int) -> Scored:
    """Of the last `count` tokens of a text, whose token after position t logits[t] (T, V) tell."""
    end = len(text) - 1
    chosen = in_float64(logits[end - count : end]).log_softmax(-1)
    targets = torch.tensor(text[end - count + 1 :], device=chosen.device)
    nats = chosen.gather(1, targets[:, None]).sum()
    return float(nats), bool((chosen.argmax(-1) == targets).all())


def evaluate_tasks(
    run: LoadedRun,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Scores a run on tasks of the harness, and of YAML files in `include_path`.

    Returns: the metrics of each task, by name.
    Raises: ConfigError for a model without exact likelihood, or a task that does not exist.
    """
    if run.adapter.likelihood != "exact":
        raise ConfigError(
            f"{run.config.model} bounds its likelihood and has no exact one, which the tasks "
            f"compare; nanozoo evaluate {run.folder} gives its bound in bits per byte"
        )
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            raise ConfigError(
                f"--tasks: the harness has no task {task}{suggest(task, known)}; --include-path "
                f"names a folder of your own"
            )
    found = simple_evaluate(
        model=RunLM(run, batch_tokens=run.config.eval.batch_tokens),
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
    )
    assert found is not None  # it is None on ranks other than 0
    return {
        task: {
            key.replace(",none", ""): value
            for key, value in metrics.items()
            if isinstance(value, int | float)
        }
        for task, metrics in found["results"].items()
    }
