"""Which matrices a parameter holds: one, the blocks of a fused weight, or a bank of experts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nanozoo_core.optim.sharding import Piece


def matrix_sides(param: Tensor) -> tuple[int, int, int]:
    """Number of matrices, fan-out and fan-in of a parameter, before any split of its rows.

    (m, n) is one matrix and (E, m, n) a bank of E. A convolution's (out, in, k), marked
    `muon_flatten`, and anything of four axes is one matrix of `shape[0]` rows.

    Raises: ValueError for fewer than two axes or a side of 1.
    """
    if param.ndim == 3 and not getattr(param, "muon_flatten", False):
        count, fan_out, fan_in = param.shape
    elif param.ndim >= 2:
        count, fan_out, fan_in = 1, param.shape[0], param[0].numel()
    else:
        count, fan_out, fan_in = 1, 1, 1
    if min(fan_out, fan_in) < 2:
        raise ValueError(f"a parameter of shape {tuple(param.shape)} is no matrix for Muon")
    return count, fan_out, fan_in


def row_split(param: Tensor) -> tuple[int, ...]:
    """Row counts of the matrices fused in a parameter, its `muon_split`; by default all rows.

    Raises: ValueError where they do not cut the rows.
    """
    _, fan_out, _ = matrix_sides(param)
    split = tuple(getattr(param, "muon_split", (fan_out,)))
    if sum(split) != fan_out or min(split) < 2:
        raise ValueError(f"muon_split={split} does not cut {fan_out} rows into parts of 2 or more")
    return split


@dataclass(frozen=True)
class Matrix:
    """One matrix and where it lies: some rows of a parameter, or of one expert of a bank."""

    name: str  # of the parameter
    part: int  # its number among the parameter's matrices
    param: Tensor
    expert: int | None
    rows: slice
    shape: tuple[int, int]
    neurons: slice  # where its second moment lies in the parameter's
    num_neurons: int  # of the whole parameter

    def of(self, whole: Tensor) -> Tensor:
        """The (m, n) view of this matrix in a tensor of its parameter's shape."""
        if self.expert is not None:
            whole = whole[self.expert]
        return whole.view(whole.shape[0], -1)[self.rows]

    def state_shape(self, kind: str) -> tuple[int, ...]:
        """The shape of one kind of state for the whole parameter."""
        return (self.num_neurons,) if kind == "second_moment" else tuple(self.param.shape)

    def state_of(self, whole: Tensor, kind: str) -> Tensor:
        """This matrix's part of a tensor of `state_shape(kind)`."""
        return whole[self.neurons] if kind == "second_moment" else self.of(whole)

    def piece(self, state: Tensor, kind: str) -> Piece:
        """This matrix's state, (m, n) or one number per neuron, as a block of the parameter's."""
        whole = self.state_shape(kind)
        if kind == "second_moment":
            return Piece(state.view(-1), (self.neurons.start,), whole)
        first, rows = self.rows.start, self.shape[0]
        if self.expert is None:
            return Piece(state.view(rows, *whole[1:]), (first, *(0 for _ in whole[1:])), whole)
        return Piece(state.view(1, rows, *whole[2:]), (self.expert, first, 0), whole)


def rows_are_neurons(shape: tuple[int, int], neuron_axis: str) -> bool:
    """Whether NorMuon's neurons are the rows (out), or with `shape` the longer side's lines."""
    return neuron_axis == "out" or shape[0] >= shape[1]


def cut_matrices(name: str, param: Tensor, neuron_axis: str) -> list[Matrix]:
    """The matrices of a parameter, in order of expert and row."""
    num_experts, _, fan_in = matrix_sides(param)
    split = row_split(param)
    lengths = [rows if rows_are_neurons((rows, fan_in), neuron_axis) else fan_in for rows in split]
    is_bank = param.ndim == 3 and not getattr(param, "muon_flatten", False)
    found: list[Matrix] = []
    neuron = 0
    for expert in range(num_experts):
        row = 0
        for rows, length in zip(split, lengths, strict=True):
            matrix = Matrix(
                name=name,
                part=len(found),
                param=param,
                expert=expert if is_bank else None,
                rows=slice(row, row + rows),
                shape=(rows, fan_in),
                neurons=slice(neuron, neuron + length),
                num_neurons=num_experts * sum(lengths),
            )
            found.append(matrix)
            row, neuron = row + rows, neuron + length
    return found
