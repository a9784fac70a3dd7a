"""Muon: momentum, orthogonalised one hidden matrix at a time.

B matrices of one shape, m fan-out, n fan-in: the nn.Linear layout. A weight stored transposed gets
the wrong rate and the wrong neurons.
References: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the rate rule match_rms_adamw,
arXiv 2502.16982; others at `update`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from nanozoo_core.errors import CheckpointError
from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.optim.layout import Matrix, cut_matrices, rows_are_neurons
from nanozoo_core.optim.orthogonalize import COEFFICIENTS, Method
from nanozoo_core.optim.sharding import Piece, Readable, fill, gather_whole, shard_like
from nanozoo_core.optim.update import merge_halves, muon_update, split_halves

LrScale = Literal["spectral", "match_rms_adamw", "spectral_unclamped", "none"]
OrthDtype = Literal["auto", "float32", "bfloat16"]

LR_SCALES: dict[str, Callable[[int, int], float]] = {
    "spectral": lambda m, n: math.sqrt(max(1.0, m / n)),
    "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "spectral_unclamped": lambda m, n: math.sqrt(m / n),
    "none": lambda m, n: 1.0,
}


@dataclass
class _Bucket:
    """All matrices of one group and shape, updated together; `owned` are this rank's."""

    group: dict[str, Any]
    matrices: list[Matrix]
    first_owner: int  # matrix j belongs to rank (first_owner + j) % world_size
    owned: list[Matrix]
    state: dict[str, Tensor]  # momentum and the like, stacked over `owned`


