"""Which optimiser updates which parameter, and at what rate.

A parameter has a role (matrix, embedding, head or vector) by what it does in the model, never by
its name; roles and lr multipliers make the groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from nanozoo_core.config import OptimConfig
from nanozoo_core.errors import Problems, suggest
from nanozoo_core.machine.terminal import text_table
from nanozoo_core.optim.layout import row_split

ROLES = ("matrix", "embedding", "head", "vector")
HEAD_NAMES = ("head", "lm_head")
# Below these a weight is a gate or a short filter, whose rows are not directions to balance.
MIN_FAN_OUT, MIN_FAN_IN = 17, 9


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one optimiser and one set of rates."""

    name: str
    optimizer: Literal["muon", "adamw"]
    names: list[str]
    params: list[Tensor] = field(repr=False)
    lr: float  # at the top of the schedule
    lr_mult: float
    weight_decay: float
    betas: tuple[float, float]  # these and all below are AdamW's
    eps: float
    cautious: bool
    wd_power: Literal[1, 2]
    every: int  # step only at each such step, on the sum of the gradients since the last


@dataclass(frozen=True)
class Own:
    """What a parameter has of its own, beside its role."""

    lr_mult: float = 1.0  # factor on the rate of its role
    decay_mult: float | None = None  # factor on the optimiser's decay; None is the role's rule
    betas: tuple[float, float] | None = None  # None is optim.adamw's


def default_roles(model: nn.Module) -> dict[str, str]:
    """The role of every parameter, by its first name in the model.

    embedding: the weight of an nn.Embedding, also where it is the output head too. head: the weight
    of the model's Linear `head` or `lm_head`, or its `output_weight`. vector: fewer than two axes,
    a depthwise filter, or a side too small for Muon. matrix: everything else.
    """
    embeddings: set[int] = set()
    convolutions: set[int] = set()
    for module in model.modules():
        kind = convolutions if isinstance(module, nn.modules.conv._ConvNd) else None
        kind = embeddings if isinstance(module, nn.Embedding | nn.EmbeddingBag) else kind
        if kind is not None:
            kind.add(id(module.weight))
    heads = {id(getattr(model, "output_weight", None))}
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            heads.add(id(head.weight))

    def role(parameter: Tensor) -> str:
        if id(parameter) in embeddings:
            return "embedding"
        if id(parameter) in heads:
            return "head"
        if parameter.ndim < 2:
            return "vector"
        if id(parameter) in convolutions:
            fan_out, fan_in = parameter.shape[0], parameter[0].numel()
            if parameter.shape[1] == 1:  # depthwise
                return "vector"
        else:
            fan_out, fan_in = parameter.shape[-2:]
        return "vector" if fan_out < MIN_FAN_OUT or fan_in < MIN_FAN_IN else "matrix"

    return {name: role(parameter) for name, parameter in model.named_parameters()}


def make_groups(
    model: nn.Module,
    roles: dict[str, str],
    optim: OptimConfig,
    *,
    lr_multipliers: dict[str, float] | None = None,
    own: dict[str, Own] | None = None,
) -> list[ParameterGroup]:
    """Groups of the trainable parameters, one per role and settings.

    Args:
        roles: role by parameter name, one for every trainable parameter.
        lr_multipliers: factor on the group's rate by parameter name; 1 where absent.
        own: all settings of its own by parameter name, where the factor alone is not enough.

    Raises: ConfigError naming every parameter that has no role, two, an unknown one, or that Muon
        cannot update.
    """
    settings = {name: Own(lr_mult=mult) for name, mult in (lr_multipliers or {}).items()}
    settings |= own or {}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _check_roles(model, parameters, roles, settings)
    members: dict[tuple[str, Own], list[str]] = {}
    for name in sorted(parameters, key=lambda name: ROLES.index(roles[name])):
        members.setdefault((roles[name], settings.get(name, Own())), []).append(name)
    groups = [
        _group(role, own, names, [parameters[name] for name in names], optim)
        for (role, own), names in members.items()
    ]
    _mark_convolutions(model)
    _check_muon(groups)
    return groups


def _group(
    role: str, own: Own, names: list[str], params: list[Tensor], optim: OptimConfig
) -> ParameterGroup:
    uses_muon = role == "matrix" and optim.name == "muon"
    decay = optim.muon.weight_decay if uses_muon else optim.weight_decay
    decays = 1.0 if role in ("matrix", "head") else 0.0
    adamw = optim.adamw
    return ParameterGroup(
        name=role if own.lr_mult == 1 else f"{role} x{own.lr_mult:g}",
        optimizer="muon" if uses_muon else "adamw",
        names=names,
        params=params,
        lr=optim.muon.lr if uses_muon else _adamw_lr(role, optim),
        lr_mult=own.lr_mult,
        weight_decay=decay * (decays if own.decay_mult is None else own.decay_mult),
        betas=own.betas or (adamw.beta1, adamw.beta2),
        eps=adamw.eps,
        cautious=adamw.cautious,
        wd_power=adamw.wd_power,
        every=1 if uses_muon else adamw.every,
    )


def describe(groups: list[ParameterGroup]) -> str:
    """The groups as a table."""
    rows = [("group", "optimizer", "tensors", "parameters", "lr", "decay")]
    for group in groups:
        count = sum(p.numel() for p in group.params)
        rate = f"{group.lr * group.lr_mult:g}"
        sizes = (f"{len(group.params)}", f"{count:,}")
        rows.append((group.name, group.optimizer, *sizes, rate, f"{group.weight_decay:g}"))
    return text_table(rows, left=(0, 1))


def _adamw_lr(role: str, optim: OptimConfig) -> float:
    own = {
        "embedding": optim.adamw.embedding_lr,
        "head": optim.adamw.head_lr,
        "vector": optim.adamw.vector_lr,
    }.get(role)
    return optim.lr if own is None else own


def _check_roles(
    model: nn.Module,
    parameters: Iterable[str],
    roles: dict[str, str],
    settings: dict[str, Own],
) -> None:
    problems = Problems()
    known = dict(model.named_parameters(remove_duplicate=False))
    for table, what in ((roles, "role"), (settings, "settings")):
        for name in table:
            if name not in known:
                problems.add(
                    f"{what} for '{name}', which is no parameter of "
                    f"{type(model).__name__}{suggest(name, known)}"
                )
    owners: dict[int, str] = {}
    for name, role in roles.items():
        problems.require(
            role in ROLES,
            f"parameter '{name}' has the unknown role '{role}'; use {', '.join(ROLES)}",
        )
        if name in known:
            first = owners.setdefault(id(known[name]), name)
            problems.require(
                first == name or roles[first] == role,
                f"parameter '{name}' is in two groups: as '{name}' with role {role} and as "
                f"'{first}' with role {roles[first]}",
            )
    for name in parameters:
        problems.require(
            name in roles, f"parameter '{name}' is in no group; give it one of {', '.join(ROLES)}"
        )
    problems.raise_if_any()


def _check_muon(groups: list[ParameterGroup]) -> None:
    problems = Problems()
    for group in groups:
        if group.optimizer == "muon":
            for name, parameter in zip(group.names, group.params, strict=True):
                try:
                    row_split(parameter)
                except ValueError as error:
                    problems.add(f"parameter '{name}' cannot have the role matrix: {error}")
    problems.raise_if_any()


def _mark_convolutions(model: nn.Module) -> None:
    """A filter bank (out, in, k) is one matrix of in * k columns, unlike a bank of experts."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            module.weight.muon_flatten = True  # type: ignore[attr-defined]
