"""The key=value options of `nanozoo compare` and `nanozoo bench`: one table for help, usage and
reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanozoo_core.config.overrides import Override, parse_override
from nanozoo_core.errors import ConfigError, Problems, suggest
from nanozoo_core.machine.paths import require_path


@dataclass(frozen=True)
class Option:
    """One key: what stands for its value in the help, and what it means."""

    key: str
    value: str
    help: str


LARGEST_COUNT = 1_000_000  # of seeds, rounds, jobs or tokens of one command
SETTING = Option("key", "value", "a setting of every model; MODEL.key=value is a setting of one")


def describe(options: Sequence[Option], others: Sequence[Option] = ()) -> str:
    """The options for `--help`, a line each, and then what may stand beside them."""
    rows = [(f"{option.key}={option.value}", option.help) for option in (*options, *others)]
    width = max(len(word) for word, _ in rows)
    return "\n".join(f"{word:<{width}}  {text}" for word, text in rows)


def usage(command: str, options: Sequence[Option]) -> str:
    """One line: the first option, and the others as what may be left out."""
    words = [f"{option.key}={option.value}" for option in options]
    return " ".join([f"nanozoo {command}", words[0], *(f"[{word}]" for word in words[1:])])


@dataclass
class Words:
    """What the user typed: options of the command, and settings of the models."""

    command: str
    options: Sequence[Option]
    problems: Problems
    own: dict[str, Override] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)

    @classmethod
    def read(
        cls, command: str, options: Sequence[Option], words: Sequence[str], problems: Problems
    ) -> Words:
        """Sorts the words; what is no key=value becomes a problem."""
        found = cls(command, options, problems)
        keys = [option.key for option in options]
        for word in words:
            key, equals, _ = word.partition("=")
            if not equals:
                problems.add(f"'{word}' is not key=value; usage: {usage(command, options)}")
            elif key in keys:
                try:
                    found.own[key] = parse_override(word)
                except ConfigError as error:
                    problems.add(str(error))
            else:
                found.settings.append(word)
        return found

    def text(self, key: str, default: str) -> str:
        """An option as it was typed, without quotes."""
        given = self.own.get(key)
        if given is None:
            return default
        return given.value if isinstance(given.value, str) else given.text

    def parts(self, key: str, default: Sequence[str] = ()) -> list[str]:
        """An option that is a list: `a,b` or `[a,b]`, or one value alone."""
        given = self.own.get(key)
        if given is None:
            return list(default)
        value: Any = given.value
        return [str(part) for part in (value if isinstance(value, list) else [value]) if part != ""]

    def one_of(self, key: str, choices: Sequence[str]) -> str:
        """An option with few values, of which the first is the default, or a problem."""
        text = self.text(key, choices[0])
        near = suggest(text, choices)
        self.problems.require(
            text in choices, f"{key}={text} must be one of {', '.join(choices)}{near}"
        )
        return text

    def path(self, key: str, default: str) -> Path:
        """An option that is a path, or a problem."""
        text = self.text(key, default)
        require_path(self.problems, key, text)
        return Path(text)

    def whole_number(self, key: str, default: int) -> int:
        """An option that is a whole number of at least 1, or a problem."""
        given = self.own.get(key)
        value: Any = default if given is None else given.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_COUNT:
            return value
        self.problems.add(
            f"{key}={self.text(key, '')} must be a whole number of at least 1 and at most "
            f"{LARGEST_COUNT}"
        )
        return default

    def distinct_positives(self, key: str) -> tuple[float, ...]:
        """An option that is several positive numbers, none twice, or a problem; () if not given."""
        given = self.own.get(key)
        if given is None:
            return ()
        found = given.value if isinstance(given.value, list) else [given.value]
        numbers = tuple(
            float(n)
            for n in found
            if isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < math.inf
        )
        if len(set(numbers)) < max(2, len(found)):
            self.problems.add(
                f"{key}={self.text(key, '')} must be at least two positive numbers, none of them "
                f"twice, as in {key}=0.5,1,2"
            )
        return numbers

    def positive(self, key: str, default: float | None) -> float | None:
        """An option that is a positive number, or a problem."""
        given = self.own.get(key)
        if given is None:
            return default
        value = given.value
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 < value < float("inf")
        ):
            return float(value)
        self.problems.add(f"{key}={given.text} must be a positive number")
        return default
