"""The longest token that begins another, for a vocabulary of byte strings.

A model that is unsure of the next token may still know how it begins.
"""

from __future__ import annotations

from collections.abc import Sequence


def prefix_table(tokens: Sequence[bytes]) -> list[int]:
    """For each token the id of its longest proper prefix that is a token too, or -1.

    Args: tokens: the bytes of each id; empty where it has none, such as the separator's.
    """
    table = [-1] * len(tokens)
    # In sorted order every prefix stands before what it begins; the stack holds the live ones.
    stack: list[int] = []
    for token in sorted((n for n, text in enumerate(tokens) if text), key=tokens.__getitem__):
        while stack and not tokens[token].startswith(tokens[stack[-1]]):
            stack.pop()
        if stack and tokens[stack[-1]] != tokens[token]:
            table[token] = stack[-1]
        stack.append(token)
    return table
