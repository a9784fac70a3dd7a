"""Learning rates carried from the width that they were chosen at to another.

The rule keeps the spectral norm of an update in proportion to that of the weights (Yang et al.
2023, arXiv 2310.17813). Muon with `lr_scale: spectral` follows it by itself. An entry of AdamW's
update has the size of the rate, so that the norm of a whole matrix grows with its fan-in: the rates
of matrices and of an untied head go down with the width, and those of tables and vectors stay.
"""

from __future__ import annotations

from nanozoo_core.config import ResolvedConfig


def carried_rates(config: ResolvedConfig, ratio: float, factor: float = 1.0) -> list[str]:
    """Overrides of the rates.

    Args: config: with the rates of the first width. ratio: the new width over the first. factor:
        by which every rate is multiplied after that.
    """
    optim = config.training.optim
    own = optim.adamw
    head = (optim.lr if own.head_lr is None else own.head_lr) / ratio
    tables = optim.lr if own.embedding_lr is None else own.embedding_lr
    vectors = optim.lr if own.vector_lr is None else own.vector_lr
    rates = {"adamw.head_lr": head, "adamw.embedding_lr": tables, "adamw.vector_lr": vectors}
    if optim.name == "adamw":
        rates["lr"] = optim.lr / ratio
    elif not optim.muon.lr_scale.startswith("spectral"):
        rates["muon.lr"] = optim.muon.lr / ratio
    if factor != 1:
        rates.setdefault("lr", optim.lr)
        if optim.name == "muon":
            rates.setdefault("muon.lr", optim.muon.lr)
    return [f"optim.{key}={rate * factor:.6g}" for key, rate in rates.items()]
