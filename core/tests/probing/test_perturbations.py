"""Five ways to corrupt a text: what each changes, how often, and what it leaves alone."""

from __future__ import annotations

import itertools

import pytest

from nanozoo_core.probing.perturbations import PERTURBATIONS, longest
from nanozoo_core.randomness import seeded_generator

TEXT = "Grüße, all of YOU: 12 " * 400
NUM_LETTERS = sum(c.isascii() and c.isalpha() for c in TEXT)


def perturbed(name: str, seed: int = 0, text: str = TEXT) -> str:
    return PERTURBATIONS[name](text, seeded_generator(seed))


def test_upper_case_and_ant_speak() -> None:
    assert perturbed("upper_case", text="Grüße, you") == "GRüßE, YOU"
    assert perturbed("ant_speak", text="a Bc") == "A   B C"


def test_random_case_raises_half_of_the_letters_and_leaves_the_rest() -> None:
    found = perturbed("random_case")
    assert found.lower() == TEXT.lower()
    raised = sum("A" <= c <= "Z" for c in found)
    assert abs(raised / NUM_LETTERS - 0.5) < 3 * (0.25 / NUM_LETTERS) ** 0.5


def test_drop_leaves_nine_of_ten_in_their_order() -> None:
    found = perturbed("drop")
    assert abs(len(found) / len(TEXT) - 0.9) < 3 * (0.09 / len(TEXT)) ** 0.5
    left = iter(TEXT)
    assert all(c in left for c in found)


def test_repeat_doubles_to_quadruples_a_fifth() -> None:
    """A fifth stands 2 to 4 times, in equal shares: 1.4 times as much text."""
    text = "ab" * 4000
    runs = [len(list(run)) for _, run in itertools.groupby(perturbed("repeat", text=text))]
    assert len(runs) == len(text)
    for count in (2, 3, 4):
        assert abs(runs.count(count) / len(runs) - 0.2 / 3) < 0.009
    assert set(runs) == {1, 2, 3, 4}


@pytest.mark.parametrize("name", ["drop", "random_case", "repeat"])
def test_draws_come_from_the_generator_alone(name: str) -> None:
    assert perturbed(name) == perturbed(name)
    assert perturbed(name) != perturbed(name, seed=1)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_no_text_becomes_longer_than_is_said(name: str) -> None:
    for seed in range(200):
        assert len(perturbed(name, seed, "abc d")) <= longest(name, 5)
