"""Nats of a masked token by how many are masked."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from nanozoo_core.diffusion.masked_nats import counts_to_name, named_nats, nats_by_count
from nanozoo_core.testing.sources import batch_of

LENGTH = 10


def test_each_number_of_masks_is_asked_for_at_its_time_and_averaged_by_masked_token():
    asked = []

    def token_loss(batch):
        def loss(targets: Tensor, masked: Tensor, time: Tensor) -> Tensor:
            asked.append((masked.sum(1).tolist(), time.tolist()))
            return masked * targets.double()

        return loss

    tokens = torch.arange(LENGTH + 1).expand(4, -1)  # targets 1 .. 10, whose mean is 5.5
    scored = torch.ones(3, LENGTH, dtype=torch.bool)
    scored[:, 1:] = False  # the first target alone
    batches = [batch_of(tokens), dataclasses.replace(batch_of(tokens[:3]), scored=scored)]
    found = nats_by_count(batches, [4, LENGTH], token_loss, lambda share: 3 * share)
    assert found[LENGTH] == pytest.approx((4 * 55 + 3 * 1) / (4 * 10 + 3))
    assert 1 < found[4] < 8
    assert [counts for counts, _ in asked] == [[4] * 4, [1] * 3, [10] * 4, [1] * 3]
    assert asked[0][1] == pytest.approx([1.2] * 4)
    assert asked[2][1] == pytest.approx([3.0] * 4)


@pytest.mark.parametrize(
    ("length", "names"),
    [
        (256, ["one", "32", "128", "all"]),
        (128, ["one", "32", "all"]),
        (40, ["one", "32", "all"]),
        (1, ["all"]),
    ],
)
def test_counts_are_named_as_far_as_there_are_tokens(length, names):
    counts = counts_to_name(length)
    assert counts[-1] == length
    nats = named_nats({count: float(count) for count in counts}, length)
    assert nats == {
        f"nats_{name}_masked": float(count) for name, count in zip(names, counts, strict=True)
    }
