"""Words `key=value` of a command line, read by Hydra's grammar for every command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanozoo_core.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """One word: `eval.bytes=2e3` has the value 2000.0, `models=a,b` the list of both."""

    key: str
    value: Any
    text: str
    """The value as it was typed."""


def parse_override(word: str) -> Override:
    """Raises: ConfigError for a word that is no key=value, or whose value cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"'{word}' must have the form key=value")
    try:
        parsed = OverridesParser.create().parse_override(word)
        value = list(parsed.sweep_iterator()) if parsed.is_sweep_override() else parsed.value()
    except HydraException as error:
        raise unreadable(word, str(error).splitlines()[0]) from error
    return Override(key.lstrip("+"), _plain(value), text)


def unreadable(word: str, reason: str) -> ConfigError:
    """What every command says of a word that Hydra's grammar does not take, and how to quote its
    value."""
    key, equals, value = word.partition("=")
    example = value if value and not set(value) & set("'\"$`\\!") else "my text"
    advice = "; a value with other signs than letters, digits and -_./: goes in quotes, as in "
    advice += f"{key}=\"'{example}'\""
    return ConfigError(f"'{word}' cannot be read: {reason}" + (advice if equals else ""))


def section_values(words: Sequence[str], *, section: str) -> dict[str, Any]:
    """The values of `section.key=value` or `key=value` words by key, without the section.

    Raises: ConfigError as `parse_override`, and for a key of another section.
    """
    values = {}
    for override in map(parse_override, words):
        key = override.key.removeprefix(f"{section}.")
        if "." in key:
            raise ConfigError(
                f"'{override.key}' does not apply here; only {section}.key=value does"
            )
        values[key] = override.value
    return values


def split_model_values(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of the `model_cfg.key=value` words by key, and the other words."""
    mine = [word for word in words if word.lstrip("+").startswith("model_cfg.")]
    return section_values(mine, section="model_cfg"), [w for w in words if w not in mine]


def quoted(text: str) -> str:
    """A text as the value of an override, whatever characters it holds."""
    # Hydra reads a backslash as itself but before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and "\\'"), literal(text))
    return f"'{escaped}'"


def literal(text: str) -> str:
    """A text as OmegaConf reads it back: its `${` begins no reference to another setting."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)


def all_literal(value: Any) -> Any:
    """`literal` of every text in nested settings."""
    if isinstance(value, dict):
        return {key: all_literal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [all_literal(part) for part in value]
    return literal(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """Hydra marks texts that stood in quotes; here they are texts, as it would compose them."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, str):
        return re.sub(r"(\\*)\\\$\{", lambda m: m[1][: len(m[1]) // 2] + "${", value)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    return value
