"""The tasks: pure functions whose answers another program finds, and whose trivial strategies score
what is known of them."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
from task_solvers import SOLVERS

from nanozoo_core.probing.batches import Source
from nanozoo_core.probing.coding import Tokens
from nanozoo_core.probing.scoring import Marks, guessed
from nanozoo_core.probing.task import TEST, TRAIN, Task
from nanozoo_core.probing.tasks import TASKS
from nanozoo_core.probing.tasks.bridge import Bridge
from nanozoo_core.probing.tasks.hops import Hops
from nanozoo_core.probing.tasks.induction import Induction
from nanozoo_core.probing.tasks.mqar import MultiQueryRecall
from nanozoo_core.probing.tasks.polynomials import compose
from nanozoo_core.probing.tasks.recall import Recall
from nanozoo_core.probing.tasks.restore import Restore
from nanozoo_core.probing.tasks.words import WordProblem, elements, product

EVERY = [*TASKS]
FORMS: dict[str, Task] = {
    **{name: kind() for name, kind in TASKS.items()},
    **{f"{name} long": kind(**kind.long_knobs) for name, kind in TASKS.items() if kind.long_knobs},
    "bridge suffix first": Bridge(suffix_first=1),
    "words S5": WordProblem(group_size=120),
    "induction tested": Induction().tested(),
    "restore random case": Restore(perturbation="random_case"),
}


@pytest.mark.parametrize("form", FORMS)
def test_another_program_finds_every_answer(form: str) -> None:
    """And all samples are equally long, of the task's symbols, with answers in their order."""
    task = FORMS[form]
    assert task.check() == []
    for index in range(150):
        sample = task.sample(0, TEST, index)
        symbols = list(sample.symbols)
        assert len(symbols) == task.length
        assert set(symbols) <= set(range(task.num_symbols))
        assert list(sample.answers) == sorted(set(sample.answers))
        assert len(sample.groups) == len(sample.answers)
        for place in itertools.chain(*sample.spans()):
            found = SOLVERS[task.name](task, symbols[:place], symbols[place + 1 :])
            assert found == symbols[place], (index, place)


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_depends_on_its_own_numbers_alone(name: str) -> None:
    """Asked for in any order, and another for another index, split or seed."""
    task = TASKS[name]()
    forward = [task.sample(1, TRAIN, index) for index in range(8)]
    backward = [task.sample(1, TRAIN, index) for index in reversed(range(8))]
    assert forward == backward[::-1]
    others = [task.sample(1, TEST, 0), task.sample(2, TRAIN, 0), task.sample(1, TRAIN, 1)]
    assert all(other.symbols != forward[0].symbols for other in others)


def test_samples_are_the_same_in_every_process() -> None:
    """And with every release: a change of this digest ends the life of all results so far."""
    samples = [TASKS[name]().sample(3, TEST, 5) for name in EVERY]
    drawn = [(one.symbols, one.answers, one.groups) for one in samples]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == "89c4df06a8f69aa3"


@pytest.mark.parametrize("name", EVERY)
def test_training_and_test_share_no_sample(name: str) -> None:
    task = TASKS[name]()
    trained = {task.sample(0, TRAIN, task.train_index(index)).symbols for index in range(1500)}
    tested = {task.sample(0, TEST, index).symbols for index in range(300)}
    assert not trained & tested


def test_two_batches_hold_what_one_holds() -> None:
    task = TASKS["parity"]()
    source = Source(task, Tokens(task.num_symbols), 0)
    whole = source.training_batch(3, 8, 1, "answers")
    parts = [source.training_batch(step, 4, 1, "answers") for step in (6, 7)]
    assert whole.tokens.tolist() == [row for part in parts for row in part.tokens.tolist()]


# -- what is known of guesses --------------------------------------------------------------------

