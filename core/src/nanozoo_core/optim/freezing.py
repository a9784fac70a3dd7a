"""`train.freeze`: which parameters do not train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from nanozoo_core.errors import ConfigError, Problems, suggest
from nanozoo_core.optim.groups import ROLES

SHOWN = 8  # names in an error


def freeze(model: nn.Module, roles: Mapping[str, str], patterns: Sequence[str]) -> list[str]:
    """Takes the gradient from every parameter that a pattern names.

    Args:
        roles: by parameter name.
        patterns: roles, names, or names with * and ?; the name of a module is all that is in it.

    Returns: the names, in the order of the model.
    Raises: ConfigError for a pattern without a match, and when nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    problems = Problems()
    frozen: set[str] = set()
    for pattern in patterns:
        found = {name for name in parameters if _matches(name, pattern, roles.get(name))}
        problems.require(bool(found), _no_match(pattern, list(parameters), roles))
        frozen |= found
    problems.raise_if_any()
    if patterns and len(frozen) == len(parameters):
        raise ConfigError(
            f"train.freeze={','.join(patterns)} freezes every parameter; leave some to train"
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return [name for name in parameters if name in frozen]


def _matches(name: str, pattern: str, role: str | None) -> bool:
    if pattern in ROLES:
        return role == pattern
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _no_match(pattern: str, names: Sequence[str], roles: Mapping[str, str]) -> str:
    there = [role for role in ROLES if role in roles.values()]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"train.freeze={pattern} is no parameter{suggest(pattern, [*there, *names])}; there are "
        f"the roles {', '.join(there)}, and the names {', '.join(names[:SHOWN])}{more}"
    )


def describe_frozen(model: nn.Module, frozen: Sequence[str]) -> str:
    """A line for the terminal."""
    count = sum(model.get_parameter(name).numel() for name in frozen)
    return f"frozen       {count:,} parameters in {len(frozen)} tensors: {', '.join(frozen)}"
