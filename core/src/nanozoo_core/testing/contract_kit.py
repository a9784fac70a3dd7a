"""See the package docstring. A subclass states what its paper promises and inherits the checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanozoo_core import registry
from nanozoo_core.config import (
    OptimConfig,
    compose_config,
    from_defaults,
    model_config,
    schema,
    training_config,
)
from nanozoo_core.contract import Draw, Step, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.device import autocast
from nanozoo_core.testing.contract_counts import CountsContract
from nanozoo_core.testing.contract_decoding import DecodingContract
from nanozoo_core.testing.contract_flops import AccountsContract
from nanozoo_core.testing.contract_keys import KeysContract
from nanozoo_core.testing.contract_training import TrainingContract
from nanozoo_core.testing.decoding import drawn_tokens
from nanozoo_core.testing.pretend_mps import pretend_mps
from nanozoo_core.testing.roles import own_roles
from nanozoo_core.testing.sources import MarkovSource, batch_of, short_documents
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_core.testing.training import gradients_in_parts, train_on_batches
from nanozoo_core.training import finish, runs
from nanozoo_core.training.distributed import LossModule
from nanozoo_core.training.run_folder import RunFolder

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"num_layers": 2, "model_dim": 32, "num_heads": 2}
"""Of a model with the shape of the control."""


class ModelContract(
    AccountsContract, CountsContract, DecodingContract, KeysContract, TrainingContract
):
    """The contract, test by test. Override the attributes, and the methods whose rule differs."""

    model: str
    tiny: dict[str, Any]  # model_cfg of a model small enough to train in seconds
    seq_len = 32
    toy_vocab = 8  # vocabulary of the enumerable and the known-entropy source
    toy_length = 3  # scored tokens of the enumerable source
    initial_loss_above_uniform = (-0.05, 0.35)  # range around ln V, on random tokens
    gradient_steps = 2  # within which every parameter must be reached: designs start with zeros
    overfit_steps = 200
    overfit_copies = 1  # of the small set in a batch: several noise draws, where there is noise
    overfit_nats = 0.05
    entropy_steps = 250
    entropy_windows = 16  # per step
    entropy_gap = 0.08  # nats per token that a trained model may stay above the source
    lr = 1e-2  # AdamW rate of the small trainings here
    cached_tolerance = 1e-5
    bfloat16_perturbation = 0.1  # of the weights, so that every part of the model moves the score
    bfloat16_tolerance = 5e-3  # relative, of a window's nats: two roundings of 2^-9 and no more
    own_roles: dict[str, str] = {}  # noqa: RUF012 - by name, where core would give another
    more_settings: Sequence[dict[str, Any]] = ()  # other paths that a device without float64 takes

    # -- what a subclass states -------------------------------------------------------------------

    def num_parameters(self, config: Any) -> int:
        """The parameter count, from the paper's formula."""
        raise NotImplementedError

    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """(B, T, V): the prediction after each position."""
        return model(tokens)

    # -- small helpers ----------------------------------------------------------------------------

    def config(self, vocab_size: int, seq_len: int | None = None, **changes: Any) -> Any:
        return model_config(
            self.model, self.tiny | changes, seq_len=seq_len or self.seq_len, vocab_size=vocab_size
        )

    def build(
        self, vocabulary: Vocabulary, seq_len: int | None = None, *, seed: int = 0, **changes: Any
    ) -> tuple[DefaultModelAdapter, nn.Module]:
        """The adapter and a fresh tiny model, with `changes` to its settings."""
        adapter = load_adapter(self.model)
        torch.manual_seed(seed)
        config = self.config(vocabulary.size, seq_len, **changes)
        model = adapter.build(config, vocabulary)
        tokens = self.random_tokens(vocabulary.size, 4, seq_len, adapter=adapter, config=config)
        adapter.prepare_model(model, [batch_of(tokens)])
        return adapter, model

    def random_tokens(
        self,
        vocab_size: int,
        num_windows: int,
        seq_len: int | None = None,
        *,
        adapter: DefaultModelAdapter | None = None,
        config: Any = None,
        seed: int = 1,
    ) -> Tensor:
        lookahead = 1 if adapter is None else adapter.lookahead(config)
        generator = torch.Generator().manual_seed(seed)
        length = (seq_len or self.seq_len) + lookahead
        return torch.randint(vocab_size, (num_windows, length), generator=generator)

    def perturb(self, model: nn.Module, scale: float = 0.05) -> None:
        """Moves every parameter, so that zero-initialised parts take part."""
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))

    def train_on(
        self, adapter: DefaultModelAdapter, model: nn.Module, windows: Sequence[Tensor]
    ) -> None:
        """One AdamW step per element of `windows`, rate falling linearly to zero."""
        train_on_batches(adapter, model, [batch_of(tokens) for tokens in windows], self.lr)

    def nats(
        self, adapter: DefaultModelAdapter, model: nn.Module, tokens: Tensor, draws: int = 1
    ) -> Tensor:
        """(B,) float64 nats per window, the mean over draws for a bound."""
        model.eval()
        with torch.no_grad():
            batch = batch_of(tokens)
            totals = [adapter.nll(model, batch, Draw(0, n)).nats for n in range(draws)]
        return torch.stack(totals).mean(0)

    def draws(self, adapter: DefaultModelAdapter, many: int) -> int:
        return 1 if adapter.likelihood == "exact" else many

    # -- configuration ----------------------------------------------------------------------------

    def test_yaml_composes_and_validates(self) -> None:
        config = training_config(compose_config([f"model={self.model}"]))
        assert config.model == self.model

    def test_yaml_sets_every_model_key(self) -> None:
        composed = compose_config([f"model={self.model}"])
        names = {field.name for field in fields(registry.config_class(self.model))}
        assert set(composed["model_cfg"]) == names

    def test_built_config_builds_itself(self) -> None:
        """What a run stores of its model makes the same model again."""
        config = self.config(self.toy_vocab)
        assert model_config(self.model, schema.to_dict(config)) == config

    def test_wrong_key_is_refused_by_name(self) -> None:
        data = compose_config([f"model={self.model}", "model_cfg.num_layerz=2"])
        with pytest.raises(ConfigError, match=r"model_cfg\.num_layerz"):
            training_config(data)

    def test_parameter_count_is_the_formula(self) -> None:
        _, model = self.build(ToyVocabulary(self.toy_vocab))
        counted = sum(p.numel() for p in model.parameters())
        assert counted == self.num_parameters(self.config(self.toy_vocab))

    def test_every_parameter_has_a_role_and_a_group(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        roles = adapter.parameter_roles(model)
        assert set(roles) == {name for name, _ in model.named_parameters()}
        groups = adapter.optimizer_groups(model, from_defaults(OptimConfig))
        grouped = [id(p) for group in groups for p in group.params]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())

    def test_roles_of_its_own_are_those_stated(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        assert own_roles(adapter, model) == self.own_roles

    # -- loss and score ---------------------------------------------------------------------------

    def test_initial_loss_is_uniform(self) -> None:
        vocab_size = max(self.toy_vocab, 258)
        adapter, model = self.build(ToyVocabulary(vocab_size))
        tokens = self.random_tokens(vocab_size, 16)
        nats = self.nats(adapter, model, tokens, self.draws(adapter, 16)).mean() / self.seq_len
        above = float(nats) - math.log(vocab_size)
        low, high = self.initial_loss_above_uniform
        assert low <= above <= high, (
            f"a fresh model starts {above:+.3f} nats from ln V, and {low} to {high} are allowed; "
            "let the head start small, as that of the control does, or declare the start that the "
            "paper publishes: initial_loss_above_uniform = (low, high) in the test class"
        )

    def test_a_change_leaves_earlier_predictions_untouched(self) -> None:
        _, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        model.eval()
        tokens = self.random_tokens(self.toy_vocab, 2)[:, : self.seq_len]
        place = self.seq_len // 2
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % self.toy_vocab
        with torch.no_grad():
            before, after = self.logits(model, tokens), self.logits(model, changed)
        torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=1e-5)
        assert (before[:, place] - after[:, place]).abs().max() > 1e-4

    def test_no_parameter_is_without_gradient(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        reached: set[str] = set()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for number in range(self.gradient_steps):
            tokens = self.random_tokens(self.toy_vocab, 8, seed=number)
            step = Step(number=number, progress=0.0, seed=0)
            adapter.training_loss(model, batch_of(tokens), step).value.backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None and parameter.grad.abs().max() > 0:
                    reached.add(name)
            optimizer.step()
            optimizer.zero_grad()
        missed = {name for name, _ in model.named_parameters()} - reached
        assert not missed, (
            f"no gradient reaches {sorted(missed)} within {self.gradient_steps} steps; where "
            "weights behind them start at zero, set gradient_steps in the test class"
        )

    def test_a_small_set_is_learned_by_heart(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab), seq_len=16)
        tokens = self.random_tokens(self.toy_vocab, 4, 16)
        tokens[:, 0] = torch.arange(4)  # the first token tells the windows apart
        copies = tokens.repeat(self.overfit_copies, 1)
        self.train_on(adapter, model, [copies] * self.overfit_steps)
        nats = self.nats(adapter, model, tokens, self.draws(adapter, 32)).mean() / 16
        assert float(nats) < self.overfit_nats

    def test_a_known_source_is_approached_and_never_beaten(self) -> None:
        source = MarkovSource(min(self.toy_vocab, 8))
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        count, length = self.entropy_windows, self.seq_len + 1
        windows = [source.sample(count, length, seed) for seed in range(self.entropy_steps)]
        self.train_on(adapter, model, windows)
        fresh = source.sample(256, self.seq_len + 1, seed=10_000)
        excess = self.nats(adapter, model, fresh, self.draws(adapter, 8)) - source.nats(fresh)
        per_token = excess / self.seq_len
        error = float(per_token.std()) / math.sqrt(len(per_token))
        assert float(per_token.mean()) > -3 * error
        assert float(per_token.mean()) < self.entropy_gap

    def test_probabilities_of_all_texts_sum_to_one(self) -> None:
        """Or to less, for an upper bound on -log p."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab), seq_len=self.toy_length)
        self.perturb(model)
        texts = itertools.product(range(self.toy_vocab), repeat=self.toy_length)
        tokens = torch.tensor([(1, *text) for text in texts])
        nats = self.nats(adapter, model, tokens, self.draws(adapter, 64))
        total = float((-nats).exp().sum())
        if adapter.likelihood == "exact":
            assert total == pytest.approx(1, abs=1e-4)
        else:
            assert total < 1.01

    def test_score_does_not_depend_on_batching(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        model.eval()
        tokens = self.random_tokens(self.toy_vocab, 6)
        with torch.no_grad():
            whole = adapter.nll(model, batch_of(tokens), Draw(0)).nats
            parts = [
                adapter.nll(model, batch_of(tokens[i : i + 1], first_row=i, num_rows=6), Draw(0))
                for i in range(6)
            ]
        single = torch.cat([part.nats for part in parts])
        torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)
        assert sum(part.num_tokens for part in parts) == 6 * self.seq_len

    def test_gradients_do_not_depend_on_how_a_batch_is_split(self) -> None:
        """Over micro-steps and ranks, with documents far shorter than the window, so that parts
        differ in how many targets lie beyond a document's end."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        batch = short_documents(
            self.random_tokens(self.toy_vocab, 8, adapter=adapter, config=model.config),
            lookahead=adapter.lookahead(model.config),
        )
        whole = gradients_in_parts(adapter, model, batch, 1)
        for num_parts in (2, 8):
            split = gradients_in_parts(adapter, model, batch, num_parts)
            error = sum(float((split[n] - whole[n]).square().sum()) for n in whole)
            size = sum(float(gradient.square().sum()) for gradient in whole.values())
            assert math.sqrt(error / size) < 1e-4

    def test_the_nats_of_tokens_sum_to_those_of_their_window(self) -> None:
        """Where the model has such; documents begin within the windows, and tokens are unscored."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        assert adapter.scores_tokens == (adapter.likelihood == "exact")
        if not adapter.scores_tokens:
            return
        self.perturb(model)
        batch = short_documents(
            self.random_tokens(self.toy_vocab, 4, adapter=adapter, config=model.config),
            lookahead=adapter.lookahead(model.config),
        )
        scored = torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(3)) < 0.5
        batch = replace(batch, scored=scored)
        with torch.no_grad():
            tokens = adapter.token_nats(model.eval(), batch)  # (B, T)
            whole = adapter.nll(model, batch, Draw(0)).nats
        assert tokens.dtype == torch.float64
        assert tokens[~scored].abs().max() == 0
        torch.testing.assert_close(tokens.sum(1), whole, rtol=1e-12, atol=0)

    def test_unscored_tokens_do_not_count(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        tokens = self.random_tokens(self.toy_vocab, 2)
        scored = torch.zeros(2, self.seq_len, dtype=torch.bool)
        batch = replace(batch_of(tokens), scored=scored)
        with torch.no_grad():
            nll = adapter.nll(model.eval(), batch, Draw(0))
        assert nll.num_tokens == 0
        assert nll.nats.abs().max() < 1e-9

    # -- decoding ---------------------------------------------------------------------------------

    def test_cached_decoding_equals_full_recomputation(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        if not adapter.has_cache(model):
            pytest.skip(f"{type(model).__name__} has no init_cache; decoding recomputes everything")
        self.perturb(model)
        model.eval()
        tokens = self.random_tokens(self.toy_vocab, 2)[:, : self.seq_len]
        lengths = torch.tensor([5, 9])
        with torch.no_grad():
            full = self.logits(model, tokens)
            cache = adapter.init_cache(model, 2, self.seq_len)
            logits = adapter.prefill(model, tokens[:, :9], lengths, cache)
            rows = torch.arange(2)
            self._assert_close(logits, full[rows, lengths - 1])
            for offset in range(8):
                new = tokens[rows, lengths + offset][:, None]
                logits = adapter.append(model, new, cache)[:, -1]
                self._assert_close(logits, full[rows, lengths + offset])

    def _assert_close(self, actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(
            actual, expected, rtol=self.cached_tolerance, atol=self.cached_tolerance
        )

    def test_generation_is_seeded(self) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        model.eval()

        def draw(seed: int, **changes: Any) -> list[int]:
            changes |= {"max_tokens": 8, "num_steps": 4}
            return drawn_tokens(adapter, model, [1, 2], seed=seed, **changes)

        assert draw(3) == draw(3)
        assert draw(3) == draw(3, use_cache=False)
        assert len(draw(3)) == 8
        assert all(0 <= token < self.toy_vocab for token in draw(4))

    # -- precision --------------------------------------------------------------------------------

    def test_bfloat16_agrees_with_float32(self) -> None:
        """Autocast rounds products to 8 bits. The weights are moved first: a model as it starts
        predicts evenly, whatever its parts compute."""
        self.assert_rounding_moves_scores_by(torch.bfloat16, self.bfloat16_tolerance)

    def test_float16_agrees_with_float32(self) -> None:
        """Autocast rounds products to 11 bits."""
        self.assert_rounding_moves_scores_by(torch.float16, self.bfloat16_tolerance / 8)

    def assert_rounding_moves_scores_by(self, dtype: torch.dtype, tolerance: float) -> None:
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model, self.bfloat16_perturbation)
        tokens = self.random_tokens(self.toy_vocab, 8)
        exact = self.nats(adapter, model, tokens)
        with autocast(CPU, dtype):
            rounded = self.nats(adapter, model, tokens)
        torch.testing.assert_close(rounded, exact, rtol=tolerance, atol=0)

    def test_needs_no_float64_of_the_device(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An Apple GPU has none: a model trains, is scored and writes there, and its weights score
        the same on the CPU."""
        monkeypatch.setattr(finish, "SAMPLE_TOKENS", 6)
        brief = {"device": "mps", "train.max_steps": 2, "eval.bytes": 500}
        for number, settings in enumerate(({}, *self.more_settings)):
            changes = brief | {f"model_cfg.{key}": value for key, value in settings.items()}
            with pretend_mps(monkeypatch):
                folder = self.run(self.overrides(corpus, tmp_path / str(number), **changes))
                there = runs.score(runs.load_run(folder, device="mps"), {})
            here = runs.score(runs.load_run(folder, device="cpu"), {})
            result = RunFolder(folder).read_result()
            assert result["val_bpb"] == pytest.approx(here.bits_per_byte, rel=1e-5)
            assert there.bits_per_byte == pytest.approx(here.bits_per_byte, rel=1e-5)

    @pytest.mark.slow
    def test_compiled_loss_agrees_with_eager(self) -> None:
        """From weights that are moved, as in bfloat16."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model, self.bfloat16_perturbation)
        tokens = self.random_tokens(self.toy_vocab, 4)
        step = Step(number=0, progress=0.0, seed=0)
        module = LossModule(model, adapter)
        eager, _ = module(batch_of(tokens), step)
        compiled, _ = torch.compile(module)(batch_of(tokens), step)
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
        compiled.backward()
