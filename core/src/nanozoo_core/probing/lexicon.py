"""Words of letters drawn at random, which stand for symbols or make up a text."""

from __future__ import annotations

import string
from functools import cache

from nanozoo_core.probing.task import DICTIONARY, integers
from nanozoo_core.randomness import seeded_generator

SHORTEST_WORD, LONGEST_WORD = 3, 6  # letters
TRIES = 8  # words drawn for each that is kept; equal ones are left out


@cache
def pseudo_words(seed: int, number: int, count: int, *, index: int) -> tuple[bytes, ...]:
    """`count` different words of 3 to 6 letters, of which no one begins another with its space.

    Args: number, index: of the task, and of the table among those of its seed.
    """
    generator = seeded_generator(seed, number, DICTIONARY, index)
    sizes = integers(generator, LONGEST_WORD + 1, TRIES * count, low=SHORTEST_WORD)
    letters = integers(generator, 26, TRIES * count * LONGEST_WORD)
    drawn = [
        bytes(
            string.ascii_lowercase.encode()[letter]
            for letter in letters[n * LONGEST_WORD : n * LONGEST_WORD + size]
        )
        for n, size in enumerate(sizes)
    ]
    found = tuple(dict.fromkeys(drawn))[:count]
    assert len(found) == count, f"{TRIES} words for each of {count} held too few different ones"
    return found
