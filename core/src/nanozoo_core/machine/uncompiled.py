"""Keeps functions whose shapes or control flow follow the data out of compiled graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(*, with_callees: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: torch.compile leaves the function alone, and what it calls if `with_callees`.

    torch.compiler.disable does the same, but as a decorator it imports the compiler at once, which
    takes seconds that evaluation and decoding need not spend.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return torch.compiler.disable(function, recursive=with_callees)(*args, **kwargs)
            return function(*args, **kwargs)

        return wrapped

    return decorate
