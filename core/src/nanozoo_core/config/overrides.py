"""Words `key=value` of a command line, read by Hydra's grammar for every command."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from nanozoo_core.errors import ConfigError, show_value
from nanozoo_core.machine.terminal import conceal

PATHS = (
    *("data.path", "data.sources.*.path", "data.tokenizer"),
    *("run_dir", "resume", "init_from", "folder"),
)
"""Settings and options that are paths: these may hold any sign without quotes."""
LISTS_OF_PATHS = ("models", "runs")
NOT_TEXTS = ("null", "true", "false", "nan", "inf")  # words that the grammar reads as values
PLAIN = "-_./:+%@*?|, \\"  # signs that the grammar takes without quotes


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
        if _is_path(name := key.lstrip("+")):
            return Override(name, text, text)
        if name in LISTS_OF_PATHS and not set(text) & set("'\"[]{}"):
            return Override(name, text.split(","), text)
        raise unreadable(word) from error
    return Override(key.lstrip("+"), _plain(value), text)


def with_quoted_path(word: str) -> str:
    """A word with its value in quotes where that is a path which the grammar would not take."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, text = word.partition("=")
    if _is_path(key.lstrip("+")):
        try:
            OverridesParser.create().parse_override(word)
        except HydraException:
            return f"{key}={quoted(text)}"
    return word


def _is_path(key: str) -> bool:
    return any(fnmatch(key, path) for path in PATHS)


def unreadable(word: str) -> ConfigError:
    """What every command says of a word that Hydra's grammar does not take, and how to quote its
    value."""
    word = word.encode("unicode_escape").decode("ascii") if not word.isprintable() else word
    key, equals, value = word.partition("=")
    reason = _reason(value if equals else word)
    example = value if value and not set(value) & set("'\"$`\\!") else "my text"
    advice = "; a value with other signs than letters, digits and -_./: goes in quotes, as in "
    advice += f"{key}=\"'{example}'\""
    return ConfigError(f"'{word}' cannot be read: {reason}" + (advice if equals else ""))


def _reason(value: str) -> str:
    if any(value.count(quote) % 2 for quote in "'\""):
        return "a quote in it is not closed"
    if any(value.count(pair[0]) != value.count(pair[1]) for pair in ("[]", "{}", "()")):
        return "a bracket in it is not closed"
    odd = next((c for c in value if not (c.isascii() and (c.isalnum() or c in PLAIN))), None)
    return "its value has no such form" if odd is None else f"it has the sign {odd} without quotes"


def section_values(
    words: Sequence[str], *, section: str, subsections: Collection[str] = ()
) -> dict[str, Any]:
    """The values of `section.key=value` or `key=value` words by key, without the section.

    Args: subsections: keys that hold sections, whose own keys may be given too.
    Raises: ConfigError as `parse_override`, and for a key of another section.
    """
    values: dict[str, Any] = {}
    for override in map(parse_override, words):
        *outer, key = override.key.removeprefix(f"{section}.").split(".")
        if outer and outer[0] not in subsections:
            raise ConfigError(
                f"'{override.key}' does not apply here; only {section}.key=value does"
            )
        place = values
        for name in outer:
            place = place.setdefault(name, {})
        place[key] = override.value
    return values


def as_words(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The words `key=value` that say the same as nested settings of Python.

    Raises: ConfigError for a value that no setting has.
    """
    words: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            words += as_words(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={_as_text(value, f'{prefix}{key}')}")
    return words


_BARE_WORD = re.compile(r"[A-Za-z_][\w./:+-]*")


def _as_text(value: Any, key: str) -> str:
    """A value in Hydra's grammar, which gives it back with its type."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, bool):
        return show_value(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, str):
        is_bare = _BARE_WORD.fullmatch(value) and value.lower() not in NOT_TEXTS
        return value if is_bare else quoted(value)
    if isinstance(value, Mapping):
        parts = (f"{_as_text(k, key)}:{_as_text(part, key)}" for k, part in value.items())
        return f"{{{','.join(parts)}}}"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return f"[{','.join(_as_text(part, key) for part in value)}]"
    raise ConfigError(
        f"{key}={value!r} is of type {type(value).__name__}; a setting is a number, a text, True, "
        f"False, None, or a list of these"
    )


def split_model_values(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of the `model_cfg.key=value` words by key, and the other words."""
    mine = [word for word in words if word.lstrip("+").startswith("model_cfg.")]
    return section_values(mine, section="model_cfg"), [w for w in words if w not in mine]


def quoted(text: str) -> str:
    """A text as the value of an override, whatever characters it holds."""
    # Hydra reads a backslash as itself but before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and "\\'"), literal(text))
    return f"'{escaped}'"


class Referred(str):
    """A text of the environment; `reference` is how the settings say it, as ${oc.env:TOKEN}.

    Such a text may be a secret: it is stored as its reference, and errors show no more.
    """

    reference: str

    def __new__(cls, text: str, reference: str = "") -> Referred:
        made = super().__new__(cls, text)
        made.reference = reference
        return made


_VARIABLE = re.compile(r"\$\{\s*oc\.env:\s*([A-Za-z_]\w*)")


def resolved_values(config: Any) -> Any:
    """Settings of OmegaConf as plain values, references resolved, those to the environment marked.

    Raises: OmegaConfBaseException.
    """
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config, resolve=False)
    return _marked(raw, OmegaConf.to_container(config, resolve=True))


def _marked(raw: Any, value: Any) -> Any:
    if isinstance(raw, dict) and isinstance(value, dict):
        return {key: _marked(raw[key], part) for key, part in value.items()}
    if isinstance(raw, list) and isinstance(value, list):
        return [_marked(*pair) for pair in zip(raw, value, strict=True)]
    variables = _VARIABLE.findall(raw) if isinstance(raw, str) else []
    for name in variables:
        conceal(os.environ.get(name, ""), f"${{oc.env:{name}}}")
    return Referred(value, raw) if variables and isinstance(value, str) else value


def as_written(value: Any) -> Any:
    """Nested settings with references in place of what they refer to in the environment."""
    if isinstance(value, dict):
        return {key: as_written(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_written(part) for part in value]
    return value.reference if isinstance(value, Referred) else value


def literal(text: str) -> str:
    """A text as OmegaConf reads it back: its `${` begins no reference to another setting."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)


def all_literal(value: Any) -> Any:
    """`literal` of every text in nested settings, but for references to the environment."""
    if isinstance(value, dict):
        return {key: all_literal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [all_literal(part) for part in value]
    if isinstance(value, Referred):
        return value.reference
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
