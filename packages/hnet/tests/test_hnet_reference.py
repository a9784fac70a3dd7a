from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Step
from nanozoo_core.testing.chunking_reference import ChunkingReference, Sizes
from nanozoo_hnet import mixers
from nanozoo_hnet.adapter import HNetAdapter
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.model import HNet

COEFFICIENT = 0.7
LAYOUT = ["t1M1", ["T1m1", ["T2"], "m1t1"], "m1T1"]
# No two sizes agree by accident: heads 3, 2 and 4 of 4, 10 and 7 channels, scans of 3 and 5 heads
# of 8 channels and 6 states.
SETTINGS: dict[str, Any] = {
    "vocab_size": 29,
    "arch_layout": LAYOUT,
    "model_dim": [12, 20, 28],
    "mlp_dim": [17, 22, 35],
    "num_heads": [3, 2, 4],
    "rotary_emb_dim": [2, 6, 4],
    "window_size": [3, 2, -1],
    "ssm_cfg": {"d_state": 6, "d_conv": 3, "expand": 2, "head_dim": 8, "chunk_size": 5},
    "target_ratio": [2.5, 4.0],
    "ratio_loss_coef": COEFFICIENT,
    "boundary_clamp": 0.03,
    "norm_eps": 1e-2,
}
SIZES = Sizes(
    layout=LAYOUT,
    num_heads=[3, 2, 4],
    rotary=[2, 6, 4],
    window=[3, 2, -1],
    ratios=[2.5, 4.0],
    clamp=0.03,
    eps=1e-2,
)


@pytest.fixture(autouse=True)
def exact_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model holds the angles of rotary positions in float32 in every type; here in float64."""

    def angles(positions: Tensor, count: int, *, base: float = 1e4) -> tuple[Tensor, Tensor]:
        exponent = torch.arange(0, count, 2, dtype=torch.float64) / count
        found = positions.double()[..., None] * base**-exponent
        return found.cos(), found.sin()

    monkeypatch.setattr(mixers, "rotary_angles", angles)


def perturbed(**changes: Any) -> HNet:
    """A model in float64 in which nothing is zero, one or the identity."""
    torch.manual_seed(0)
    model = HNet(model_config("hnet", SETTINGS | changes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def some_batch(documents: Tensor) -> Batch:
    tokens = torch.randint(29, documents.shape, generator=torch.Generator().manual_seed(1))
    return Batch(tokens, documents, torch.arange(len(tokens)), len(tokens))


@pytest.mark.parametrize("reset", [False, True], ids=["one document", "documents"])
def test_loss_logits_and_gradients_are_those_of_the_equations(reset: bool) -> None:
    model = perturbed(reset_at_documents=reset)
    documents = torch.zeros(2, 19, dtype=torch.int32)
    if reset:
        documents[0, 9:], documents[1, 1:], documents[1, 15:] = 1, 1, 2
    batch = some_batch(documents)
    adapter = HNetAdapter(HNetConfig, HNet)
    loss = adapter.training_loss(model, batch, Step(number=0, progress=0.0, seed=0)).value
    loss.backward()
    features, _ = model.encode(batch.inputs, batch.documents[:, :-1])
    logits = model.head(features).detach()

    weights = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.named_parameters()
    }
    reference = ChunkingReference(weights, SIZES)
    expected = []
    for row, numbers in zip(batch.inputs.tolist(), documents[:, :-1].tolist(), strict=True):
        ends = [t for t in range(1, 19) if t == 18 or numbers[t] != numbers[t - 1]]
        for start, end in zip([0, *ends], ends, strict=False):
            expected += reference.logits(row[start:end])
    nats = [
        z.exp().sum().log() - z[target]
        for z, target in zip(expected, batch.targets.flatten().tolist(), strict=True)
    ]
    wanted = sum(nats) / len(nats) + COEFFICIENT * sum(reference.ratio_losses())
    wanted.backward()

    for decided in reference.decisions:  # it would be no test if all or none were boundaries
        assert 0.2 < decided.share < 0.8
        assert min(abs(float(p.detach()) - 0.5) for p in decided.probs) > 1e-6
    torch.testing.assert_close(logits.flatten(0, 1), torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(w.grad is not None and w.grad.abs().max() > 1e-6 for w in weights.values())
    for name, weight in weights.items():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-8, atol=1e-9, msg=name)
