"""A run on corrupted text: items cut from documents, and choices whose outcome is known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nanozoo_core.config import EvalConfig
from nanozoo_core.contract import Batch, Draw, Nll
from nanozoo_core.data.tokenizers import ByteTokenizer
from nanozoo_core.errors import ConfigError
from nanozoo_core.probing import corrupted
from nanozoo_core.probing.corrupted import Item, ask, evaluate_corrupted, find_items, score

WORDS = ["abba", "cddc", "effe", "ghhg", "ijji", "kllk"]
DOCUMENTS = [f"{word} ".encode() * 200 for word in WORDS]
"""Each of one word, whose letters no other has."""


class Reader:
    """One nat for each byte of the continuation that its context does not hold; a bound draws the
    same noise for windows of one number and adds it."""

    def __init__(self, likelihood: str = "exact") -> None:
        self.likelihood = likelihood
        self.seen: list[Batch] = []
        self.draws: list[int] = []

    def lookahead(self, config: object) -> int:
        return 3

    def nll(self, model: nn.Module, batch: Batch, draw: Draw) -> Nll:
        self.seen.append(batch)
        self.draws.append(draw.number)
        assert batch.scored is not None
        nats = []
        for text, scored, row in zip(
            batch.window.tolist(), batch.scored.tolist(), batch.rows.tolist(), strict=True
        ):
            first = scored.index(True) + 1
            known, asked = set(text[:first]), text[first : first + sum(scored)]
            noise = 0.0
            if self.likelihood == "upper":
                noise = float(torch.rand((), generator=draw.row_generator(row)))
            nats.append(noise + sum(byte not in known for byte in asked))
        return Nll(torch.tensor(nats, dtype=torch.float64), batch.num_scored)


def run_of(adapter: Reader, seq_len: int = 512) -> Any:
    return SimpleNamespace(
        adapter=adapter,
        model=nn.Identity(),
        model_cfg=None,
        vocabulary=ByteTokenizer(),
        device=torch.device("cpu"),
        folder=Path("here"),
        state=SimpleNamespace(step=7),
        config=SimpleNamespace(
            model="reader", dtype="float32", data=SimpleNamespace(seq_len=seq_len)
        ),
    )


def items(count: int = 40) -> list[Item]:
    return find_items(DOCUMENTS, count)


def test_an_item_is_a_piece_and_three_of_other_documents() -> None:
    found = items(1000)
    assert len(found) == len(WORDS) * (1000 // 320)
    assert len({item.answer for item in found}) == 4
    assert [item.number for item in found] == list(range(len(found)))
    for item in found:
        words = [choice.split()[0] for choice in item.choices]
        assert words[item.answer] == item.context.split()[-1].encode()
        assert len(set(words)) == 4
        assert len(item.context.encode()) <= 256
        for choice in item.choices:
            assert choice.startswith(b" ")
            assert not choice.endswith(b" ")
            assert len(choice) <= 64


def test_a_wrong_choice_is_as_far_into_its_document() -> None:
    """Words count on, so that a choice tells where it stands."""
    documents = [" ".join(f"{letter}{n:03}" for n in range(400)).encode() for letter in "abcdef"]
    found = find_items(documents, 1000)
    assert len(found) > 12
    for item in found:
        assert len({choice[2:5] for choice in item.choices}) == 1
        assert len({choice[1:2] for choice in item.choices}) == 4


@pytest.mark.parametrize("documents", [[], DOCUMENTS[:3], [b"short text"] * 9, [b"x" * 999] * 9])
def test_too_few_documents_are_told(documents: list[bytes]) -> None:
    with pytest.raises(ConfigError, match="and a choice takes 4; raise bytes="):
        find_items(documents, 10)


def test_a_reader_of_letters_finds_its_document_while_letters_are_whole() -> None:
    """Drop and repeat leave every letter somewhere; upper case and ant speak leave none, and then
    the first of four equal choices is as good as another."""
    found = items()
    run = run_of(Reader())
    assert ask(run, found, None, 4096).accuracy == 1.0
    assert ask(run, found, None, 4096).bpb == 0.0
    for name in ("drop", "repeat", "random_case"):
        assert ask(run, found, name, 4096).accuracy == 1.0
    for name in ("upper_case", "ant_speak"):
        answers = ask(run, found, name, 4096)
        assert answers.accuracy == sum(item.answer == 0 for item in found) / len(found)
        true = b"".join(item.choices[item.answer] for item in found)
        letters = sum(byte != ord(" ") for byte in true)
        assert answers.bpb == pytest.approx(letters / len(true) / math.log(2))


def test_the_continuation_alone_is_scored() -> None:
    """It stands behind its context, and both between separators."""
    adapter = Reader()
    found = items(3)
    ask(run_of(adapter), found, "ant_speak", 10**6)
    (batch,) = adapter.seen
    assert batch.tokens.shape == (12, 320 + 3)
    assert batch.rows.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    separator = ByteTokenizer().separator
    for row in range(12):
        item = found[row // 4]
        choice = item.choices[row % 4]
        text = batch.window[row].tolist()
        before = item.perturbed("ant_speak").encode()
        size = len(before) + len(choice)
        assert text == [separator, *before, *choice] + [separator] * (320 - size)
        scored = [False] * len(before) + [True] * len(choice) + [False] * (320 - size)
        assert batch.scored[row].tolist() == scored
        assert batch.tokens[row, -2:].tolist() == [separator] * 2


def test_a_perturbed_context_keeps_its_end_and_its_length() -> None:
    item = Item(0, "ab" * 128, (b" x",) * 4, 0)
    assert item.perturbed("ant_speak") == " A B" * 64
    for name in ("ant_speak", "repeat"):
        assert len(item.perturbed(name)) == 256
    assert item.perturbed("drop") != Item(1, "ab" * 128, (b" x",) * 4, 0).perturbed("drop")


def test_a_short_window_cuts_the_context_from_the_left() -> None:
    adapter = Reader()
    ask(run_of(adapter, seq_len=100), items(2), None, 4096)
    assert all(batch.inputs.shape[1] == 100 for batch in adapter.seen)
    with pytest.raises(ConfigError, match=r"data\.seq_len=60 leaves no room for a context"):
        ask(run_of(Reader(), seq_len=60), items(2), None, 4096)


def test_batches_change_nothing_and_a_bound_has_common_noise() -> None:
    """All choices of an item share it, so that the order is that of the exact reader."""
    found = items()
    for likelihood in ("exact", "upper"):
        whole, parts = (ask(run_of(Reader(likelihood)), found, None, n) for n in (10**6, 700))
        assert whole.accuracy == parts.accuracy == 1.0
        assert whole.bpb == pytest.approx(parts.bpb, rel=1e-12)
    adapter = Reader("upper")
    ask(run_of(adapter), found[:2], None, 10**6)
    assert adapter.draws == list(range(8))
    assert adapter.seen[0].inputs.shape[1] == 512


def test_choices_are_held_against_each_other_by_the_byte() -> None:
    """Ten unknown bytes of nineteen are fewer than nine of nine."""
    item = Item(0, "x" * 200, (b" " + b"y" * 8, b" " + b"y" * 9 + b"x" * 9), answer=1)
    assert ask(run_of(Reader()), [item], None, 4096).accuracy == 1.0


def test_the_score_is_what_is_left_above_chance() -> None:
    assert score(0.5, 0.75) == pytest.approx(50.0)
    assert score(0.2, 0.75) == pytest.approx(-10.0)
    assert score(0.3, 0.34) is None


def test_all_forms_stand_beside_the_clean_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        corrupted, "validation_set", lambda *_: (SimpleNamespace(documents=DOCUMENTS), "")
    )
    run = run_of(Reader())
    run.config.eval = EvalConfig(every=0, bytes=300, split="all", draws=1, batch_tokens=4096)
    found = evaluate_corrupted(run, {"bytes": 5000}, num_items=12)
    assert (found["items"], found["clean"]["score"], found["clean"]["bpb_over_clean"]) == (
        12, 100.0, 0.0)  # fmt: skip
    forms = ("ant_speak", "drop", "random_case", "repeat", "upper_case")
    for key in ("accuracy", "bpb", "score"):
        assert found["mean"][key] == pytest.approx(sum(found[form][key] for form in forms) / 5)
    assert found["upper_case"]["bpb_over_clean"] == pytest.approx(found["upper_case"]["bpb"])
    with pytest.raises(ConfigError, match="--limit=0 must be at least 1"):
        evaluate_corrupted(run, {}, num_items=0)
