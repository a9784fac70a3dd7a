"""What the contract kit asks of a model's settings: each of them does something, or is refused.

A setting that is read by nothing beside the others makes a comparison of two equal models. So every
key is moved, one at a time, to other legal values, and either something that can be observed moves
with it, or the config refuses it in a sentence that names it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanozoo_core import registry
from nanozoo_core.config import OptimConfig, TrainingConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw, SamplingSettings, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError, show_value
from nanozoo_core.generation.text import draw_text
from nanozoo_core.testing.setting_values import other_values, setting_names
from nanozoo_core.testing.sources import short_documents
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_core.testing.training import move, train_on_batches

POINTS = (0.0, 0.3, 0.6, 0.97)  # of a run, at which steps are taken and schedules are read
CHANGES, REFUSED = "changes", "is refused"


Seen = dict[str, Tensor]
"""Numbers that were observed, by a name for them."""


def differ(one: Seen, two: Seen) -> bool:
    """In any number, or in what numbers there are."""
    if one.keys() != two.keys():
        return True
    return any(not _equal(one[name], two[name]) for name in one)


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one, two)


def apart(one: Seen, two: Seen) -> float:
    """The largest difference of a number, relative to its size or to 1."""
    if one.keys() != two.keys() or any(one[name].shape != two[name].shape for name in one):
        return math.inf
    pairs = [(one[name], two[name]) for name in one if one[name].numel()]
    return max(float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs)


class KeysContract:
    """The part of `ModelContract` that moves every setting."""

    model: str
    tiny: dict[str, Any]
    key_seq_len = 16
    key_forms: Sequence[dict[str, Any]] = ({},)
    """Settings beside which every key is moved: one form for each kind of the model."""
    key_values: Mapping[str, Sequence[Any]] = {}
    """Values to try before those that the type gives, for texts, layouts and the like."""
    speed_keys: Mapping[str, str] = {}
    """Keys that must change nothing but speed or memory, and why; it is checked that they do."""
    part_keys: Mapping[str, str] = {}
    """Keys of parts that a form may lack, and which: there they may change nothing, unlike in
    another form."""
    unmoved_keys: Mapping[str, str] = {}
    """Keys that are left alone here, and why: such as those that only permit what is refused."""
    decided_keys: Mapping[str, str] = {}
    """Keys that others decide, and how: they may say aloud what holds anyway, and every other value
    is refused."""
    speed_tolerance = 1e-3  # of all numbers after a few steps: sums in another order

    key_vocab = 8
    key_symbols: Sequence[int] = range(8)
    """Tokens of the vocabulary that the texts are made of."""

    def key_vocabulary(self) -> Vocabulary:
        return ToyVocabulary(self.key_vocab)

    def test_every_key_changes_something_or_is_refused(self) -> None:
        """Beside the first form."""
        self._move_all(self.key_forms[:1])

    @pytest.mark.slow
    def test_every_key_of_every_form_changes_something_or_is_refused(self) -> None:
        """And each key changes something in one of the forms at least."""
        idle = self._move_all(self.key_forms)
        assert not idle, f"no form of `key_forms` lets these settings change anything: {idle}"

    def _move_all(self, forms: Sequence[dict[str, Any]]) -> set[str]:
        """The keys that changed nothing anywhere, all of them refused."""
        hints = dict(setting_names(registry.config_class(self.model)))
        moved = {
            k: h for k, h in hints.items() if k not in {**self.unmoved_keys, **self.speed_keys}
        }
        wrong: list[str] = []
        idle = set(moved) - set(self.decided_keys)
        for form in forms:
            base = self._key_config(form)
            expected = list(self._observed(base))
            for key, hint in moved.items():
                verdict = self._move(key, hint, form, base, expected)
                if verdict == CHANGES:
                    idle.discard(key)
                elif verdict != REFUSED and key not in self.part_keys:
                    wrong.append(f"beside {form or 'the tiny form'}: {verdict}")
        assert not wrong, (
            "these settings change nothing and are not refused; refuse them in the config class "
            "with a sentence that says what to do:\n" + "\n".join(wrong)
        )
        return idle

    def test_exempt_keys_are_settings_and_change_speed_alone(self) -> None:
        hints = dict(setting_names(registry.config_class(self.model)))
        named = (self.unmoved_keys, self.speed_keys, self.decided_keys, self.part_keys)
        exempt = {key for keys in (*named, self.key_values) for key in keys}
        assert exempt <= set(hints), f"these are no settings: {exempt - set(hints)}"
        left = set(self.speed_keys)
        for form in self.key_forms:
            base = self._key_config(form)
            for key in sorted(left):
                expected = list(self._observed(base))
                for value, config in self._others(key, hints[key], form, base, []):
                    found = list(self._observed(config))
                    gap = max(map(apart, found, expected))
                    assert gap < self.speed_tolerance, (
                        f"model_cfg.{key}={show_value(value)} moves a number by {gap:.1e}"
                    )
                    left.discard(key)
        assert not left, f"no form of `key_forms` takes another value of {left}"

    # -- moving one key -------------------------------------------------------------------------

    def _key_config(self, form: Mapping[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model_config(
                self.model,
                {**self.tiny, **form},
                seq_len=self.key_seq_len,
                vocab_size=self.key_vocabulary().size,
            )

    def _move(
        self, key: str, hint: Any, form: Mapping[str, Any], base: Any, expected: Sequence[Seen]
    ) -> str:
        """CHANGES, REFUSED or what is wrong."""
        refusals: list[str] = []
        without_effect = []
        for value, config in self._others(key, hint, form, base, refusals):
            if any(map(differ, self._observed(config), expected)):
                return CHANGES
            if value is not None:  # null leaves a setting out, which is no claim
                without_effect.append(value)
        is_named = any(f"model_cfg.{key}" in text for text in refusals)
        if without_effect and not (key in self.decided_keys and is_named):
            shown = ", ".join(map(show_value, without_effect))
            return f"model_cfg.{key} may be {shown}, and nothing changes"
        if not is_named:
            return (
                f"model_cfg.{key}={show_value(_get(base, key))} has no other value to try; give "
                f"some in `key_values`. What was refused: {refusals[:3]}"
            )
        return REFUSED

    def _others(
        self, key: str, hint: Any, form: Mapping[str, Any], base: Any, refusals: list[str]
    ) -> Iterator[tuple[Any, Any]]:
        """Other values of a key, and configs with them of which a model can be made; what is
        refused goes to `refusals`."""
        for value in [*self.key_values.get(key, ()), *other_values(hint, _get(base, key))]:
            try:
                config = self._key_config(_with(form, self.tiny, key, value))
                if config == base:  # what was null may have become what it is now
                    continue
                self._fresh(config)
            except ConfigError as error:
                refusals += error.problems
                continue
            yield value, config

    # -- what is observed -----------------------------------------------------------------------

    def _fresh(self, config: Any) -> tuple[DefaultModelAdapter, nn.Module, list[Batch]]:
        """A model of this config, and what it is trained on."""
        adapter = load_adapter(self.model)
        torch.manual_seed(0)
        model = adapter.build(config, self.key_vocabulary())
        batches = [self._documents(adapter, config, seed) for seed, _ in enumerate(POINTS)]
        adapter.prepare_model(model, batches)
        return adapter, model, batches

    def _observed(self, config: Any) -> Iterator[Seen]:
        """What is seen of a fresh model, of its training and score, and of its texts: the later the
        dearer, so that a difference is looked for in this order."""
        adapter, model, batches = self._fresh(config)
        yield _state(model) | _accounts(adapter, model, config, self.key_seq_len)
        move(model, 0.1)
        losses = train_on_batches(
            adapter, model, batches, optim=from_defaults(OptimConfig), points=POINTS
        )
        adapter.finalize(model, batches)
        with torch.no_grad():
            nats = adapter.nll(model, batches[0], Draw(0)).nats
            yield _state(model) | {"losses": _numbers(losses), "nats": nats.double()}
            yield _texts(adapter, model, self.key_symbols[1:4], self.key_seq_len)

    def _documents(self, adapter: DefaultModelAdapter, config: Any, seed: int) -> Batch:
        """Windows in which several documents begin."""
        lookahead = adapter.lookahead(config)
        generator = torch.Generator().manual_seed(seed)
        shape = (4, self.key_seq_len + lookahead)
        symbols = torch.tensor(self.key_symbols)
        tokens = symbols[torch.randint(len(symbols), shape, generator=generator)]
        return short_documents(tokens, lookahead=lookahead)


def _state(model: nn.Module) -> Seen:
    """Weights and buffers."""
    return {f"state {name}": v.detach().double().clone() for name, v in model.state_dict().items()}


def _accounts(adapter: DefaultModelAdapter, model: nn.Module, config: Any, seq_len: int) -> Seen:
    """Groups of the optimiser by parameter, the longest text, and schedules over the run."""
    numbers: Seen = {}
    for group in adapter.optimizer_groups(model, from_defaults(OptimConfig)):
        rates = [group.lr, group.lr_mult, group.weight_decay, *group.betas, group.every]
        numbers |= {f"{group.optimizer} {name}": _numbers(rates) for name in group.names}
    data = {"seq_len": seq_len}
    training = from_defaults(TrainingConfig, model="any", model_cfg={}, data=data)
    stages = adapter.data_plan(config, training).stages
    numbers["stages"] = _numbers([n for s in stages for n in astuple(s)])
    numbers["longest text"] = _numbers([getattr(model, "max_context", None) or 0])
    numbers["peaks"] = _numbers([adapter.lr_peak(config, point) for point in POINTS])
    return numbers


def _numbers(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _texts(
    adapter: DefaultModelAdapter, model: nn.Module, prompt: Sequence[int], length: int
) -> Seen:
    """Tokens drawn past the end of a window, and the number of drafts where there are any."""
    settings = SamplingSettings(max_tokens=length + 8, seed=0)
    generator = torch.Generator().manual_seed(0)
    pieces = draw_text(adapter, model, prompt, settings, generator)
    found = {"text": _numbers([token for piece in pieces for token in piece])}
    drafter = adapter.drafter(model)
    if drafter is not None:
        found["drafts"] = _numbers([drafter.num_drafts])
    return found


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _with(form: Mapping[str, Any], tiny: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The form with a key, which may lie in a section, at a value."""
    section, _, name = key.rpartition(".")
    if not section:
        return {**form, key: value}
    return {**form, section: {**tiny.get(section, {}), **form.get(section, {}), name: value}}
