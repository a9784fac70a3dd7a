"""Turns plain dictionaries into config dataclasses, strictly: every unknown key, wrong type and
failed check is collected and reported at once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar, Union

from nanozoo_core.config.ranges import Range, general_problem
from nanozoo_core.errors import ConfigError, show_value, suggest

T = TypeVar("T")

# Names of other code bases, refused with the name that holds in every package here. A config class
# may add its own in a class variable `renamed`.
RENAMED = {
    "n_layers": "num_layers",
    "n_layer": "num_layers",
    "d_model": "model_dim",
    "n_embd": "model_dim",
    "hidden_size": "model_dim",
    "n_ctx": "seq_len",
    "block_size": "seq_len",
    "n_heads": "num_heads",
    "n_head": "num_heads",
    "d_mult": "mlp_ratio",
    "learning_rate": "lr",
}


def from_dict(cls: type[T], data: dict[str, Any], path: str = "", owner: str = "") -> T:
    """Builds dataclass `cls` from `data`.

    Args: path: dotted name of this section, for messages; owner: what the keys belong to.
    Raises: ConfigError with one sentence per problem.
    """
    problems: list[str] = []
    result = _build(cls, data, path, owner, problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(T, result)


def to_dict(config: object) -> dict[str, Any]:
    """The dictionary of a config dataclass as YAML would read it back: tuples are lists."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))  # type: ignore[call-overload]
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def field_help(cls: type) -> dict[str, str]:
    """The docstring line under each field, read from the source, inherited ones included."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            texts |= _own_field_help(owner)
    return texts


def _own_field_help(cls: type) -> dict[str, str]:
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _build(
    cls: type, data: dict[str, Any], path: str, owner: str, problems: list[str]
) -> object | None:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    failed = False
    for key, value in data.items():
        dotted = f"{path}.{key}" if path else key
        if key not in fields:
            renamed = getattr(cls, "renamed", {})
            problems.append(_unknown(key, dotted, fields, owner, renamed))
            failed = True
            continue
        before = len(problems)
        values[key] = _convert(hints[key], value, dotted, owner, problems)
        failed |= len(problems) > before
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and (
            field.default_factory is dataclasses.MISSING
        )
        if required and name not in data:
            problems.append(f"{path + '.' if path else ''}{name} is missing and has no default")
            failed = True
    if failed:
        return None
    try:
        built: object = cls(**values)
        return built
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def _unknown(
    key: str, dotted: str, fields: Iterable[str], owner: str, renamed: dict[str, str]
) -> str:
    whose = f" of {owner}" if owner else ""
    prefix = dotted.removesuffix(key)
    if key in renamed:
        return f"{dotted} is called {prefix}{renamed[key]} here"
    if key in RENAMED and RENAMED[key] in fields:
        return f"{dotted} is called {prefix}{RENAMED[key]} here"
    hint = suggest(key, fields)
    if not hint:
        hint = f"; valid keys: {', '.join(sorted(fields))}"
    return f"{dotted} is not a setting{whose}{hint}"


def _convert(hint: Any, value: Any, path: str, owner: str, problems: list[str]) -> Any:
    """Checks `value` against a type hint; on failure records a problem and returns None."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, dict):
            problems.append(f"{path}={show_value(value)} must be a section with keys of its own")
            return None
        return _build(hint, value, path, owner, problems)
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        item = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(item):  # a section whose keys are names
            parts = value.items()
            return {k: _convert(item, v, f"{path}.{k}", owner, problems) for k, v in parts}
    ok, converted = _match(hint, value)
    if not ok:
        problems.append(
            f"{path}={show_value(value)} must be {_describe(hint)}{_nearest(hint, value)}"
        )
        return None
    problem = _out_of_range(hint, converted)
    if problem is not None:
        nullable = " or null" if type(None) in typing.get_args(hint) else ""
        problems.append(f"{path}={show_value(converted)} {problem}{nullable}")
        return None
    return converted


def _out_of_range(hint: Any, value: Any) -> str | None:
    """What a value that fits the type, or a part of it, must be and is not."""
    if isinstance(value, dict):
        return _first(_out_of_range(object, part) for part in value.values())
    if isinstance(value, list | tuple):
        items = [item for option in _options(hint) for item in typing.get_args(option)[:1]]
        return _first(_out_of_range(items[0] if items else object, part) for part in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    found = general_problem(value)
    ranges = [r for option in _options(hint) for r in _ranges(option)]
    return found or _first(r.problem(value) for r in ranges)


def choices(hint: Any) -> list[str]:
    """The values of a setting that takes one of a few texts; empty for every other."""
    texts = [text for option in _options(hint) for text in typing.get_args(option)]
    return [text for text in texts if isinstance(text, str)] if "Literal" in str(hint) else []


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _ranges(hint: Any) -> list[Range]:
    return [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]


def _first(found: Iterable[str | None]) -> str | None:
    return next((text for text in found if text is not None), None)


def _match(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` fits `hint`, and the value in the type asked for."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _match(hint.__origin__, value)
    if hint is Any or hint is object:
        return True, value
    if origin is Literal:
        for choice in typing.get_args(hint):
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return True, choice
        return False, None
    if origin in (Union, types.UnionType):
        for option in typing.get_args(hint):
            ok, converted = _match(option, value)
            if ok:
                return True, converted
        return False, None
    if origin in (list, tuple):
        return _match_sequence(hint, origin, value)
    if origin is dict:
        return isinstance(value, dict), value
    if hint is type(None):
        return value is None, None
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        if isinstance(value, float) and value.is_integer():  # 1e6 reads as a float in YAML
            return True, int(value)
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        return ok, _as_float(value) if ok else None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        problems: list[str] = []
        built = _build(hint, value, "", "", problems)
        return not problems, built
    return isinstance(hint, type) and isinstance(value, hint), value


def _as_float(value: float) -> float:
    """An integer past the largest float becomes infinite, which no setting may be."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _match_sequence(hint: Any, origin: type, value: Any) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, None
    args = typing.get_args(hint)
    item = args[0] if args else object
    results = [_match(item, v) for v in value]
    return all(ok for ok, _ in results), origin(v for _, v in results)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _describe(hint.__origin__)
    if origin is Literal:
        return "one of " + ", ".join(show_value(c) for c in typing.get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin in (list, tuple):
        args = typing.get_args(hint)
        return f"a list of {_describe(args[0])}" if args else "a list"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if hint is type(None):
        return "null"
    if hint in names:
        return names[hint]
    return "a list" if hint is list else "a section" if hint is dict else str(hint)


def _nearest(hint: Any, value: Any) -> str:
    """A suggestion where the hint is, or may be, one of some words."""
    options = [hint, *typing.get_args(hint)]
    words = [c for o in options if typing.get_origin(o) is Literal for c in typing.get_args(o)]
    if not isinstance(value, str):
        return ""
    return suggest(value, [word for word in words if isinstance(word, str)])
