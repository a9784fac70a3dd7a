"""The nearest-neighbour graph over tokens: vectors, neighbours, balanced clusters.

V vocabulary, d vector width, k neighbours, C cluster size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from nanozoo_core.errors import ConfigError
from nanozoo_core.randomness import seeded_generator

WINDOW = 4  # tokens on either side that count as context
VECTOR_DIM = 64
POWER_ITERATIONS = 6


def token_counts(windows: Iterable[Tensor], vocab_size: int) -> Tensor:
    """How often each id stands in `windows` (each (B, S)): (V,) float64."""
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for tokens in windows:
        counts += torch.bincount(tokens.flatten().cpu(), minlength=vocab_size)
    return counts


def cooccurrence_vectors(windows: Iterable[Tensor], vocab_size: int) -> Tensor:
    """Unit rows (V, d) float64: the top singular vectors, times the roots of their values, of the
    positive pointwise mutual information of tokens at most WINDOW apart.

    Reference: Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization".
    """
    codes = []
    for tokens in windows:
        tokens = tokens.cpu()
        for gap in range(1, min(WINDOW, tokens.shape[1] - 1) + 1):
            left, right = tokens[:, :-gap].flatten(), tokens[:, gap:].flatten()
            codes += [left * vocab_size + right, right * vocab_size + left]
    pairs, counts = torch.cat(codes).unique(return_counts=True)
    rows, columns, counts = pairs // vocab_size, pairs % vocab_size, counts.double()
    totals = torch.zeros(vocab_size, dtype=torch.float64).index_add(0, rows, counts)
    information = (counts * counts.sum() / (totals[rows] * totals[columns])).log().clamp(min=0)
    ppmi = torch.sparse_coo_tensor(
        torch.stack([rows, columns]),
        information,
        (vocab_size, vocab_size),
        check_invariants=False,
    ).coalesce()
    values, vectors = top_eigenpairs(ppmi, min(VECTOR_DIM, vocab_size))
    return unit_rows(vectors * values.abs().sqrt())


def top_eigenpairs(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (rank,) and vectors (n, rank) of a symmetric matrix, largest in size first, by
    subspace iteration from a fixed start."""
    start = torch.randn(
        matrix.shape[0], rank, generator=seeded_generator(0), dtype=torch.float64, device="cpu"
    )
    basis = torch.linalg.qr(start).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ basis).Q
    values, rotation = torch.linalg.eigh(basis.T @ (matrix @ basis))
    order = values.abs().argsort(descending=True)
    return values[order], basis @ rotation[:, order]


def load_vectors(path: str, vocab_size: int) -> Tensor:
    """Unit rows (V, d) float64 from a .npy file.

    Raises: ConfigError when the file is missing, not an array of numbers, or has other rows.
    """
    import numpy as np

    key = f"model_cfg.nn_embeddings={path}"
    if not Path(path).is_file():
        raise ConfigError(f"{key} is neither ppmi nor an existing .npy file")
    try:
        vectors = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key} cannot be read as an array of numbers: {error}") from error
    if vectors.dim() != 2 or vectors.shape[0] != vocab_size:
        raise ConfigError(
            f"{key} holds an array of shape {list(vectors.shape)}; it needs {vocab_size} rows, one "
            "per token"
        )
    return unit_rows(vectors)


def unit_rows(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp(min=1e-12)


def neighbor_rates(vectors: Tensor, num_neighbors: int) -> Tensor:
    """The symmetric rate matrix R (V, V) float64 of the kNN graph: rows sum to 0.

    W = (G + G^T) / (2k), G_ij = 1 for the k nearest j of i by cosine; R = W - diag(W 1).
    """
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-torch.inf)
    nearest = similarity.topk(num_neighbors, dim=1).indices  # (V, k)
    graph = torch.zeros_like(similarity).scatter_(1, nearest, 1.0)
    rates = (graph + graph.T) / (2 * num_neighbors)
    rates.diagonal().sub_(rates.sum(1))
    return rates


def cluster_order(vectors: Tensor, cluster_size: int) -> Tensor:
    """Ids in an order in which every run of `cluster_size` is a cluster: (V,) int64.

    Recursive bisection: split along the direction of largest variance, at a multiple of C.
    """

    def split(ids: Tensor) -> list[Tensor]:
        num_clusters = -(-ids.numel() // cluster_size)
        if num_clusters == 1:
            return [ids]
        centered = vectors[ids] - vectors[ids].mean(0)
        direction = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1]
        ids = ids[(centered @ direction).argsort(stable=True)]
        cut = num_clusters // 2 * cluster_size
        return [*split(ids[:cut]), *split(ids[cut:])]

    return torch.cat(split(torch.arange(vectors.shape[0])))