class Muon(torch.optim.Optimizer):
    """Muon over matrices, with NorMuon and cautious decay.

    Matrices of equal shape are updated in one batch. A parameter of more axes than two is a bank of
    experts, one matrix each; marked `muon_flatten` (or with four axes) it is one matrix of
    `shape[0]` rows. A parameter's `muon_split`, a tuple of row counts, cuts a fused weight into
    matrices of their own. In a process group every matrix has an owner that keeps its momentum,
    updates it and sends the new weights to all, so replicas stay equal to the last bit: gradients
    must be the same on every rank. DTensor parameters (FSDP2) are gathered whole for the step.

    `lr`, `momentum`, `weight_decay` and `lr_mult` are read from the group at every step; `lr_mult`
    is apart from `lr` so that it outlives any schedule of `lr`.

    Args:
        params: parameters, or groups, best as (name, parameter) pairs: names order the ownership
            and key the state.
        lr_scale: factor on the rate by shape: spectral sqrt(max(1, m/n)); match_rms_adamw
            0.2 sqrt(max(m, n)), with which AdamW's rates fit; spectral_unclamped sqrt(m/n); none.
        beta2: of NorMuon's second moment; None is plain Muon.
        neuron_axis: NorMuon's neurons are the rows (out), or rows of tall matrices and columns of
            wide ones (shape).
        wd_power: 1 decays by lr * lr_mult * weight_decay, 2 by lr * weight_decay * the update's
            rate.
        process_group: of the ranks that share the work; None is the default group if there is one.

    Raises: ValueError for a parameter that is no matrix or an unknown option.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        orth: Method,
        orth_dtype: OrthDtype,
        beta2: float | None,
        neuron_axis: Literal["out", "shape"],
        lr_scale: LrScale,
        weight_decay: float,
        cautious: bool,
        wd_power: Literal[1, 2],
        eps: float,
        lr_mult: float = 1.0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_mult": lr_mult,
            "momentum": momentum,
            "nesterov": nesterov,
            "orth": orth,
            "orth_dtype": orth_dtype,
            "beta2": beta2,
            "neuron_axis": neuron_axis,
            "lr_scale": lr_scale,
            "weight_decay": weight_decay,
            "cautious": cautious,
            "wd_power": wd_power,
            "eps": eps,
        }
        super().__init__(params, defaults)
        if process_group is None and dist.is_available() and dist.is_initialized():
            process_group = dist.group.WORLD
        self._process_group = process_group
        self._rank = dist.get_rank(process_group) if process_group else 0
        self._world_size = dist.get_world_size(process_group) if process_group else 1
        self._buckets = self._make_buckets()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        assert not hasattr(self, "_buckets"), "Muon's groups are fixed when it is made"
        super().add_param_group(param_group)

    # -- one step -------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        whole = {p: gather_whole(p) for group in self.param_groups for p in group["params"]}
        grads = {p: None if p.grad is None else gather_whole(p.grad) for p in whole}
        # One bucket's weights travel while the next is computed.
        in_flight = None
        for bucket in self._buckets:
            sent = self._send(bucket, self._new_weights(bucket, whole, grads), async_op=True)
            if in_flight is not None:
                self._receive(*in_flight, whole)
            in_flight = (bucket, *sent)
        if in_flight is not None:
            self._receive(*in_flight, whole)
        for param, tensor in whole.items():
            if tensor is not param:
                param.copy_(shard_like(tensor, param))
        return loss

    def _new_weights(
        self, bucket: _Bucket, whole: dict[Tensor, Tensor], grads: dict[Tensor, Tensor | None]
    ) -> Tensor:
        """The bucket's owned matrices after this step, (B, m, n)."""
        if not bucket.owned:
            first = bucket.matrices[0]
            return whole[first.param].new_empty(0, *first.shape)
        weights = torch.stack([matrix.of(whole[matrix.param]) for matrix in bucket.owned])
        live, live_grads = [], []
        for i, matrix in enumerate(bucket.owned):
            grad = grads[matrix.param]
            if grad is not None:
                live.append(i)
                live_grads.append(matrix.of(grad))
        if not live:
            return weights
        gradient = torch.stack(live_grads)
        if len(live) == len(bucket.owned):
            return _apply(bucket.group, weights, gradient, bucket.state)
        # Without a gradient neither weight nor momentum moves, as in torch's optimisers.
        state = {kind: tensor[live] for kind, tensor in bucket.state.items()}
        weights[live] = _apply(bucket.group, weights[live], gradient, state)
        for kind, tensor in state.items():
            torch._foreach_copy_([bucket.state[kind][i] for i in live], list(tensor))
        return weights

    def _receive(
        self,
        bucket: _Bucket,
        arrived: Tensor,
        work: dist.Work | None,
        whole: dict[Tensor, Tensor],
    ) -> None:
        if work is not None:
            work.wait()
        targets = [matrix.of(whole[matrix.param]) for matrix in bucket.matrices]
        sources = [arrived[self._slot(bucket, j)] for j in range(len(bucket.matrices))]
        torch._foreach_copy_(targets, sources)

    # -- who owns what --------------------------------------------------------------------------

    def _make_buckets(self) -> list[_Bucket]:
        """Matrices sorted by shape, group and name, dealt out to the ranks in turn."""
        entries: list[tuple[tuple[Any, ...], Matrix]] = []
        for number, group in enumerate(self.param_groups):
            _check_options(group)
            names = group.setdefault(
                "param_names", [f"{number}.{i}" for i in range(len(group["params"]))]
            )
            for name, param in zip(names, group["params"], strict=True):
                for matrix in _cut(name, param, group):
                    key = (*matrix.shape, str(param.dtype), number)
                    entries.append((key, matrix))
        entries.sort(key=lambda entry: (entry[0], entry[1].name, entry[1].part))
        runs: dict[tuple[Any, ...], list[int]] = {}
        for i, (key, _) in enumerate(entries):
            runs.setdefault(key, []).append(i)
        buckets = []
        for key, run in runs.items():
            group = self.param_groups[key[-1]]
            matrices = [entries[i][1] for i in run]
            owned = [entries[i][1] for i in run if i % self._world_size == self._rank]
            state = _initial_state(matrices[0], len(owned), group)
            buckets.append(_Bucket(group, matrices, run[0] % self._world_size, owned, state))
        return buckets

    def _slot(self, bucket: _Bucket, j: int) -> tuple[int, int]:
        """Owner of the bucket's j-th matrix, and its place among those the owner has there."""
        return (bucket.first_owner + j) % self._world_size, j // self._world_size

    def _send(
        self, bucket: _Bucket, owned: Tensor, *, async_op: bool
    ) -> tuple[Tensor, dist.Work | None]:
        """Hands something of the owned matrices, stacked, to all ranks.

        Returns: the stacks of all ranks, (world_size, longest, ...), each zero-padded to the
        longest, once the work is done.
        """
        if self._world_size == 1:
            return owned[None], None
        longest = -(-len(bucket.matrices) // self._world_size)
        padding = owned.new_zeros(longest - len(owned), *owned.shape[1:])
        padded = torch.cat([owned, padding])
        arrived = padded.new_empty(self._world_size, *padded.shape)
        # As bytes: gloo does not know every dtype.
        work = dist.all_gather_into_tensor(
            arrived.flatten(0, 1).view(torch.uint8),
            padded.view(torch.uint8),
            group=self._process_group,
            async_op=async_op,
        )
        return arrived, work

    # -- state ----------------------------------------------------------------------------------

    def full_state(self) -> dict[str, Tensor]:
        """The whole state on every rank, on the CPU; a collective.

        Returns: by parameter name and kind: `NAME.momentum` in the parameter's shape,
        `NAME.second_moment` with one number per neuron of its matrices in turn, and for bfloat16
        weights `NAME.low_half`. The number of ranks leaves no trace.
        """
        result: dict[str, Tensor] = {}
        for bucket in self._buckets:
            for kind, owned in bucket.state.items():
                stacks = self._send(bucket, owned, async_op=False)[0].cpu()
                for j, matrix in enumerate(bucket.matrices):
                    key = f"{matrix.name}.{kind}"
                    if key not in result:
                        result[key] = stacks.new_zeros(matrix.state_shape(kind))
                    target = matrix.state_of(result[key], kind)
                    target.copy_(stacks[self._slot(bucket, j)].view_as(target))
        return result

    def pieces(self) -> dict[str, list[Piece]]:
        """The state of the matrices that this rank owns, by the names of `full_state`, without a
        copy and without communication."""
        found: dict[str, list[Piece]] = {}
        for bucket in self._buckets:
            for kind, stack in bucket.state.items():
                for matrix, one in zip(bucket.owned, stack, strict=True):
                    found.setdefault(f"{matrix.name}.{kind}", []).append(matrix.piece(one, kind))
        return found

    def check_state(self, state: Mapping[str, Readable]) -> None:
        """Compares the names, shapes and types of a whole state with those of this optimiser.

        Raises: CheckpointError naming a key that is missing, unknown or of another shape or type.
        """
        expected = {
            f"{matrix.name}.{kind}": (matrix.state_shape(kind), stack.dtype)
            for bucket in self._buckets
            for matrix in bucket.matrices
            for kind, stack in bucket.state.items()
        }
        for key in [*expected, *state]:
            shape, dtype = expected.get(key, (None, None))
            found = tuple(state[key].shape) if key in state else None
            if found != shape:
                raise CheckpointError(
                    f"Muon's stored state has '{key}' of shape {found}, this model needs {shape}"
                )
            if state[key].dtype != dtype:
                raise CheckpointError(
                    f"Muon's stored state has '{key}' of type {state[key].dtype}, this model "
                    f"needs {dtype}"
                )

    def load_full_state(self, state: Mapping[str, Readable]) -> None:
        """Takes what this rank owns from the whole state of any number of ranks.

        Raises: CheckpointError as `check_state`.
        """
        self.check_state(state)
        fill(self.pieces(), state)

    def state_dict(self) -> dict[str, Any]:
        """The whole state; the groups' rates are settings, not state."""
        return {"state": self.full_state(), "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state and leaves the groups' rates as they are."""
        self.load_full_state(state_dict["state"])


def _apply(
    group: dict[str, Any], weights: Tensor, grads: Tensor, state: dict[str, Tensor]
) -> Tensor:
    """`muon_update` with a group's settings. Returns the new weights, (B, m, n); the old ones and
    the state are changed in place."""
    rate = group["lr"] * group["lr_mult"] * LR_SCALES[group["lr_scale"]](*weights.shape[1:])
    decay = None
    if group["weight_decay"]:
        share = rate if group["wd_power"] == 2 else group["lr_mult"]
        decay = group["lr"] * group["weight_decay"] * share
    low = state.get("low_half")
    master = weights if low is None else merge_halves(weights, low)
    muon_update(
        master,
        grads.to(master.dtype),
        state["momentum"],
        state.get("second_moment"),
        rate=rate,
        decay=decay,
        mu=group["momentum"],
        beta2=group["beta2"],
        nesterov=group["nesterov"],
        orth=group["orth"],
        orth_dtype=_iteration_dtype(group["orth_dtype"], master),
        cautious=group["cautious"],
        eps=group["eps"],
    )
    if low is None:
        return master
    high, rest = split_halves(master)
    low.copy_(rest)
    return high


def _iteration_dtype(name: OrthDtype, weights: Tensor) -> torch.dtype:
    """auto is bfloat16 where the GPU multiplies it fast, else the weights' own precision."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    fast = weights.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast and weights.dtype == torch.float32 else weights.dtype


def _initial_state(matrix: Matrix, count: int, group: dict[str, Any]) -> dict[str, Tensor]:
    """Zeros for `count` matrices like `matrix`: momentum (count, m, n) and what else is kept."""
    m, n = matrix.shape
    dtype = wide_dtype(matrix.param)
    device = matrix.param.device
    state = {"momentum": torch.zeros(count, m, n, dtype=dtype, device=device)}
    if group["beta2"] is not None:
        sides = (m, 1) if rows_are_neurons(matrix.shape, group["neuron_axis"]) else (1, n)
        state["second_moment"] = torch.zeros(count, *sides, dtype=dtype, device=device)
    if matrix.param.dtype == torch.bfloat16:
        state["low_half"] = torch.zeros(count, m, n, dtype=torch.uint16, device=device)
    return state


def _cut(name: str, param: Tensor, group: dict[str, Any]) -> list[Matrix]:
    """Raises: ValueError naming a parameter that Muon cannot update."""
    if param.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"Muon cannot update '{name}' in {param.dtype}; use bfloat16 or float32")
    try:
        return cut_matrices(name, param, group["neuron_axis"])
    except ValueError as error:
        raise ValueError(f"Muon cannot update '{name}': {error}") from None


def _check_options(group: dict[str, Any]) -> None:
    known = {
        "orth": COEFFICIENTS,
        "orth_dtype": ("auto", "float32", "bfloat16"),
        "neuron_axis": ("out", "shape"),
        "lr_scale": LR_SCALES,
        "wd_power": (1, 2),
    }
    for key, values in known.items():
        if group[key] not in values:
            raise ValueError(
                f"Muon's {key}={group[key]!r} is none of {', '.join(map(str, values))}"
            )
