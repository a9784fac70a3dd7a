"""A trained run on corrupted text: how much worse it continues what a reader still understands.

Reference: the perturbations of BLT (arXiv 2412.09871, section 6.1) and the score of H-Net
(arXiv 2507.07955, appendix D.1), which both ask multiple-choice questions of HellaSwag. Ours ask
for the continuation of a validation document, among those of others.

B windows, T tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nanozoo_core.config import EvalConfig, schema
from nanozoo_core.contract import Batch, Draw
from nanozoo_core.data.loader import make_batch
from nanozoo_core.errors import ConfigError
from nanozoo_core.evaluation.score import NOISE_SEED
from nanozoo_core.likelihood import bits_per_byte
from nanozoo_core.machine.device import autocast, resolve_dtype
from nanozoo_core.probing.perturbations import PERTURBATIONS
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.training.runs import LoadedRun, validation_set

CONTEXT, CONTINUATION = 256, 64  # bytes, less what it takes to cut at a space
NUM_CHOICES = 4
NUM_ITEMS = 1000
DRAWS = 8  # of a bound, the same for all choices of an item
CHANCE = 1 / NUM_CHOICES
KNOWS_CLEAN = 0.35  # share of right choices below which their fall says nothing
GRID = 64  # windows of an exact likelihood are as long as they must be, in multiples of this

Row = tuple[int, list[int], list[int]]
"""The number of an item, and the tokens of a context and of a continuation."""


@dataclass(frozen=True)
class Item:
    """A context, four continuations of which one is its own, and how many bytes each has."""

    number: int
    context: str
    choices: tuple[bytes, ...]
    answer: int

    def perturbed(self, name: str | None) -> str:
        """The end of the context as a perturbation leaves it, None for none: cut afterwards, as
        some make it longer."""
        if name is None:
            return self.context
        generator = seeded_generator([*PERTURBATIONS].index(name), self.number)
        changed = PERTURBATIONS[name](self.context, generator)
        return changed.encode()[-CONTEXT:].decode("utf-8", errors="ignore")


@dataclass(frozen=True)
class Answers:
    """What a run said to all items in one form of their contexts."""

    accuracy: float
    bpb: float
    """Bits per byte of the true continuations, which are clean."""


def find_items(documents: Sequence[bytes], count: int) -> list[Item]:
    """At most `count` items, drawn from all pieces of the documents; the wrong continuations are
    of other documents, as far from their beginnings.

    Raises: ConfigError where fewer than four documents are long enough for one.
    """
    pieces = [_pieces(document) for document in documents]
    depth = max(map(len, pieces), default=0)
    columns = [[one for one, found in enumerate(pieces) if len(found) > n] for n in range(depth)]
    places = [
        (n, one) for n, owners in enumerate(columns) if len(owners) >= NUM_CHOICES for one in owners
    ]
    if not places:
        raise ConfigError(
            f"the validation text has {len(columns[0]) if columns else 0} documents of at least "
            f"{CONTEXT + CONTINUATION} bytes, and a choice takes {NUM_CHOICES}; raise bytes="
        )
    order = torch.randperm(len(places), generator=seeded_generator(0)).tolist()
    items = []
    for number, place in enumerate(order[:count]):
        n, own = places[place]
        generator = seeded_generator(1, number)
        others = [one for one in columns[n] if one != own]
        drawn = torch.randperm(len(others), generator=generator)[: NUM_CHOICES - 1].tolist()
        answer = int(torch.randint(NUM_CHOICES, (), generator=generator))
        chosen = [others[one] for one in drawn]
        chosen.insert(answer, own)
        context = pieces[own][n][0].decode("utf-8", errors="ignore")
        items.append(Item(number, context, tuple(pieces[one][n][1] for one in chosen), answer))
    return items


def _pieces(document: bytes) -> list[tuple[bytes, bytes]]:
    """Contexts and continuations, one behind the other, cut before spaces: a token that begins with
    a space spans no cut."""
    found: list[tuple[bytes, bytes]] = []
    begin = 0
    while True:
        cut = document.find(b" ", begin + CONTEXT)
        if cut < 0 or cut + CONTINUATION > len(document):
            return found
        end = document.rfind(b" ", cut + 1, cut + CONTINUATION + 1)
        if end > 0:
            found.append((document[begin:cut][-CONTEXT:], document[cut:end]))
        begin = max(end, cut)


def evaluate_corrupted(
    run: LoadedRun, overrides: dict[str, Any], *, num_items: int = NUM_ITEMS
) -> dict[str, Any]:
    """The share of right choices and the bits per byte of the true continuation, behind the clean
    context and behind each corrupted one.

    Args: overrides: of `eval`, such as bytes=1e6 for more of the validation text.
    Raises: ConfigError for settings that do not fit, and a text with too few documents.
    """
    if num_items < 1:
        raise ConfigError(f"--limit={num_items} must be at least 1")
    settings = schema.to_dict(run.config.eval) | overrides
    evaluation = schema.from_dict(EvalConfig, settings, "eval")
    validation, _ = validation_set(run, evaluation)
    items = find_items(validation.documents, num_items)
    forms = {name: ask(run, items, name, evaluation.batch_tokens) for name in PERTURBATIONS}
    clean = ask(run, items, None, evaluation.batch_tokens)
    return {
        "model": run.config.model,
        "run": str(run.folder),
        "step": run.state.step,
        "items": len(items),
        "chance": CHANCE,
        "bound": run.adapter.likelihood,
        "clean": _values(clean, clean, len(items)),
        **{name: _values(found, clean, len(items)) for name, found in forms.items()},
        "mean": _values(_mean([*forms.values()]), clean, len(items)),
    }


def _mean(forms: Sequence[Answers]) -> Answers:
    return Answers(
        sum(one.accuracy for one in forms) / len(forms), sum(one.bpb for one in forms) / len(forms)
    )


def _values(found: Answers, clean: Answers, count: int) -> dict[str, float | None]:
    return {
        "accuracy": found.accuracy,
        "accuracy_error": math.sqrt(found.accuracy * (1 - found.accuracy) / count),
        "score": score(found.accuracy, clean.accuracy),
        "bpb": found.bpb,
        "bpb_over_clean": found.bpb - clean.bpb,
    }


def score(accuracy: float, clean: float) -> float | None:
    """What is left of the accuracy above chance, in percent; None where a clean text has hardly
    any."""
    return 100 * (accuracy - CHANCE) / (clean - CHANCE) if clean >= KNOWS_CLEAN else None


@torch.no_grad()
def ask(run: LoadedRun, items: Sequence[Item], name: str | None, batch_tokens: int) -> Answers:
    """Of the choices the one with the fewest nats per byte is the run's.

    Args: name: of the perturbation of the contexts; None leaves them clean.
    Raises: ConfigError for windows that hold no continuation.
    """
    vocabulary = run.vocabulary
    rows = [
        (item.number, vocabulary.encode(item.perturbed(name)), vocabulary.encode(choice))
        for item in items
        for choice in item.choices
    ]
    length = _window(run, rows)
    nats = torch.cat(
        [
            _nats(run, rows[first : first + size], length, len(items))
            for size in [max(1, batch_tokens // length)]
            for first in range(0, len(rows), size)
        ]
    ).reshape(len(items), -1)
    sizes = torch.tensor([[len(choice) for choice in item.choices] for item in items])
    answers = torch.tensor([item.answer for item in items])
    right = (nats / sizes).argmin(1) == answers
    true = answers[:, None]
    num_bytes = int(sizes.gather(1, true).sum())
    bpb = bits_per_byte(float(nats.gather(1, true).sum()), num_bytes)
    return Answers(float(right.double().mean()), bpb)


def _window(run: LoadedRun, rows: Sequence[Row]) -> int:
    """T: what the run was trained on, or less where its likelihood is exact and less is needed."""
    longest = run.config.data.seq_len
    behind = max(len(behind) for _, _, behind in rows)
    if longest <= behind:
        raise ConfigError(
            f"data.seq_len={longest} leaves no room for a context before a continuation of "
            f"{behind} tokens"
        )
    if run.adapter.likelihood != "exact":
        return longest
    needed = max(len(before) + len(behind) for _, before, behind in rows)
    return min(longest, -(-needed // GRID) * GRID)


def _nats(run: LoadedRun, rows: Sequence[Row], length: int, num_rows: int) -> torch.Tensor:
    """(B,) float64: nats of some continuations, for a bound their mean over draws."""
    batch = _batch(run, rows, length, num_rows).to(run.device)
    dtype = resolve_dtype(run.config.dtype, run.device)
    draws = 1 if run.adapter.likelihood == "exact" else DRAWS
    total = torch.zeros(len(rows), dtype=torch.float64)
    for number in range(draws):
        with autocast(run.device, dtype):
            total += run.adapter.nll(run.model, batch, Draw(NOISE_SEED, number)).nats.cpu()
    return total / draws


def _batch(run: LoadedRun, rows: Sequence[Row], length: int, num_rows: int) -> Batch:
    """The end of a context behind a separator, and its continuation, which alone is scored;
    separators to the end, as behind any text that is shorter than a window. The choices of an item
    have its number, by which a bound draws its noise."""
    lookahead = run.adapter.lookahead(run.model_cfg)
    separator = run.vocabulary.separator
    tokens = np.full((len(rows), length + lookahead), separator, dtype=run.vocabulary.dtype)
    scored = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (_, before, behind) in enumerate(rows):
        text = [*before, *behind][-length:]
        tokens[row, 1 : len(text) + 1] = text
        scored[row, len(text) - len(behind) : len(text)] = True
    numbers = np.array([number for number, _, _ in rows])
    return make_batch(
        tokens, numbers, separator=separator, num_rows=num_rows, lookahead=lookahead, scored=scored
    )
