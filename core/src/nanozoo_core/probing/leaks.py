"""Whether a model reads what comes later: its score of a text beside what it says step by step."""

from __future__ import annotations

import torch

from nanozoo_core.contract import Draw
from nanozoo_core.probing.batches import Source
from nanozoo_core.probing.scoring import read
from nanozoo_core.probing.task import TEST
from nanozoo_core.probing.training import Learner

WINDOWS = 16
TOLERANCE = 0.02  # nats and share of the nats; rounding is below a hundredth of it


def leak(learner: Learner, source: Source) -> str | None:
    """A sentence for a model whose likelihood of the answers is not that of its own decoding, which
    sees nothing behind an answer; None where the two agree, and for a bound, which has no order.

    A forward pass that looks ahead knows the answers that it is to name: it learns nothing.
    """
    adapter, model = learner.adapter, learner.model
    if adapter.can_denoise or not adapter.scores_tokens:
        return None
    questions = source.questions(TEST, range(WINDOWS))
    batch = questions.batch.to(learner.device)
    with torch.no_grad():
        scored = adapter.nll(model, batch, Draw(seed=source.seed)).nats.cpu()  # (B,)
    decoded = read(learner, questions, free=False).nats.sum(1)
    apart = (scored - decoded).abs() > TOLERANCE * (1 + decoded)
    if not bool(apart.any()):
        return None
    return (
        f"reads the future: it scores the answers of {source.task.name} with "
        f"{float(scored.mean()):.2f} nats in a whole window, and with {float(decoded.mean()):.2f} "
        "where it reads token after token"
    )
