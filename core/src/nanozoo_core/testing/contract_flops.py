"""What the contract kit asks of a model's accounts: FLOPs as torch counts them, windows that the
tests reach beyond."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanozoo_core.contract import Step
from nanozoo_core.testing.contract_parts import ContractPart
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary


class AccountsContract(ContractPart):
    """The part of `ModelContract` that counts."""

    model: str
    tiny: dict[str, Any]
    flops_cfg: dict[str, Any] = {}  # noqa: RUF012 - model_cfg under which torch sees every product
    flops_steps = 1  # over which the count is averaged, where it differs from step to step
    flops_tolerance = 0.04  # relative

    def uncounted_flops(self, config: Any, seq_len: int) -> float:
        """Training FLOPs per token that the model's formula has and torch's counter does not see,
        such as a scan's, less those that it sees and the formula leaves out; each with its
        reason."""
        return 0.0

    def test_flops_are_those_that_torch_counts(self) -> None:
        """Of the training loss forward and backward, attention by plain products. Torch counts
        products alone, and blocks as they are computed: what the formula has besides stands in
        `uncounted_flops`, and settings under which the two are the same in `flops_cfg`."""
        from torch.utils.flop_counter import FlopCounterMode

        vocab_size, num_windows, length = 64, 2, 2 * self.seq_len
        adapter, model = self.build(ToyVocabulary(vocab_size), length, **self.flops_cfg)
        config: Any = model.config
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            for number in range(self.flops_steps):
                tokens = self.random_tokens(
                    vocab_size, num_windows, length, adapter=adapter, config=config, seed=number
                )
                batch = batch_of(tokens, lookahead=adapter.lookahead(config))
                step = Step(number=number, progress=0.0, seed=0)
                adapter.training_loss(model, batch, step).value.backward()
        counted = counter.get_total_flops() / (self.flops_steps * num_windows * length)
        counted += self.uncounted_flops(config, length)
        stated = adapter.flops_per_token(config, length)
        assert stated == pytest.approx(counted, rel=self.flops_tolerance), (
            f"flops_per_token states {stated:,.0f} where {counted:,.0f} are computed; what torch "
            "does not count belongs into uncounted_flops of the test class"
        )

    def test_texts_of_the_tests_are_longer_than_any_window(self) -> None:
        """A window that no test reaches past is tested by none."""
        _, model = self.build(ToyVocabulary(8))
        too_long = {k: n for k, n in stated_windows(model.config) if n >= self.seq_len}
        assert not too_long, (
            f"the tests read {self.seq_len} tokens, which stay inside {too_long}; give smaller "
            "windows in `tiny`, or a longer `seq_len` in the test class"
        )


def stated_windows(config: Any) -> Iterator[tuple[str, int]]:
    """Every number of a setting with "window" in its name."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    yield from _windows(values, inside=False)


def _windows(value: Any, *, inside: bool, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _windows(part, inside=inside or "window" in str(key), name=str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _windows(part, inside=inside, name=name)
    elif inside and isinstance(value, int) and not isinstance(value, bool):
        yield name, value
