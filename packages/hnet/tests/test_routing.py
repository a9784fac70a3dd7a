from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanozoo_hnet.routing import (
    FixedStride,
    Router,
    Routing,
    SpaceStarts,
    chunk_order,
    ratio_loss,
    take_positions,
)


def probabilities(x: Tensor, router: Router | None = None) -> Tensor:
    return (router or Router(x.shape[-1]))(x[None], torch.zeros(1, len(x)), None)[0]


def test_router_known_answers() -> None:
    right, up = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
    probs = probabilities(torch.stack([right, right, -right, up, up * 5, right / 2 - up / 3]))
    expected = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0, 0.5 + 0.5**1.5])
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-6)


def test_a_right_angle_is_no_boundary() -> None:
    assert not probabilities(torch.eye(4)[:2])[1] > 0.5


def test_scale_means_nothing_to_the_router() -> None:
    generator = torch.Generator().manual_seed(0)
    x, router = torch.randn(50, 16, generator=generator), Router(16)
    torch.nn.init.normal_(router.query.weight, generator=generator)
    expected = probabilities(x, router)
    torch.testing.assert_close(probabilities(10 * x, router), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        router.query.weight.mul_(10)
    torch.testing.assert_close(probabilities(x, router), expected, rtol=0, atol=1e-6)


def test_router_is_float32_under_autocast() -> None:
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    expected = probabilities(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = probabilities(x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("chunker", [Router(8), FixedStride(3), SpaceStarts()], ids=type)
def test_steps_decide_as_the_whole_sequence(chunker: Router | FixedStride | SpaceStarts) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 20, 8, generator=generator)
    tokens = torch.randint(0, 258, (3, 20), generator=generator)
    expected = chunker(x, tokens, None)
    state = chunker.init_state(3, torch.device("cpu"))
    for t in range(20):
        probs, new = chunker.step(x[:, t], tokens[:, t], state)
        state.put(None, new)
        torch.testing.assert_close(probs, expected[:, t], rtol=0, atol=1e-6)


def test_state_behind_ragged_rows_continues_them() -> None:
    generator = torch.Generator().manual_seed(0)
    x, lengths = torch.randn(2, 6, 8, generator=generator), torch.tensor([2, 5])
    tokens = torch.full((2, 6), ord("a"))
    rows = torch.arange(2)
    for chunker in (Router(8), FixedStride(3), SpaceStarts()):
        state = chunker.state_after(x, tokens, lengths)
        probs, _ = chunker.step(x[rows, lengths], tokens[rows, lengths], state)
        torch.testing.assert_close(probs, chunker(x, tokens, None)[rows, lengths])


def test_spaces_start_chunks() -> None:
    text = b"ab  cd, \xc3\xa4e1"
    tokens = torch.tensor([[*text, 256]])
    starts = SpaceStarts()(torch.zeros(1), tokens, None)[0].bool()
    #             a  b " " " "  c  d  ,  " "  c3     a4     e  1  separator
    expected = [1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert starts.int().tolist() == expected


def test_documents_start_chunks() -> None:
    starts = torch.tensor([[0, 0, 0, 0, 1, 0, 0, 0]]).bool()
    x = torch.ones(1, 8, 4)
    tokens = torch.full((1, 8), ord("a"))
    assert Router(4)(x, tokens, starts)[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert SpaceStarts()(x, tokens, starts)[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert FixedStride(3)(x, tokens, starts)[0].tolist() == [1, 0, 0, 1, 1, 0, 0, 1]


# -- ratio loss ---------------------------------------------------------------------------------


def loss_of(routing: Routing, ratio: float) -> Tensor:
    return ratio_loss(routing.share, routing.mean_prob, ratio)


def routing(share: float, prob: Tensor | float, count: int = 300) -> Routing:
    boundaries = torch.arange(count) < round(share * count)
    probs = prob if isinstance(prob, Tensor) else torch.full((count,), prob, dtype=torch.float64)
    return Routing(probs[None], boundaries[None], None)


@pytest.mark.parametrize(
    ("share", "prob", "expected"),
    [(1 / 6, 1 / 6, 1.0), (0.5, 0.5, 1.8), (1.0, 1.0, 6.0), (0.0, 0.0, 1.2)],
)
def test_ratio_loss_known_answers(share: float, prob: float, expected: float) -> None:
    assert float(loss_of(routing(share, prob), 6.0)) == pytest.approx(expected, rel=1e-6)


def test_ratio_loss_is_one_plus_a_product() -> None:
    share, prob, n = 0.31, 0.17, 4.5
    expected = 1 + (n * share - 1) * (n * prob - 1) / (n - 1)
    assert float(loss_of(routing(share, prob), n)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("share", "sign"), [(0.5, 1), (1 / 6, 0), (0.05, -1)])
def test_ratio_loss_pushes_the_probability_towards_the_target(share: float, sign: int) -> None:
    probs = torch.full((300,), 0.4, requires_grad=True)
    loss_of(routing(share, probs), 6.0).backward()
    slope = float(probs.grad.sum())  # dR/dG
    assert slope == pytest.approx(6 * (6 * share - 1) / 5, abs=1e-6)
    assert (slope > 1e-6) - (slope < -1e-6) == sign


def test_ratio_loss_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(2, 40, generator=generator)
    alone = Routing(probs, probs > 0.5, None)
    padded = torch.cat([probs, torch.rand(2, 9, generator=generator)], dim=1)
    valid = torch.arange(49).expand(2, -1) < 40
    found = Routing(padded, (padded > 0.5) & valid, valid)
    torch.testing.assert_close(found.share, alone.share)
    torch.testing.assert_close(found.mean_prob, alone.mean_prob)


# -- packing ------------------------------------------------------------------------------------


def test_packing_puts_the_boundaries_first_in_order() -> None:
    boundaries = torch.tensor([[1, 0, 0, 1, 1], [1, 0, 0, 0, 1]]).bool()
    assert chunk_order(boundaries, 3).tolist() == [[0, 3, 4], [0, 4, 1]]


def test_taking_positions_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    order = torch.stack([torch.randperm(10, generator=generator)[:4] for _ in range(3)])
    expected = x.gather(1, order[..., None].expand(-1, -1, 2))
    assert torch.equal(take_positions(x, order), expected)
    assert torch.autograd.gradcheck(lambda x: take_positions(x, order), (x,))