STATED = {
    "parity": 0.5,
    "words": 1 / 6,
    "memorization": 1 / 128,
    "recall": 0.358,
    "recall_noisy": 0.326,
    "mqar": (1 / 8 + 1 / 7 + 1 / 6 + 1 / 5) / 4,
    "needle": 0.25 + 0.75 / 32,
    "star": 0.5,
    "bridge": 1 / 30,
    "pointer": 1 / 7,
    "restore": 1 / 64,
}
"""Of the headline. Recall's are measured ones of the published form, the others derived."""


def of_headline(task: Task, marks: Marks) -> float:
    return getattr(marks, task.headline)


@pytest.mark.parametrize("name", STATED)
def test_the_trivial_strategy_scores_what_is_stated(name: str) -> None:
    task = TASKS[name]()
    marks = guessed(Source(task, Tokens(task.num_symbols), 5), 1000)
    found = of_headline(task, marks)
    assert abs(found - STATED[name]) <= 3 * math.sqrt(found * (1 - found) / 1000)


def test_hops_are_guessed_as_measured() -> None:
    """A third for one hop, half for two, a third for four, in a text long enough for all."""
    task = Hops(num_letters=96)
    marks = guessed(Source(task, Tokens(task.num_symbols), 1), 1500)
    found = marks.by_group()
    for hops, stated in (("1", 1 / 3), ("2", 0.5), ("4", 0.33)):
        assert abs(found[hops] - stated) < 0.04, (hops, found)


# -- peculiarities -------------------------------------------------------------------------------


def test_the_first_element_of_a_word_acts_first() -> None:
    """(01) and (12) do not commute: 0 goes to 1 and then to 2 one way, and stays at 1 the other."""
    known = elements(6)
    swap01, swap12 = known.index((1, 0, 2)), known.index((0, 2, 1))
    assert known[product(6, [swap01, swap12])] == (2, 0, 1)
    assert known[product(6, [swap12, swap01])] == (1, 2, 0)


def test_composition_is_cut_after_every_operation() -> None:
    """X^4 of 1 + X is (1 + X)^4, and X o f is f."""
    x, x4, f = [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]
    assert compose(x4, f) == [1, 4, 6, 4, 1]
    assert compose(x, f) == compose(f, x) == f


def test_mqar_asks_soon_and_each_key_once() -> None:
    task = MultiQueryRecall(length=144)
    first, half = 0, 0
    for index in range(200):
        sample = task.sample(0, TRAIN, index)
        slots = [(place - 1) // 2 - task.num_pairs for place in sample.answers]
        first += slots[0] < task.num_slots // 8
        half += len({sample.symbols[place - 1] for place in sample.answers}) == task.num_queries
    assert half == 200
    assert first > 180


def test_copying_uses_every_cell() -> None:
    """In the reference the last symbol always stands just before the end."""
    task = TASKS["copying"]()
    last = Counter(
        max(n for n, s in enumerate(task.sample(0, TRAIN, i).symbols[:64]) if s < 14)
        for i in range(300)
    )
    assert last[63] < 100


def test_noise_leaves_a_pair() -> None:
    """That all pairs but the last are noise is what the guarded one prevents."""
    task = replace(TASKS["recall_noisy"](), percent_noise=100)  # type: ignore[call-arg]
    sample = task.sample(0, TRAIN, 0)
    assert len([s for s in sample.symbols if s < 16]) == 4
    assert len(sample.answers) == 1


def test_recall_maps_keys_anew_in_each_sample() -> None:
    task = Recall()
    seen = {task.sample(0, TRAIN, n).symbols[:2] for n in range(200)}
    assert len({value for key, value in seen if key == 0}) > 4


def test_induction_shows_one_follower_alone() -> None:
    """Of all its triggers, which stand at all places, and the test has one."""
    task = Induction()
    places = Counter()
    for index in range(100):
        symbols = task.sample(0, TRAIN, index).symbols
        triggers = [n for n, symbol in enumerate(symbols) if symbol == 14]
        assert len(triggers) == 9
        assert len({symbols[n + 1] for n in triggers}) == 1
        places.update(n % 2 for n in triggers[:-1])
    assert abs(places[0] - places[1]) < 150
    assert task.tested().sample(0, TEST, 0).symbols.count(14) == 2
