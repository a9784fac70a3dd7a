"""The optimisers of a run as one object: rates, clipping, step and state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.config import MuonConfig, OptimConfig
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.optim.adamw import AdamW
from nanozoo_core.optim.groups import ParameterGroup
from nanozoo_core.optim.muon import Muon
from nanozoo_core.optim.schedule import lr_factor, muon_momentum
from nanozoo_core.optim.sharding import Piece, Readable, fill, gather_whole, pieces_of

log = logging.getLogger(__name__)

FUSED_ADAMW_DEVICES = ("cpu", "cuda", "mps", "xpu")
MUON_SETTINGS = (
    *("lr", "momentum", "nesterov", "orth", "orth_dtype", "beta2", "neuron_axis", "lr_scale"),
    *("weight_decay", "cautious", "wd_power", "eps"),
)
PENDING = "pending_gradient"  # state of a group between two of its steps


class OptimizerSet:
    """AdamW and Muon over disjoint parameters, under one schedule.

    `optimizers` lists them as they step: AdamW's small tensors first.
    """

    def __init__(
        self,
        adamw: torch.optim.Optimizer | None,
        muon: torch.optim.Optimizer | None,
        *,
        optim: OptimConfig,
        total_steps: int | None,
    ) -> None:
        self.adamw, self.muon = adamw, muon
        self.optimizers = [o for o in (adamw, muon) if o is not None]
        self.optim = optim
        self.total_steps = total_steps
        self._factor = 1.0
        self._step = 0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    def set_schedule(self, step: int, progress: float, *, peak: float = 1.0) -> None:
        """Sets every group's rate, and Muon's momentum, for the step to come.

        Args:
            step: optimiser steps taken so far.
            progress: share of the budget spent, 0 .. 1.
            peak: the top of the schedule at this step, relative to the rates.
        """
        self._step = step
        self._factor = lr_factor(progress, step, self.total_steps, self.optim, peak=peak)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._factor
        if self.muon is not None:
            momentum = muon_momentum(progress, step, self.total_steps, self.optim.muon)
            for group in self.muon.param_groups:
                group["momentum"] = momentum

    def current_lr(self) -> float:
        """The rate of the matrices at this step, without multipliers."""
        top = self.optim.lr if self.muon is None else self.optim.muon.lr
        return top * self._factor

    def clip(self, max_norm: float) -> Tensor:
        """Scales AdamW's gradients to a norm of at most `max_norm`; 0 leaves them, and so it leaves
        those that only gather at this step.

        Muon is scale-free, so its gradients stay. Returns: the norm of all gradients before.
        """
        norms = []
        for optimizer in self.optimizers:
            norms.append(_norm(_gradients(_named(optimizer))))
            if optimizer is self.adamw and max_norm > 0:
                due = [entry for entry in _named(optimizer) if self._is_due(entry[2])]
                waiting = len(due) < len(_named(optimizer))
                norm = _norm(_gradients(due)) if waiting else norms[-1]
                torch.nn.utils.clip_grads_with_norm_([p for _, p, _ in due], max_norm, norm)
        return torch.linalg.vector_norm(torch.stack(norms))

    def step(self) -> None:
        for optimizer in self.optimizers:
            waiting = [p for _, p, group in _named(optimizer) if not self._is_due(group)]
            held = [p.grad for p in waiting]
            for parameter in waiting:
                parameter.grad = None
            optimizer.step()
            for parameter, gradient in zip(waiting, held, strict=True):
                parameter.grad = gradient

    def zero_grad(self) -> None:
        """Forgets the gradients of the groups that have just stepped."""
        for optimizer in self.optimizers:
            for _, parameter, group in _named(optimizer):
                if self._is_due(group):
                    parameter.grad = None

    @property
    def has_waiting(self) -> bool:
        """Whether gradients of some group wait for a later step."""
        return any(group["every"] > 1 for o in self.optimizers for group in o.param_groups)

    def _is_due(self, group: dict) -> bool:
        return (self._step + 1) % group["every"] == 0

    def full_state(self) -> dict[str, Tensor]:
        """Copies of the whole state on the CPU, by `PARAMETER.kind`; in a process group a
        collective, and the same for any number of ranks."""
        state: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for name, parameter, group in _named(optimizer):
                if group["every"] > 1 and parameter.grad is not None:
                    whole = gather_whole(parameter.grad)
                    state[f"{name}.{PENDING}"] = whole.to("cpu", copy=True)
            if isinstance(optimizer, Muon):
                state |= optimizer.full_state()
                continue
            for name, parameter, _ in _named(optimizer):
                for kind, value in optimizer.state.get(parameter, {}).items():
                    state[f"{name}.{kind}"] = gather_whole(value).to("cpu", copy=True)
        return state

    def pieces(self) -> dict[str, list[Piece]]:
        """What of the state lies on this rank, by the names of `full_state`, without a copy and
        without communication."""
        found: dict[str, list[Piece]] = {}
        for optimizer in self.optimizers:
            for name, parameter, group in _named(optimizer):
                if group["every"] > 1 and parameter.grad is not None:
                    found[f"{name}.{PENDING}"] = pieces_of(parameter.grad)
                for kind, value in optimizer.state.get(parameter, {}).items():
                    found[f"{name}.{kind}"] = pieces_of(value)
            if isinstance(optimizer, Muon):
                found |= optimizer.pieces()
        return found

    def make_room(self, stored: Mapping[str, Readable]) -> None:
        """Gives fresh optimisers the tensors of a stored state, to be filled.

        Args: stored: by name as in `full_state`; only shapes and types are looked at.

        Raises: CheckpointError where the state is not that of these parameters and optimisers.
        """
        of_muon: dict[str, Readable] = {}
        members = {
            name: (optimizer, parameter, group)
            for optimizer in self.optimizers
            for name, parameter, group in _named(optimizer)
        }
        for key, value in stored.items():
            name, _, kind = key.rpartition(".")
            if name not in members:
                raise CheckpointError(f"optimiser state '{key}' belongs to no trained parameter")
            optimizer, parameter, group = members[name]
            if kind == PENDING and _fits(value, parameter):
                parameter.grad = torch.zeros_like(parameter)
                continue
            if isinstance(optimizer, Muon):
                of_muon[key] = value
                continue
            if kind not in _KINDS[type(optimizer)] or (
                kind != "step" and not _fits(value, parameter)
            ):
                raise CheckpointError(
                    f"optimiser state '{key}' of shape {tuple(value.shape)} and type "
                    f"{value.dtype} does not fit {type(optimizer).__name__} of a parameter of "
                    f"shape {tuple(parameter.shape)} and type {parameter.dtype}"
                )
            if kind == "step":
                place = parameter.device if group["fused"] else torch.device("cpu")
                room = torch.zeros(value.shape, dtype=value.dtype, device=place)
            else:
                room = torch.zeros_like(parameter)
            optimizer.state[parameter][kind] = room.detach()
        if isinstance(self.muon, Muon):
            self.muon.check_state(of_muon)

    def load_full_state(self, state: Mapping[str, Readable]) -> None:
        """Takes over a whole state; training goes on to the same bits.

        Raises: CheckpointError as `make_room`.
        """
        self.make_room(state)
        fill(self.pieces(), state)


def build_optimizers(
    groups: list[ParameterGroup],
    optim: OptimConfig,
    *,
    total_steps: int | None,
    device: torch.device,
) -> OptimizerSet:
    """AdamW and Muon for `groups`.

    Args:
        total_steps: length of the run, for the schedules; None where only progress is known.
        device: of the parameters.

    Raises: ConfigError where torch's Muon, chosen by optim.muon.impl, cannot serve a parameter.
    """
    adamw_groups = [group for group in groups if group.optimizer == "adamw"]
    muon_groups = [group for group in groups if group.optimizer == "muon"]
    adamw: torch.optim.Optimizer | None = None
    muon: torch.optim.Optimizer | None = None
    if adamw_groups:
        adamw = AdamW(
            [
                {
                    "params": list(zip(group.names, group.params, strict=True)),
                    "lr": group.lr * group.lr_mult,
                    "betas": group.betas,
                    "eps": group.eps,
                    "weight_decay": group.weight_decay,
                    "decay": group.weight_decay,
                    "cautious": group.cautious,
                    "wd_power": group.wd_power,
                    "every": group.every,
                }
                for group in adamw_groups
            ],
            # Named outright: on the CPU torch's own choice is the slow loop.
            fused=device.type in FUSED_ADAMW_DEVICES,
        )
    if muon_groups:
        _warn_of_unusual_rates(optim)
        make = _torch_muon if optim.muon.impl == "torch" else _muon
        muon = make(muon_groups, optim)
    return OptimizerSet(adamw, muon, optim=optim, total_steps=total_steps)


def _muon(groups: list[ParameterGroup], optim: OptimConfig) -> Muon:
    return Muon(
        [
            {
                "params": list(zip(group.names, group.params, strict=True)),
                "lr": group.lr,
                "lr_mult": group.lr_mult,
                "weight_decay": group.weight_decay,
                "every": group.every,
            }
            for group in groups
        ],
        **muon_settings(optim.muon),
    )


def muon_settings(muon: MuonConfig) -> dict[str, Any]:
    """The settings that our Muon takes, without those of its schedule."""
    return {name: getattr(muon, name) for name in MUON_SETTINGS}


def _torch_muon(groups: list[ParameterGroup], optim: OptimConfig) -> torch.optim.Muon:
    muon = optim.muon
    adjust = {"spectral": "original"}.get(muon.lr_scale, muon.lr_scale)
    for group in groups:
        for name, parameter in zip(group.names, group.params, strict=True):
            if parameter.ndim != 2:
                raise ConfigError(
                    f"optim.muon.impl=torch updates matrices alone, and '{name}' has shape "
                    f"{tuple(parameter.shape)}; use optim.muon.impl=nanozoo"
                )
            if hasattr(parameter, "muon_split"):
                log.warning("optim.muon.impl=torch updates the fused matrix '%s' as one", name)
    return torch.optim.Muon(
        [
            {
                "params": list(zip(group.names, group.params, strict=True)),
                "lr": group.lr * group.lr_mult,
                "weight_decay": group.weight_decay,
                "every": group.every,
            }
            for group in groups
        ],
        momentum=muon.momentum,
        nesterov=muon.nesterov,
        eps=muon.eps,
        adjust_lr_fn=adjust,
    )


def _warn_of_unusual_rates(optim: OptimConfig) -> None:
    muon = optim.muon
    if muon.lr > 0.2:
        log.warning("optim.muon.lr=%g is large; about 0.02 is usual", muon.lr)
    elif muon.lr_scale == "match_rms_adamw" and muon.lr > 0.01:
        log.warning(
            "optim.muon.lr=%g is large for optim.muon.lr_scale=match_rms_adamw, which takes "
            "AdamW's rates; 3e-4 to 2e-3 is usual",
            muon.lr,
        )


# The kinds of state that the optimisers other than our Muon keep.
_KINDS: dict[type, tuple[str, ...]] = {
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor, dict]]:
    return [
        (name, parameter, group)
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]


def _fits(value: Readable, parameter: Tensor) -> bool:
    return value.shape == parameter.shape and value.dtype == parameter.dtype


def _gradients(named: list[tuple[str, Tensor, dict]]) -> list[Tensor]:
    return [p.grad for _, p, _ in named if p.grad is not None]


def _norm(gradients: list[Tensor]) -> Tensor:
    return gather_whole(torch.nn.utils.get_total_norm(gradients))
