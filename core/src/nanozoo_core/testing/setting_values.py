"""Other values that a setting may legally have, found from its type, its choices and its ranges."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union

from nanozoo_core.config.ranges import Range

NUMBERS: dict[type, tuple[float, ...]] = {int: (2, 3, 1, 4, 8, 16), float: (0.5, 2.0, 0.1, 1.0)}
"""What a number that is null may become."""


def setting_names(cls: type) -> Iterator[tuple[str, Any]]:
    """Every setting of a config class and its type; those of a section by dotted names."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from ((f"{field.name}.{name}", inner) for name, inner in setting_names(hint))
        else:
            yield field.name, hint


def other_values(hint: Any, value: Any) -> list[Any]:
    """Values that the type and its ranges allow in place of `value`, the nearest kinds first.

    Text that is free to choose has none: which patterns or files are legal its type does not say.
    """
    found: list[Any] = []
    for option in _options(hint):
        found += _values_of(option, value)
    return [candidate for candidate in found if not _same(candidate, value)]


def _values_of(option: Any, value: Any) -> list[Any]:
    origin = typing.get_origin(option)
    if origin is Annotated:
        ranges = [extra for extra in option.__metadata__ if isinstance(extra, Range)]
        values = _values_of(option.__origin__, value)
        return [v for v in values if all(r.problem(v) is None for r in ranges)]
    if option is type(None):
        return [None]
    if origin is Literal:
        return list(typing.get_args(option))
    if option is bool:
        return [True, False]
    if option in (int, float):
        return _numbers(option, value)
    if origin in (list, tuple):
        return _sequences(option, value)
    return []


def _numbers(kind: type, value: Any) -> list[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return list(NUMBERS[kind])
    if kind is int:
        return [2 * value, value + 1, value - 1, value // 2, value + 2] if value else [1, 2, 4]
    return [2 * value, value / 2, 0.9 * value, 3 * value] if value else [0.25, 1.0]


def _sequences(option: Any, value: Any) -> list[Any]:
    """With one entry moved, wherever it lies, and one entry shorter or longer."""
    if not isinstance(value, list | tuple):
        return []
    items = typing.get_args(option)
    hint = items[0] if items else object
    moved = [
        [*value[:place], candidate, *value[place + 1 :]]
        for place, entry in enumerate(value)
        for candidate in other_values(hint, entry)
    ]
    lengths = [list(value[1:]), [*value, *value[-1:]], [0], [1]]
    return [*moved, *lengths]


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type, null last: it mostly stands for a value that there is."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return (hint,)
    return tuple(sorted(typing.get_args(hint), key=lambda option: option is type(None)))


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return list(one) == list(two)
    return isinstance(one, bool) == isinstance(two, bool) and one == two
